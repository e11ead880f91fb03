"""quantity_skew: clients of very different sizes, all alike but for that."""

import numpy as np

from fedcmi_jax.partition.base import (
    Partition,
    check_alpha,
    check_num_clients,
    draw_dirichlet,
)
from fedcmi_jax.samples import Split


def quantity_skew(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_samples: int = 1,
) -> Partition:
    """Sizes from a Dirichlet draw; every client's samples are a random subset.

    Each client gets min_samples. Of the s samples left, client i gets those from
    ``trunc(s cumsum(p)_{i-1})`` to ``trunc(s cumsum(p)_i)``, ``p ~ Dir(alpha * 1_N)``.

    Args:
      split: Samples to hand out.
      num_clients: Number of clients N.
      rng: Source of all draws.
      alpha: Concentration, > 0; small is uneven (the source's: 0.5).
      min_samples: Fewest samples of a client; 0 allows empty ones.

    Returns:
      The partition.

    Raises:
      ValueError: An option is out of range, or num_clients is below one or above the
        number of samples.

    Source:
      Quantity skew of Li et al., arXiv 2102.02079. It draws again until every client
      has enough; setting them aside first needs one draw.

    Example:
      >>> split = Split({}, np.zeros(100, np.int32))
      >>> part = quantity_skew(split, 4, np.random.default_rng(0), min_samples=10)
      >>> int(part.sizes.sum()), bool(part.sizes.min() >= 10)
      (100, True)
    """
    n = check_num_clients(split, num_clients)
    check_alpha(alpha)
    if not 0 <= min_samples <= n // num_clients:
        raise ValueError(
            f"min_samples={min_samples}: must lie in [0, {n // num_clients}] for "
            f"{num_clients} clients and {n} samples"
        )
    spare = n - num_clients * min_samples
    shares = draw_dirichlet(alpha, num_clients, rng)
    cuts = np.trunc(spare * np.cumsum(shares)).astype(np.int64)
    cuts[-1] = spare
    return Partition(rng.permutation(n), min_samples + np.diff(cuts, prepend=0))
