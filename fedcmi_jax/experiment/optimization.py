"""Local training and the server's step of a configuration."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from fedcmi_jax import server_optimizers
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.config import Config, LocalConfig, ServerConfig
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods._momentum import momentum_gain
from fedcmi_jax.methods.base import FEDAVG, Method
from fedcmi_jax.models.augment import crop_and_flip
from fedcmi_jax.optimizers import Optimizer, linear_decay, torch_sgd


def rate_scale(
    config: Config, method: Method, sizes: np.ndarray, log: Callable[[str], None]
) -> float:
    """Factor on the learning rates, see ``LocalConfig.rate_scale``.

    Args:
      config: The configuration.
      method: Its method.
      sizes: [N] training samples of the clients.
      log: Receives the factor if it is not 1, and why.
    """
    local, usual = config.local, FEDAVG.momentum
    if local.rate_scale is not None:
        return local.rate_scale
    if local.optimizer != "sgd" or method.momentum == usual:
        return 1.0
    if local.momentum is not None:  # and with it the rate that goes with it
        if local.momentum != method.momentum:
            log(
                f"{method.name}: local.momentum {local.momentum:g} overrides its own "
                f"{method.momentum:g}, of which the method does not know"
            )
        return 1.0
    median = int(np.percentile(sizes, 50, method="lower"))
    steps = local.epochs * -(-median // local.batch_size)
    gains = [float(momentum_gain(m, steps)) for m in (usual, method.momentum)]
    scale = gains[0] / gains[1]
    log(
        f"{method.name}: momentum {method.momentum:g}, so learning rate "
        f"{local.learning_rate:g} x {scale:.2f} = {local.learning_rate * scale:.3g}, "
        f"which makes the mean step as long as with momentum {usual:g} over {steps} "
        "steps, the median client's (--local.rate-scale=1: the rate as it is)"
    )
    return scale


def local_training(config: Config, momentum: float, rate_scale: float) -> LocalTraining:
    """What a client does in one round.

    Args:
      config: The configuration.
      momentum: The method's own.
      rate_scale: Factor on the learning rates.
    """
    local = config.local
    start, end = local.learning_rate * rate_scale, local.learning_rate_min
    rate: float | Callable[[jax.Array], jax.Array] = start
    if end is not None:
        rate = linear_decay(
            start,
            end * rate_scale,
            local.decay_start,
            config.rounds,
            legacy=local.legacy_schedule,
        )
    return LocalTraining(
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=rate,
        optimizer=_local_optimizer(local, momentum),
        augment=crop_and_flip(local.augment) if local.augment else None,
        clip_grad_norm=local.clip_grad_norm,
    )


def check_augmented(names: tuple[str, ...], dataset: Dataset) -> None:
    """Refuses to augment what is no modality, or no images.

    Raises:
      ValueError: Names the modality and the remedy.
    """
    for name in names:
        if name not in dataset.modalities:
            raise ValueError(
                f"local.augment: unknown modality {name!r}; choose from "
                f"{list(dataset.modalities)}"
            )
        shape = dataset.shapes[name]
        if isinstance(shape, dict) or len(shape) not in (3, 4):
            raise ValueError(
                f"local.augment: {name!r} has samples of shape {shape}, which are no "
                "images or frames; leave it out"
            )


def _local_optimizer(local: LocalConfig, momentum: float) -> Optimizer:
    def adam(learning_rate) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(local.weight_decay)
        return optax.chain(decay, optax.adam(learning_rate))

    if local.momentum is not None:
        momentum = local.momentum
    sgd = torch_sgd(momentum=momentum, weight_decay=local.weight_decay)
    return {"sgd": sgd, "adam": adam}[local.optimizer]


def server_optimizer(server: ServerConfig) -> optax.GradientTransformation | None:
    """The server's optimizer; None: it adds the mean update."""
    if server.optimizer == "none":
        return None
    make = server_optimizers.REGISTRY[server.optimizer]
    return make() if server.learning_rate is None else make(server.learning_rate)
