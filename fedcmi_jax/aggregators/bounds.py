"""By their norms, which needs no stack (methods 19.2)."""

import jax.numpy as jnp
import numpy as np

from fedcmi_jax.aggregators.base import Aggregator, Bound
from fedcmi_jax.types import Array


def norm_bound(
    *, initial: float = 1.0, quantile: float = 0.5, rate: float = 0.2
) -> Aggregator:
    """The mean of updates clipped to a followed quantile of norms (arXiv 1905.03871).

    C <- C exp(-eta_C (b - gamma)), b the share of the round's clients with a norm of at
    most C; parameters, statistics and uploads each have a C of their own. Streams.

    Args:
      initial: C of the first round; infinity: never clips.
      quantile: gamma.
      rate: eta_C (the paper: 0.2).

    Raises:
      ValueError: initial or rate is not positive, or quantile outside (0, 1).
    """
    if not initial > 0:
        raise ValueError(f"initial: {initial} is not positive; try 1")
    if not (rate > 0 and np.isfinite(rate)):
        raise ValueError(f"rate: {rate} is not positive; try 0.2")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: {quantile} is outside (0, 1); try 0.5")
    return Aggregator("norm_bound", bound=Bound(initial, quantile, rate))


def moved(bound: Bound, bounds: Array, norms: Array, accepted: Array) -> Array:
    """The bounds after a round; one that nobody's norm speaks for stays.

    Args:
      bound: How they move.
      bounds: [3], of parameters, statistics, uploads.
      norms: [K, 3].
      accepted: [K] bool.

    Example:
      >>> norms = jnp.array([[0.5, 0.0, 9.0], [2.0, 0.0, 9.0]])
      >>> bounds = moved(Bound(1.0, 0.5, 0.2), jnp.ones(3), norms, jnp.ones(2, bool))
      >>> bounds.round(2).tolist() == jnp.array([1.0, 1.0, 1.11]).tolist()
      True
    """
    counts = accepted[:, None] & (norms > 0)
    total = counts.sum(0)
    share = (counts & (norms <= bounds[None])).sum(0) / jnp.maximum(total, 1)
    step = jnp.where(total > 0, bound.rate * (share - bound.quantile), 0.0)
    return bounds * jnp.exp(-step)
