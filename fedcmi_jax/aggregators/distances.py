"""By the distances of updates: Krum and the geometric median (methods 19.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedcmi_jax.aggregators.base import (
    LEAST_OWNERS,
    Aggregator,
    at_least,
    bucketed,
    median_of,
    weighted_mean,
)
from fedcmi_jax.types import Array, PyTree


def krum(*, byzantine: int = 1, bucket: int = 1) -> Aggregator:
    """The one update that lies closest to its neighbours (arXiv 1703.02757).

    Args:
      byzantine: f, clients of a cohort that may be anything; a block needs 2 f + 3
        owners.
      bucket: Clients averaged at random before it, s of arXiv 2006.09365; 1: none.

    Raises:
      ValueError: byzantine is negative, or bucket below 1.
    """
    return _krum("krum", byzantine, lambda cohort: 1, bucket)


def multi_krum(
    *, byzantine: int = 1, chosen: int | None = None, bucket: int = 1
) -> Aggregator:
    """The weighted mean of the updates closest to their neighbours (arXiv 1703.02757).

    Args:
      byzantine: f, clients of a cohort that may be anything; a block needs 2 f + 3
        owners.
      chosen: m of a cohort of K, as many less in a block with fewer owners; None:
        K - f.
      bucket: Clients averaged at random before it, s of arXiv 2006.09365; 1: none.

    Raises:
      ValueError: byzantine is negative, chosen or bucket below 1.
    """
    if chosen is not None and chosen < 1:
        raise ValueError(f"chosen: {chosen} is below 1; give at least 1")

    def count(cohort: int) -> int:
        return cohort - byzantine if chosen is None else chosen

    return _krum("multi_krum", byzantine, count, bucket)


def _krum(
    name: str, byzantine: int, chosen: Callable[[int], int], bucket: int
) -> Aggregator:
    if byzantine < 0:
        raise ValueError(f"byzantine: {byzantine} is negative; give 0 or more")
    least = 2 * byzantine + 3

    def combine(block: PyTree, weights: Array) -> PyTree:
        owns, cohort = weights > 0, len(weights)
        distances = squared_distances(block)
        apart = owns[None] & ~jnp.eye(cohort, dtype=bool)
        ordered = jnp.sort(jnp.where(apart, distances, jnp.inf), axis=1)
        near = jnp.arange(cohort) < owns.sum() - byzantine - 2
        scores = jnp.where(near, ordered, 0.0).sum(1)
        # Owners first, also where an update is so far off that its score overflows.
        order = jnp.lexsort((scores, ~owns))
        stay = jnp.maximum(owns.sum() - (cohort - chosen(cohort)), 1)
        stays = jnp.zeros(cohort, bool).at[order].set(jnp.arange(cohort) < stay)
        kept = jnp.where(stays, weights, 0.0)
        return jax.tree.map(lambda x: weighted_mean(x, kept[:, None]), block)

    def check(cohort: int) -> None:
        if cohort < least:
            raise ValueError(
                f"aggregator: {name} with byzantine {byzantine} needs {least} updates, "
                f"a cohort gives {cohort}; raise clients_per_round, or lower byzantine"
            )
        if chosen(cohort) > cohort:
            raise ValueError(
                f"chosen: {chosen(cohort)} is more than the {cohort} updates of a "
                f"cohort; give at most {cohort}"
            )

    return bucketed(bucket, Aggregator(name, combine, lambda _: least, check=check))


def geometric_median(
    *, iterations: int = 8, smoothing: float = 1e-6, bucket: int = 1
) -> Aggregator:
    """The weighted geometric median of a block, RFA (arXiv 1912.13445, Algorithm 2).

    z <- sum_i beta_i x_i / sum_i beta_i with beta_i = p_i / max(nu, ||x_i - z||), from
    the coordinate-wise median on (the paper: from 0), so that the length of an outlier
    costs no iterations. A block needs three owners.

    Args:
      iterations: Of Weiszfeld's algorithm.
      smoothing: nu, the least distance that is divided by.
      bucket: Clients averaged at random before it, s of arXiv 2006.09365; 1: none.

    Raises:
      ValueError: iterations or bucket is below 1, or smoothing not positive.
    """
    if iterations < 1:
        raise ValueError(f"iterations: {iterations} is below 1; try 8")
    if not smoothing > 0:
        raise ValueError(f"smoothing: {smoothing} is not positive; try 1e-6")

    def combine(block: PyTree, weights: Array) -> PyTree:
        def step(_: int, z: PyTree) -> PyTree:
            gaps = jax.tree.map(lambda x, z: ((x - z[None]) ** 2).sum(1), block, z)
            distances = jnp.sqrt(sum(jax.tree.leaves(gaps)))
            beta = weights / jnp.maximum(distances, smoothing)
            return jax.tree.map(lambda x: weighted_mean(x, beta[:, None]), block)

        start = jax.tree.map(lambda x: median_of(x, weights > 0), block)
        return jax.lax.fori_loop(0, iterations, step, start)

    return bucketed(bucket, at_least("geometric_median", combine, LEAST_OWNERS))


def squared_distances(block: PyTree) -> Array:
    """[n, n] between the clients of a block, a row at a time.

    Differences and no expanded square, which cancels where updates are alike.
    """
    leaves = jax.tree.leaves(block)

    def row(i: Array) -> Array:
        return sum(((x - x[i][None]) ** 2).sum(1) for x in leaves)

    return jax.lax.map(row, jnp.arange(len(leaves[0])))
