"""Robust aggregation: what may stand in the place of the mean, and the registry."""

from collections.abc import Callable

from fedcmi_jax.aggregators.base import MEAN as MEAN
from fedcmi_jax.aggregators.base import Aggregator as Aggregator
from fedcmi_jax.aggregators.base import bucketed as bucketed
from fedcmi_jax.aggregators.base import check as check
from fedcmi_jax.aggregators.bounds import moved as moved
from fedcmi_jax.aggregators.bounds import norm_bound as norm_bound
from fedcmi_jax.aggregators.coordinates import median as median
from fedcmi_jax.aggregators.coordinates import trimmed_mean as trimmed_mean
from fedcmi_jax.aggregators.distances import geometric_median as geometric_median
from fedcmi_jax.aggregators.distances import krum as krum
from fedcmi_jax.aggregators.distances import multi_krum as multi_krum


def mean() -> Aggregator:
    """The weighted mean over the owners, which one client can move anywhere."""
    return MEAN


REGISTRY: dict[str, Callable[..., Aggregator]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "norm_bound": norm_bound,
}
"""Name -> factory with keyword-only options."""
