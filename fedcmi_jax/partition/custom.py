"""custom: any table of client ids."""

import numpy as np

from fedcmi_jax.partition.base import Partition, by_client


def custom(
    assignment: np.ndarray,
    num_clients: int,
    *,
    rng: np.random.Generator | None = None,
    allow_empty: bool = False,
) -> Partition:
    """Partition from any table of client ids.

    Args:
      assignment: [n] integers in [0, N), the client of every sample.
      num_clients: Number of clients N.
      rng: Shuffles the samples within each client; without it they ascend.
      allow_empty: Accept clients without samples.

    Returns:
      The partition.

    Raises:
      ValueError: assignment is not a non-empty vector of integers, an id is out of
        range, a client has no samples, or num_clients is below one.

    Example:
      >>> custom(np.array([1, 0, 1]), 2).order.tolist()
      [1, 0, 2]
    """
    if num_clients < 1:
        raise ValueError(f"num_clients={num_clients}: must be at least 1")
    table = np.asarray(assignment)
    if table.ndim != 1 or table.size == 0 or table.dtype.kind not in "iu":
        raise ValueError(
            f"assignment: {table.dtype} of shape {table.shape}; must be one integer "
            "client id per sample"
        )
    bad = np.flatnonzero((table < 0) | (table >= num_clients))
    if bad.size:
        raise ValueError(
            f"assignment[{bad[0]}]={table[bad[0]]}: client ids must lie in "
            f"[0, {num_clients}); fix the id or num_clients"
        )
    partition = by_client(table.astype(np.int64), num_clients, rng)
    if not allow_empty and not partition.sizes.all():
        raise ValueError(
            f"assignment: client {np.flatnonzero(partition.sizes == 0)[0]} has no "
            "samples; renumber the clients or set allow_empty=True"
        )
    return partition
