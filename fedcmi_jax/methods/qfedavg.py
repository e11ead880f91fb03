"""q-FedAvg: Li et al., ICLR 2020, arXiv 1905.10497; methods 16."""

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import by_block
from fedcmi_jax.methods._blocks import block_sums
from fedcmi_jax.methods._checks import check_not_negative
from fedcmi_jax.methods._samples import mean_loss, uniform
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate
from fedcmi_jax.types import Array, Params, PyTree, Sum, Sums

SUM_FLOOR = 1e-30
"""Sums of h_i are clamped to at least this; they are 0 where nobody owns a block."""

LOSS_FLOOR = 1e-10
"""F_i is clamped to at least this before it is raised to q - 1 (public code)."""


def qfedavg(*, q: float = 1.0, lipschitz: float | None = None) -> Method:
    """Clients of greater loss weigh more, so that accuracies are more alike.

    F_i is the mean cross-entropy of client i's training samples under w_G in eval mode.
      h_i = q F_i^(q-1) ||L (w_i - w_G)||^2 + L F_i^q
      w_G <- w_G + sum_i F_i^q L (w_i - w_G) / sum_i h_i
    per block over its owners in the cohort; the norm is over all the client's blocks.
    Clients do not count by their samples, as in the paper. BatchNorm statistics are
    averaged by F_i^q.

    Args:
      q: How much fairer, >= 0; 0 is the cohort's unweighted mean.
      lipschitz: L; None: 1 / learning rate, as in the paper.

    Raises:
      ValueError: q is negative, or lipschitz is not positive.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.qfedavg(q=0.5).name
      'qfedavg'
    """
    check_not_negative(q=q)
    if lipschitz is not None and not lipschitz > 0:
        raise ValueError(f"lipschitz: {lipschitz} is not positive; leave it out")

    def begin(client: Client, key: Array) -> tuple[Array, Sums]:
        del key
        return jnp.maximum(mean_loss(client), LOSS_FLOOR), {}

    def weight(client: Client, loss: Array) -> Array:
        return loss**q * uniform(client, loss)

    def finish(
        client: Client, local_update: LocalUpdate, loss: Array
    ) -> tuple[Params, PyTree]:
        scale = lipschitz or 1.0 / client.learning_rate
        gaps = jax.tree.map(jnp.subtract, local_update.params, client.params)
        square = sum((x**2).sum() for x in jax.tree.leaves(gaps))
        h = q * loss ** (q - 1) * scale**2 * square + scale * loss**q
        pair = jnp.stack([scale * loss**q, h]) * uniform(client, loss)
        return block_sums(client, pair), client.memory

    def server_update(
        cohort: Cohort, mean_delta: Params, upload: Params
    ) -> tuple[Params, PyTree]:
        # mean_delta is by F_i^q: times sum_i L F_i^q it is the numerator.
        def step(sent: Sum, w: Array, delta: Array) -> Array:
            top, bottom = sent.value
            return w + delta * (top / jnp.maximum(bottom, SUM_FLOOR))

        return by_block(step, upload, cohort.params, mean_delta), cohort.shared

    return Method(
        name="qfedavg",
        begin=begin,
        finish=finish,
        weight=weight,
        server_update=server_update,
    )
