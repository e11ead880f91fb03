"""natural: one client per speaker, volunteer, actor or event of the data set."""

import numpy as np

from fedcmi_jax.partition.base import Partition, by_client, natural_owners
from fedcmi_jax.samples import Split


def natural(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
    merge: bool = False,
) -> Partition:
    """One client per natural client of the data set, or per group of them.

    Clients are in the order of their natural ids. With merge the shuffled ids are dealt
    to num_clients groups, as many to each as to any other or one more.

    Args:
      split: Samples to hand out, with their natural clients.
      num_clients: Number of clients N: that of the natural ones, or 0, which says the
        same; with merge any smaller number, too.
      rng: Source of the groups and of the order within a client.
      min_samples: Fewest samples a client may hold; one that holds fewer is an error.
      merge: Put natural clients together where num_clients is below their number.

    Returns:
      The partition.

    Raises:
      ValueError: The split has no natural clients, num_clients does not fit their
        number, or a client is short of min_samples.

    Example:
      >>> split = Split({}, np.zeros(5, np.int32), np.array([9, 4, 9, 9, 4]))
      >>> natural(split, 0, np.random.default_rng(0)).sizes.tolist()
      [2, 3]
    """
    ids, owners = natural_owners(split)
    group_of = np.arange(len(ids))
    if merge and 0 < num_clients < len(ids):
        group_of = rng.permutation(group_of % num_clients)
    elif num_clients not in (0, len(ids)):
        raise ValueError(
            f"num_clients={num_clients}: the data set has {len(ids)} natural clients; "
            f"give {len(ids)}, 0 for all there are, or fewer with merge=True"
        )
    partition = by_client(group_of[owners], group_of.max() + 1, rng)
    short = np.flatnonzero(partition.sizes < min_samples)
    if short.size:
        members = ids[group_of == short[0]].tolist()
        raise ValueError(
            f"min_samples={min_samples}: natural client {', '.join(map(str, members))} "
            f"has {partition.sizes[short[0]]} samples; lower min_samples, or set "
            "merge=True and fewer num_clients"
        )
    return partition
