"""What a robust aggregator is: a record, and what all of them share (methods 19.2).

One that needs all updates at once gets them as a stack [K, ...], block by block; one
that bounds norms streams, as the mean does. Only ``clients.py`` knows how a stack came
about.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, PyTree

Combine = Callable[[PyTree, Array], PyTree]
"""``(block, weights [n]) -> block without the axis``: leaves [n, p] -> [p]; a client of
weight 0 is none of the block's owners."""

LEAST_OWNERS = 3
"""Of a median: two cannot tell which of them is wrong."""

LEAST_WEIGHT = 1e-30
"""Divided by where all weights are 0."""


class Bound(NamedTuple):
    """Norms clipped to a quantile that is followed from round to round.

    Attributes:
      initial: The first round's bound.
      quantile: Share of the clients whose norm the bound should reach.
      rate: eta_C of its geometric steps.
    """

    initial: float
    quantile: float
    rate: float


class Aggregator(NamedTuple):
    """How many updates become one; the default is the weighted mean.

    Attributes:
      name: Registry name.
      combine: Of one block's stack, or None: sums that stream.
      least_owners: ``K -> owners`` that ``combine`` needs of a cohort of K; a block
        with fewer keeps its value.
      bound: Norms are clipped to it before the mean, or None.
      bucket: s: ``combine`` gets the means of s clients at a time; K is then ceil(K/s).
      check: ``K -> None``, raises ``ValueError`` where it cannot work.
    """

    name: str = "mean"
    combine: Combine | None = None
    least_owners: Callable[[int], int] = lambda cohort: 1
    bound: Bound | None = None
    bucket: int = 1
    check: Callable[[int], None] = lambda cohort: None


MEAN = Aggregator()
"""The record of defaults."""


def bucketed(size: int, aggregator: Aggregator) -> Aggregator:
    """The same aggregator of the means of ``size`` clients each (arXiv 2006.09365).

    Raises:
      ValueError: size is below 1.

    Example:
      >>> bucketed(2, MEAN).bucket
      2
    """
    if size < 1:
        raise ValueError(f"bucket: {size} is below 1; give 1 for none")
    return aggregator._replace(bucket=size)


def at_least(name: str, combine: Combine, least: int) -> Aggregator:
    """An aggregator of blocks with at least so many owners."""

    def check(cohort: int) -> None:
        if cohort < least:
            raise ValueError(
                f"aggregator: {name} needs {least} updates, a cohort gives {cohort}; "
                "raise clients_per_round, or lower bucket"
            )

    return Aggregator(name, combine, lambda _: least, check=check)


def check(aggregator: Aggregator, cohort: int) -> None:
    """Refuses a cohort of K clients that the aggregator cannot work with.

    Raises:
      ValueError: Names the aggregator, the number of updates, and the remedy.

    Example:
      >>> from fedcmi_jax.aggregators import krum
      >>> check(krum(byzantine=2), 5)
      Traceback (most recent call last):
      ValueError: aggregator: krum with byzantine 2 needs 7 updates, ...
    """
    aggregator.check(-(-cohort // aggregator.bucket))


def in_buckets(size: int, order: Array, block: PyTree, weights: Array):
    """Weighted means of ``size`` clients at a time.

    Args:
      size: s.
      order: [K] int32, the clients in the order in which they fill the buckets.
      block: Leaves [K, p].
      weights: [K], 0 for clients that do not own the block.

    Returns:
      Leaves [ceil(K/s), p] and weights [ceil(K/s)].
    """
    if size == 1:
        return block, weights
    padding = -len(weights) % size

    def filled(x: Array) -> Array:
        x = jnp.pad(x[order], [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    shares = filled(weights)
    mean_of = jax.vmap(lambda x, w: weighted_mean(x, w[:, None]))
    return jax.tree.map(lambda x: mean_of(filled(x), shares), block), shares.sum(1)


def median_of(x: Array, owns: Array) -> Array:
    """[p] of the rows [n, p] that count."""
    ordered = jnp.sort(jnp.where(owns[:, None], x, jnp.inf), axis=0)
    count = owns.sum()
    low, high = jnp.maximum(count - 1, 0) // 2, jnp.minimum(count // 2, len(x) - 1)
    return 0.5 * ordered[low] + 0.5 * ordered[high]


def weighted_mean(x: Array, weights: Array) -> Array:
    """[p] weighted mean of rows [n, p]; weights [n, 1] or [n, p]; 0 without any."""
    shares = weights / jnp.maximum(weights.sum(0, keepdims=True), LEAST_WEIGHT)
    return jnp.where(shares > 0, shares * x, 0.0).sum(0)
