"""Coordinate by coordinate: median and trimmed mean (methods 19.2)."""

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.aggregators.base import (
    LEAST_OWNERS,
    Aggregator,
    at_least,
    bucketed,
    median_of,
    weighted_mean,
)
from fedcmi_jax.types import Array, PyTree


def median(*, bucket: int = 1) -> Aggregator:
    """Coordinate-wise median of the owners, unweighted (arXiv 1803.01498).

    A block needs three owners.

    Args:
      bucket: Clients averaged at random before it, s of arXiv 2006.09365; 1: none.

    Raises:
      ValueError: bucket is below 1.
    """

    def combine(block: PyTree, weights: Array) -> PyTree:
        return jax.tree.map(lambda x: median_of(x, weights > 0), block)

    return bucketed(bucket, at_least("median", combine, LEAST_OWNERS))


def trimmed_mean(*, fraction: float = 0.2, bucket: int = 1) -> Aggregator:
    """Coordinate-wise mean without the ends (arXiv 1803.01498).

    Of every coordinate, b = ceil(fraction K) values at either end are left out,
    whatever their weight; the mean of the rest is weighted. A block needs 2 b + 1
    owners.

    Args:
      fraction: Share of the cohort that is left out at either end; 0: the mean.
      bucket: Clients averaged at random before it, s of arXiv 2006.09365; 1: none.

    Raises:
      ValueError: fraction is outside [0, 0.5), or bucket below 1.
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction: {fraction} is outside [0, 0.5); try 0.2")

    def trimmed(cohort: int) -> int:
        # Not up for what a product's rounding adds: 3 of 0.1 x 30.
        return int(np.ceil(round(fraction * cohort, 9)))

    def combine(block: PyTree, weights: Array) -> PyTree:
        ends = trimmed(len(weights))

        def one(x: Array) -> Array:
            values = jnp.where((weights > 0)[:, None], x, jnp.inf)
            order = jnp.argsort(values, axis=0)
            places = jnp.arange(len(x))[:, None]
            stays = (places >= ends) & (places < (weights > 0).sum() - ends)
            return weighted_mean(
                jnp.take_along_axis(x, order, axis=0),
                jnp.where(stays, weights[order], 0.0),
            )

        return jax.tree.map(one, block)

    def least(cohort: int) -> int:
        return 2 * trimmed(cohort) + 1

    def check(cohort: int) -> None:
        if least(cohort) > cohort:
            raise ValueError(
                f"aggregator: trimmed_mean with fraction {fraction} leaves nothing of "
                f"{cohort} updates; lower fraction, or raise clients_per_round"
            )

    named = Aggregator("trimmed_mean", combine, least, check=check)
    return bucketed(bucket, named)
