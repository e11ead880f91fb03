"""The updates of a cohort side by side, made one by a robust aggregator (methods 19.2).

Every client's arrays come as vectors, so leaves are [K, p]; on a mesh each device has a
part of every vector.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedcmi_jax.aggregate import Sent, Total, UpdateSums
from fedcmi_jax.aggregators.base import Aggregator, in_buckets, weighted_mean
from fedcmi_jax.blocks import scale_blocks, statistics_weights
from fedcmi_jax.types import Array, Mean, PyTree, Sum
from fedcmi_jax.uploads import map_uploads


def as_vectors(sent: Sent) -> Sent:
    """What a client sends with every array as a vector; numbers stay numbers."""

    def flat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.ravel(x), tree)

    return sent._replace(
        delta=flat(sent.delta), stats=flat(sent.stats), upload=flat(sent.upload)
    )


def stacked_total(
    aggregator: Aggregator, key: Array, sent: Sent, accepted: Array, sums: UpdateSums
) -> Total:
    """A cohort's updates as one.

    Args:
      aggregator: Its ``combine``; without one the weighted mean.
      key: Deals clients to buckets.
      sent: ``as_vectors`` of every client, leaves [K, ...].
      accepted: [K] bool.
      sums: Whose shapes the result has.

    Returns:
      The total: parameters and statistics block by block over their accepted owners,
      ``Mean`` leaves of uploads likewise over the clients with a weight, and ``Sum``
      leaves as the number of clients that add to an element times what stands in the
      place of their mean.
    """
    combine = combined(aggregator, key, len(accepted))

    def one(weights: Array, block: PyTree) -> PyTree:
        return combine(weights, block)[0]

    def total(weights: Array) -> Array:
        return jnp.where(combine(weights, ())[1], weights.sum(), 0.0)

    def is_kept(weights: Array) -> Array:
        return (weights > 0).any() & ~combine(weights, ())[1]

    weights = jax.vmap(scale_blocks)(sent.weight, sent.owned)
    weights = jax.tree.map(lambda w: jnp.where(accepted, w, 0.0), weights)
    of_stats = statistics_weights(weights, sent.stats)
    kept = [is_kept(w) for w in jax.tree.leaves(weights)]

    def averaged(leaf: Mean, like: Mean) -> Mean:
        w = jnp.where(accepted[:, None], _columns(leaf.weight), 0.0)
        value, enough = _by_column(combine, w, leaf.value)
        return _shaped(Mean(value, jnp.where(enough, w.sum(0), 0.0)), like)

    def added(leaf: Sum, like: Sum) -> Sum:
        def one(x: Array) -> Array:
            adds = (accepted[:, None] & (x != 0)).astype(jnp.float32)
            mean, _ = _by_column(combine, adds, x.astype(jnp.float32))
            return adds.sum(0)[:, None] * mean

        return _shaped(Sum(jax.tree.map(one, leaf.value)), like)

    return Total(
        delta=_shaped(jax.tree.map(one, weights, sent.delta), sums.deltas),
        weights=jax.tree.map(total, weights),
        stats=_shaped(jax.tree.map(one, of_stats, sent.stats), sums.stats),
        upload=map_uploads(sent.upload, averaged, added, sums.upload),
        blocks_kept=jnp.asarray(sum(kept), jnp.int32),
    )


Combined = Callable[[Array, PyTree], tuple[PyTree, Array]]
"""``(weights [K], block) -> (block without the axis, whether owners were enough)``; 0
where they were not."""


def combined(aggregator: Aggregator, key: Array, cohort: int) -> Combined:
    """An aggregator with its buckets and the number of owners that it needs."""
    size = aggregator.bucket
    order = jax.random.permutation(key, cohort)
    least = aggregator.least_owners(-(-cohort // size))

    def combine(weights: Array, block: PyTree) -> tuple[PyTree, Array]:
        # What a rejected client sent may be no number, and 0 times it is none.
        owns = (weights > 0)[:, None]
        block = jax.tree.map(lambda x: jnp.where(owns, x, 0.0), block)
        block, weights = in_buckets(size, order, block, weights)
        enough = (weights > 0).sum() >= least
        if not jax.tree.leaves(block):
            return block, enough
        if aggregator.combine is None:
            found = jax.tree.map(lambda x: weighted_mean(x, weights[:, None]), block)
        else:
            found = aggregator.combine(block, weights)
        return jax.tree.map(lambda x: jnp.where(enough, x, 0.0), found), enough

    return combine


def _by_column(
    combine: Combined, weights: Array, values: PyTree
) -> tuple[PyTree, Array]:
    """Each column [K] of weights [K, W] with its part of values [K, W r] is a block."""
    blocks = jax.tree.map(lambda x: x.reshape(len(x), weights.shape[1], -1), values)
    return jax.vmap(combine, in_axes=1)(weights, blocks)


def _columns(weight: Array) -> Array:
    return weight.reshape(len(weight), -1)


def _shaped(tree: PyTree, like: PyTree) -> Any:
    """Vectors as the arrays that they were made of."""
    return jax.tree.map(lambda x, y: x.reshape(y.shape).astype(y.dtype), tree, like)
