"""A configuration's method and model, bound to its way of training."""

from jax.sharding import Mesh

from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.experiment.config import Config, create
from fedcmi_jax.experiment.optimization import local_training, server_optimizer
from fedcmi_jax.methods.base import Method
from fedcmi_jax.privacy import Privacy
from fedcmi_jax.types import Model


def algorithm_of(
    config: Config,
    method: Method,
    model: Model,
    rate_scale: float = 1.0,
    chunk_size: int = 1,
    mesh: Mesh | None = None,
    privacy: Privacy | None = None,
) -> FederatedAlgorithm:
    """The algorithm of one seed that a configuration describes.

    Args:
      config: The configuration.
      method: Its method.
      model: Its model.
      rate_scale: Factor on its learning rates, ``optimization.rate_scale``.
      chunk_size: Clients computed together.
      mesh: Devices that share every cohort; None: one.
      privacy: Its mechanism, with its noise; None: there is none.

    Raises:
      ValueError: See ``build_algorithm``.
    """
    return build_algorithm(
        method,
        model,
        clients_per_round=config.clients_per_round,
        local=local_training(config, method.momentum, rate_scale),
        server_optimizer=server_optimizer(config.server),
        chunk_size=chunk_size,
        rounds_per_call=rounds_per_call(config),
        clip_norm=config.clip_norm,
        mesh=mesh,
        reduction=config.reduction,
        lanes=config.lanes,
        aggregator=create("aggregator", config.aggregator),
        attack=create("attack", config.attack),
        guard_factor=config.guard_factor,
        privacy=privacy,
        compression=create("compression", config.compression),
        systems=create("systems", config.systems),
    )


def rounds_per_call(config: Config) -> int:
    """Rounds that one compiled call can do; a stream feeds it round by round."""
    return 1 if config.stream else config.rounds_per_call or config.eval_every
