"""shards: the label skew of the first paper on federated averaging."""

import numpy as np

from fedcmi_jax.partition.base import Partition, by_client, check_num_clients
from fedcmi_jax.samples import Split


def shards(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    shards_per_client: int = 2,
) -> Partition:
    """Cuts the samples, sorted by label, into equal shards; each client draws some.

    Most clients see shards_per_client classes, fewer where two of their shards are of
    one class, more where a shard straddles a boundary of classes. Sizes of shards
    differ by at most one sample.

    Args:
      split: Samples to hand out.
      num_clients: Number of clients N.
      rng: Source of the order within a class and of the draw of shards.
      shards_per_client: Shards of each client (the source's: 2).

    Returns:
      The partition.

    Raises:
      ValueError: num_clients is below one or above the number of samples, or there are
        fewer samples than shards.

    Source:
      McMahan et al., arXiv 1602.05629, section 3: MNIST in 200 shards of 300, 100
      clients.

    Example:
      >>> split = Split({}, np.repeat(np.arange(4), 6))
      >>> part = shards(split, 2, np.random.default_rng(0))
      >>> part.sizes.tolist()
      [12, 12]
    """
    n = check_num_clients(split, num_clients)
    count = num_clients * shards_per_client
    if not 1 <= shards_per_client <= n // num_clients:
        raise ValueError(
            f"shards_per_client={shards_per_client}: must lie in "
            f"[1, {n // num_clients}] for {num_clients} clients and {n} samples"
        )
    shuffled = rng.permutation(n)
    by_label = shuffled[np.argsort(split.labels[shuffled], kind="stable")]
    owners = rng.permutation(np.arange(count) % num_clients)
    table = np.empty(n, np.int64)
    table[by_label] = owners[np.arange(n) * count // n]
    return by_client(table, num_clients, rng)
