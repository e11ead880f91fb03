"""iid: every client's samples are a random subset."""

import numpy as np

from fedcmi_jax.partition.base import Partition, check_num_clients
from fedcmi_jax.samples import Split


def iid(split: Split, num_clients: int, rng: np.random.Generator) -> Partition:
    """Deals the shuffled samples out evenly; sizes differ by at most one.

    Args:
      split: Samples to hand out.
      num_clients: Number of clients N.
      rng: Source of the shuffle.

    Returns:
      The partition; the first n mod N clients hold one sample more.

    Raises:
      ValueError: num_clients is below one or above the number of samples.

    Example:
      >>> split = Split({}, np.zeros(7, np.int32))
      >>> iid(split, 3, np.random.default_rng(0)).sizes.tolist()
      [3, 2, 2]
    """
    n = check_num_clients(split, num_clients)
    sizes = n // num_clients + (np.arange(num_clients) < n % num_clients)
    return Partition(rng.permutation(n), sizes.astype(np.int64))
