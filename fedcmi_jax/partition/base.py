"""What every partitioner returns, and what several of them share."""

from typing import NamedTuple

import numpy as np

from fedcmi_jax.samples import Split


class Partition(NamedTuple):
    """Samples of a split handed out to N clients.

    Attributes:
      order: [n] int64 sample indices, client 0's first; shuffled within each client by
        every partitioner, so that any prefix or suffix of a client is a random subset.
      sizes: [N] int64, number of samples of each client.
    """

    order: np.ndarray
    sizes: np.ndarray

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.sizes)

    def assignment(self, num_samples: int | None = None) -> np.ndarray:
        """Client id of every sample, the table that custom reads.

        Args:
          num_samples: Size of the split; by default the largest index held plus one.

        Returns:
          [num_samples] int64, -1 for a sample that no client holds.
        """
        if num_samples is None:
            num_samples = int(self.order.max(initial=-1)) + 1
        table = np.full(num_samples, -1, np.int64)
        table[self.order] = np.repeat(np.arange(self.num_clients), self.sizes)
        return table


def check_num_clients(split: Split, num_clients: int) -> int:
    """Returns the number of samples n if each client can have one.

    Raises:
      ValueError: num_clients is below one or above n.
    """
    if not 1 <= num_clients <= split.size:
        only = "; 0, as many as there are, is for natural clients"
        raise ValueError(
            f"num_clients={num_clients}: must lie in [1, {split.size}], the number of "
            f"samples{only if num_clients == 0 else ''}"
        )
    return split.size


def check_alpha(alpha: float) -> None:
    """Refuses a concentration that Dir(alpha * 1) does not exist for.

    Raises:
      ValueError: It is not finite or not positive.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha={alpha}: must be finite and > 0; 0.1 is skewed, 1e8 uniform"
        )


def natural_owners(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The natural client of every sample.

    Args:
      split: Samples with ``clients``.

    Returns:
      The ids [J], ascending, and [n] int64 places in them.

    Raises:
      ValueError: The split has no natural clients.

    Example:
      >>> split = Split({}, np.zeros(4, np.int32), np.array([7, 3, 7, 7]))
      >>> [x.tolist() for x in natural_owners(split)]
      [[3, 7], [1, 0, 1, 1]]
    """
    if split.clients is None:
        raise ValueError(
            "partition: this data set has no natural clients; use another partition, "
            "such as dirichlet"
        )
    ids, owners = np.unique(split.clients, return_inverse=True)
    return ids, owners.reshape(-1).astype(np.int64)


def by_client(
    table: np.ndarray, num_clients: int, rng: np.random.Generator | None
) -> Partition:
    """Sorts the samples of a table [n] by client, in random order within each.

    Args:
      table: [n] client ids; a sample of client -1 is left out.
      num_clients: Number of clients N.
      rng: Source of the order within each client; without it samples ascend.

    Returns:
      The partition.
    """
    n = len(table)
    samples = np.arange(n) if rng is None else rng.permutation(n)
    samples = samples[table[samples] >= 0]
    order = samples[np.argsort(table[samples], kind="stable")]
    sizes = np.bincount(table[samples], minlength=num_clients)
    return Partition(order.astype(np.int64), sizes.astype(np.int64))


def draw_dirichlet(alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """[size] float64 probabilities from Dir(alpha * 1), for any finite alpha > 0."""
    with np.errstate(all="ignore"):
        p = rng.dirichlet(np.full(size, alpha))
        total = p.sum()
    if np.isfinite(total) and total > 0:
        return p / total
    # Beyond the range of floats the law is at its limit: one corner, or the centre.
    return np.eye(size)[rng.integers(size)] if alpha < 1 else np.full(size, 1 / size)
