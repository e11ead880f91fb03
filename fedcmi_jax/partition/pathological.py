"""pathological: every client has samples of a few classes only."""

import numpy as np

from fedcmi_jax.partition.base import Partition, by_client, check_num_clients
from fedcmi_jax.samples import Split


def pathological(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    classes_per_client: int = 2,
) -> Partition:
    """Label skew at its hardest: k classes per client, and no sample left over.

    One client after the other takes the k classes with the most samples per owner, were
    it to share in them; classes that nobody has yet come first, and ties are drawn. So
    a class has owners in proportion to its size. Its samples are then dealt out evenly
    among them.

    Args:
      split: Samples to hand out.
      num_clients: Number of clients N.
      rng: Source of all draws.
      classes_per_client: Number k of classes of each client; exact.

    Returns:
      The partition.

    Raises:
      ValueError: num_clients is below one or above the number of samples, there are
        fewer classes than k, N k is below their number, so that a class would have no
        owner, or rare classes have too few samples.

    Source:
      The idea of McMahan et al., arXiv 1602.05629, section 3 (see ``shards``), with the
      number of classes made exact, as is usual since (#C=k of Li et al., arXiv
      2102.02079).

    Example:
      >>> split = Split({}, np.arange(100) % 4)
      >>> part = pathological(split, 4, np.random.default_rng(0), classes_per_client=1)
      >>> [len(set(split.labels[part.assignment() == i])) for i in range(4)]
      [1, 1, 1, 1]
    """
    check_num_clients(split, num_clients)
    classes, class_counts = np.unique(split.labels, return_counts=True)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(
            f"classes_per_client={classes_per_client}: must lie in [1, {len(classes)}],"
            " the number of classes"
        )
    if num_clients * classes_per_client < len(classes):
        raise ValueError(
            f"classes_per_client={classes_per_client}: {num_clients} clients cannot "
            f"hold {len(classes)} classes; give at least "
            f"{-(-len(classes) // num_clients)}"
        )
    owns = _deal_classes(class_counts, num_clients, classes_per_client, rng)
    table = np.empty(split.size, np.int64)
    for column, k in enumerate(classes):
        owners = rng.permutation(np.flatnonzero(owns[:, column]))
        samples = rng.permutation(np.flatnonzero(split.labels == k))
        table[samples] = owners[np.arange(len(samples)) % len(owners)]
    return by_client(table, num_clients, rng)


def _deal_classes(
    class_counts: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[N, C] bool, who owns which class; a class has no more owners than samples."""
    owns = np.zeros((num_clients, len(class_counts)), bool)
    owners = np.zeros(len(class_counts), np.int64)
    for client in range(num_clients):
        share = class_counts / (owners + 1)
        ties = rng.random(len(class_counts))
        chosen = np.lexsort((ties, -share, owners > 0))[:classes_per_client]
        if share[chosen].min() < 1:
            raise ValueError(
                f"classes_per_client={classes_per_client}: too few samples of rare "
                f"classes for {num_clients} clients; lower it or num_clients"
            )
        owns[client, chosen] = True
        owners[chosen] += 1
    return owns
