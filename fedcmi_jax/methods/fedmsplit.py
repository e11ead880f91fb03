"""FedMSplit-style personal models; after Chen and Zhang, KDD 2022; methods 9."""

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._checks import check_not_negative
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate
from fedcmi_jax.types import Array, Model, Params, PyTree

NORM_FLOOR = 1e-12
"""Deviations from the mean shorter than this have no direction."""


def fedmsplit(*, eta: float = 0.5, tau: float = 0.5) -> Method:
    """Every client keeps a model; blocks are mixed along a graph of similar clients.

    After local training from its own theta_i, over the cohort's owners of block b:
      e_ij = cos(theta_{i,b} - mean_b, theta_{j,b} - mean_b)
      a_ij = softmax_j(e_ij / tau)
      theta_{i,b} <- (1 - eta) theta_{i,b} + eta sum_j a_ij theta_{j,b}
    The global model, for the common evaluation, is the cohort's average by samples and
    owners; clients do not receive it.

    The paper's formulas were not to be had and the public code is an unfinished stub
    equal to FedAvg: this is a method in its style, not a reproduction. It has no
    setting that equals FedAvg beyond the first round.

    Args:
      eta: Share of the neighbours' mean, in [0, 1]; 0: everybody on its own.
      tau: Temperature of the graph's weights, > 0.

    Raises:
      ValueError: eta or tau is out of range.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedmsplit(eta=0.3).name
      'fedmsplit'
    """
    check_not_negative(eta=eta)
    if eta > 1:
        raise ValueError(f"eta: {eta} is above 1; it is a share, give 0 to 1")
    if not tau > 0:
        raise ValueError(f"tau: {tau} is not positive; try 0.5")

    def init(
        model: Model, params: Params, num_clients: int
    ) -> tuple[tuple[()], Params]:
        del model, num_clients
        return (), params

    def start(params: Params, memory: Params) -> Params:
        del params
        return memory

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[PyTree, Params]:
        del client, context
        return (), local_update.params

    def merge(cohort: Cohort, upload: PyTree) -> tuple[PyTree, Params]:
        del upload
        owners = jax.vmap(cohort.model.owned)(cohort.participation)
        mixed = jax.tree.map(
            lambda own, block: mix_block(
                jax.tree.map(lambda x: x[cohort.ids], block),
                own * cohort.accepted,
                eta,
                tau,
            ),
            owners,
            cohort.memory,
        )
        return cohort.shared, jax.tree.map(
            lambda x, new: x.at[cohort.ids].set(new), cohort.memory, mixed
        )

    return Method(
        name="fedmsplit",
        init=init,
        start=start,
        finish=finish,
        merge=merge,
    )


def mix_block(
    block: PyTree, owners: Array, eta: float | Array, tau: float | Array
) -> PyTree:
    """theta_i <- (1 - eta) theta_i + eta sum_j a_ij theta_j among a block's owners.

    Args:
      block: Leaves [K, ...], one row per client.
      owners: [K], 1 for clients that have the block.
      eta: Share of the neighbours' mean.
      tau: Temperature.

    Returns:
      The block; rows of other clients as they were.
    """
    rows = [x.reshape(len(owners), -1) for x in jax.tree.leaves(block)]
    vectors = jnp.concatenate(rows, axis=1)
    mean = (owners @ vectors) / jnp.maximum(owners.sum(), 1.0)
    apart = (vectors - mean[None]) * owners[:, None]
    length = jnp.sqrt((apart**2).sum(1, keepdims=True))
    unit = apart / jnp.maximum(length, NORM_FLOOR)
    logits = jnp.where(owners[None] > 0, unit @ unit.T / tau, -jnp.inf)
    weights = jax.nn.softmax(jnp.where(owners.sum() > 0, logits, 0.0), axis=1)

    def mixed(x: Array) -> Array:
        neighbours = jnp.tensordot(weights, x, axes=1)
        keep = owners.reshape(-1, *(1,) * (x.ndim - 1)) > 0
        return jnp.where(keep, (1 - eta) * x + eta * neighbours, x)

    return jax.tree.map(mixed, block)
