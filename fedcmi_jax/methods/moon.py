"""MOON: Li et al., CVPR 2021, arXiv 2103.16422; methods 18."""

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._checks import check_features, check_not_negative
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, LocalUpdate
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums

NORM_FLOOR = 1e-8
"""Lengths are clamped to at least this in a cosine (torch's default)."""


def moon(*, mu: float = 1.0, temperature: float = 0.5) -> Method:
    """Features stay close to the global model's, away from the last local model's.

    A client minimises CE(z, y) + mu mean_m l_m over its modalities m, where with the
    features h of the model in training, h^G of the global one and h^P of the model that
    the client ended its last round with
      l_m = -log (e^G / (e^G + e^P)),   G = cos(h, h^G) / tau,   P = cos(h, h^P) / tau
    averaged over samples. Global and last local model are in eval mode.

    The paper has one input and one feature vector; a mean over modalities is ours. The
    last local model uses the global BatchNorm statistics; before a client's first round
    it is the initial model.

    Args:
      mu: Weight of the contrast, >= 0 (paper: 0.1 to 10); 0 is FedAvg exactly.
      temperature: tau, > 0 (paper: 0.5).

    Raises:
      ValueError: mu is negative, or temperature is not positive.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.moon(mu=5.0).name
      'moon'
    """
    check_not_negative(mu=mu)
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not positive; try 0.5")

    def init(
        model: Model, params: Params, num_clients: int
    ) -> tuple[tuple[()], Params]:
        del model, num_clients
        return (), params

    def features(client: Client, params: Params, batch: Batch) -> dict[str, Array]:
        outputs, _ = client.model.apply(params, client.batch_stats, batch, False)
        return jax.lax.stop_gradient(outputs.features)

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: PyTree
    ) -> tuple[Array, Sums]:
        del context
        near = features(client, client.params, batch)
        far = features(client, client.memory, batch)
        terms = jnp.stack(
            [
                contrast(h, near[m], far[m], temperature)
                for m, h in outputs.features.items()
            ],
            axis=1,
        )
        has = batch.available * batch.valid[:, None]
        per_sample = (terms * has).sum(1) / jnp.maximum(has.sum(1), 1.0)
        total, count = per_sample.sum(), batch.valid.sum()
        sums = {"loss_contrast": (total, count)}
        return mu * total / jnp.maximum(count, 1.0), sums

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[tuple[()], Params]:
        del client, context
        return (), local_update.params

    def check(model: Model, clients_per_round: int) -> None:
        del clients_per_round
        check_features("moon", model)

    return Method(name="moon", check=check, init=init, loss=loss, finish=finish)


def contrast(h: Array, near: Array, far: Array, temperature: float) -> Array:
    """[B]: -log softmax of the cosine to ``near`` against that to ``far``; [B, F].

    Example:
      >>> import jax.numpy as jnp
      >>> h = jnp.array([[1.0, 0.0]])
      >>> float(contrast(h, h, h, 0.5)[0])  # log 2
      0.6931471824645996
    """
    gap = (cosine(h, far) - cosine(h, near)) / temperature
    return jax.nn.softplus(gap)


def cosine(a: Array, b: Array) -> Array:
    """[B], the cosine of the angles between rows of a and b [B, F].

    A row of zeros has no direction: its cosine is 0, without gradient.
    """
    squares = jnp.maximum((a**2).sum(-1), NORM_FLOOR**2)
    others = jnp.maximum((b**2).sum(-1), NORM_FLOOR**2)
    return (a * b).sum(-1) / jnp.sqrt(squares * others)
