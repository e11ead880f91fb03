"""Which sample belongs to which client, and which modalities a client has.

Partitioners share one signature, ``name(split, num_clients, rng, *, options)``, and sit
in REGISTRY. All draws come from the NumPy generator that they are given.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.base import Split

MAX_RETRIES = 100
"""Resamplings before dirichlet gives up; a failing setting nearly always fails."""


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
    n = _check_num_clients(split, num_clients)
    sizes = n // num_clients + (np.arange(num_clients) < n % num_clients)
    return Partition(rng.permutation(n), sizes.astype(np.int64))


def dirichlet(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.3,
    min_samples: int = 1,
    max_retries: int = MAX_RETRIES,
    cap: float = 1.1,
    legacy_truncate: bool = False,
    top_up: bool = False,
) -> Partition:
    """Label skew: each class is cut up by its own Dirichlet draw, with a size cap.

    For classes k in order: ``p ~ Dir(alpha * 1_N)``, ``p_i = 0`` where client i already
    holds ``cap * n / N`` samples or more, ``p <- p / sum(p)``; client i takes the
    shuffled class-k samples from ``trunc(n_k cumsum(p)_{i-1})`` to
    ``trunc(n_k cumsum(p)_i)``. The cap is tested before a class is dealt, so a client
    can exceed it by one class's share. The whole partition is drawn again until every
    client has min_samples.

    Args:
      split: Samples to hand out.
      num_clients: Number of clients N.
      rng: Source of all draws.
      alpha: Concentration, > 0; small is skewed (authors: 3, and 1e8 for uniform).
      min_samples: Fewest samples a client may hold; 0 allows empty ones (authors: 0).
      max_retries: Resamplings in search of min_samples (authors: 0).
      cap: Size at which a client gets no more, in units of n / N (authors: 1.1).
      legacy_truncate: Lose last samples of classes as the authors' code does.
      top_up: If no draw reaches min_samples, move random samples to the short clients.

    Returns:
      The partition. With legacy_truncate samples may be missing: order is then shorter.

    Raises:
      ValueError: An option is out of range, num_clients is below one or above the
        number of samples, or no draw reached min_samples (and top_up is off).

    Source:
      Partition code of the FedCMI authors' repository. Two deviations: its last cut is
      ``trunc(n_k * 0.99..)`` in about a quarter of the draws, which loses a sample, so
      here the last cut is n_k; and it accepts empty clients.

    Example:
      >>> split = Split({}, np.repeat(np.arange(10), 50))
      >>> part = dirichlet(split, 5, np.random.default_rng(0), alpha=0.1)
      >>> int(part.sizes.sum()), bool(part.sizes.min() >= 1)
      (500, True)
    """
    n = _check_num_clients(split, num_clients)
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha={alpha}: must be finite and > 0; 0.1 is skewed, 1e8 uniform"
        )
    if not cap >= 1:
        raise ValueError(f"cap={cap}: must be at least 1, or inf for no cap")
    if max_retries < 0:
        raise ValueError(f"max_retries={max_retries}: must be at least 0")
    if min_samples < 0 or min_samples * num_clients > n:
        raise ValueError(
            f"min_samples={min_samples}: must lie in [0, {n // num_clients}] for "
            f"{num_clients} clients and {n} samples"
        )
    if top_up and legacy_truncate:
        raise ValueError("top_up=True: undoes legacy_truncate=True; choose one")

    class_counts = np.bincount(split.labels)
    full = cap * n / num_clients

    def draw() -> np.ndarray:
        return _dirichlet_counts(
            class_counts, num_clients, rng, alpha, full, legacy_truncate
        )

    counts = draw()
    for _ in range(max_retries):
        if counts.sum(axis=1).min() >= min_samples:
            break
        counts = draw()
    enough = counts.sum(axis=1).min() >= min_samples
    if not (enough or top_up):
        raise ValueError(
            f"alpha={alpha}: none of {1 + max_retries} draws gave each of "
            f"num_clients={num_clients} clients min_samples={min_samples} samples; "
            "raise alpha, lower num_clients or min_samples, or set top_up=True"
        )

    table = np.full(n, -1, np.int64)
    for k in np.flatnonzero(class_counts):
        owners = np.repeat(np.arange(num_clients), counts[:, k])
        samples = rng.permutation(np.flatnonzero(split.labels == k))
        table[samples[: len(owners)]] = owners
    partition = _by_client(table, num_clients, rng)
    return partition if enough else _top_up(partition, min_samples, rng)


REGISTRY: dict[str, Callable[..., Partition]] = {"iid": iid, "dirichlet": dirichlet}
"""Name -> partitioner."""


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
    partition = _by_client(table.astype(np.int64), num_clients, rng)
    if not allow_empty and not partition.sizes.all():
        raise ValueError(
            f"assignment: client {np.flatnonzero(partition.sizes == 0)[0]} has no "
            "samples; renumber the clients or set allow_empty=True"
        )
    return partition


def allocate_modalities(
    num_clients: int,
    num_modalities: int,
    rng: np.random.Generator,
    *,
    multi_ratio: float = 0.5,
) -> np.ndarray:
    """Draws which clients have every modality, and which one the others have.

    ``int(multi_ratio * N)`` clients, drawn without replacement, have all modalities.
    The U others have one each: in drawn order floor(U / M) of them modality 0, as many
    modality 1 and so on; of the remainder the last modalities get one client more.
    For M = 2 this is the authors' floor(U / 2) and the rest.

    Args:
      num_clients: Number of clients N.
      num_modalities: Number of modalities M.
      rng: Source of the draw.
      multi_ratio: Share rho of clients with all modalities, in [0, 1] (authors: 0.5).

    Returns:
      [N, M] bool, True where the client has the modality.

    Raises:
      ValueError: A count is below one or multi_ratio is outside [0, 1].

    Example:
      >>> table = allocate_modalities(9, 2, np.random.default_rng(0), multi_ratio=0.5)
      >>> table.sum(axis=0).tolist()  # 4 with both, 2 with the first, 3 with the second
      [6, 7]
    """
    if num_clients < 1:
        raise ValueError(f"num_clients={num_clients}: must be at least 1")
    if num_modalities < 1:
        raise ValueError(f"num_modalities={num_modalities}: must be at least 1")
    if not 0 <= multi_ratio <= 1:
        raise ValueError(
            f"multi_ratio={multi_ratio}: must lie in [0, 1]; 1 gives every client all "
            "modalities"
        )
    num_multi = int(multi_ratio * num_clients)
    share, rest = divmod(num_clients - num_multi, num_modalities)
    modalities = np.arange(num_modalities)
    repeats = share + (modalities >= num_modalities - rest)
    drawn = rng.permutation(num_clients)
    available = np.zeros((num_clients, num_modalities), bool)
    available[drawn[:num_multi]] = True
    available[drawn[num_multi:], np.repeat(modalities, repeats)] = True
    return available


def drop_modalities(
    partition: Partition,
    available: np.ndarray,
    rng: np.random.Generator,
    *,
    fraction: float,
) -> np.ndarray:
    """Per-sample missing modalities: who of the samples lacks one, and which.

    Of the samples of clients with several modalities, round(fraction * n) lack one of
    their client's modalities, drawn uniformly; a sample keeps at least one.

    Args:
      partition: Which sample belongs to which client.
      available: [N, M] table of who has what.
      rng: Source of the draws.
      fraction: Share of samples, in [0, 1].

    Returns:
      [n, M] bool in the data set's order, for ``Split.available``.

    Raises:
      ValueError: fraction is outside [0, 1].

    Example:
      >>> parts = Partition(np.arange(4), np.array([2, 2]))
      >>> has = np.array([[1, 1], [1, 0]], bool)
      >>> rng = np.random.default_rng(0)
      >>> drop_modalities(parts, has, rng, fraction=1.0).sum(axis=1).tolist()
      [1, 1, 2, 2]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"missing_fraction: {fraction} is outside [0, 1]; give the share of "
            "samples that lack a modality"
        )
    owner = np.repeat(np.arange(len(partition.sizes)), partition.sizes)
    has = np.asarray(available, bool)[owner]
    several = np.flatnonzero(has.sum(axis=1) >= 2)
    chosen = rng.permutation(several)[: round(fraction * len(several))]
    draws = np.where(has[chosen], rng.random((len(chosen), has.shape[1])), -1.0)
    present = np.ones((len(owner), has.shape[1]), bool)
    present[partition.order[chosen], draws.argmax(axis=1)] = False
    return present


def check_available(
    available: np.ndarray, num_clients: int, num_modalities: int
) -> np.ndarray:
    """Returns a table of the clients' modalities as bool if it is sound.

    Args:
      available: [N, M] bool, or numbers 0 and 1.
      num_clients: Number of clients N.
      num_modalities: Number of modalities M.

    Returns:
      [N, M] bool.

    Raises:
      ValueError: The shape is wrong, an entry is neither 0 nor 1, or a client has no
        modality.

    Example:
      >>> check_available(np.array([[1, 0], [1, 1]]), 2, 2).tolist()
      [[True, False], [True, True]]
    """
    table = np.asarray(available)
    if table.shape != (num_clients, num_modalities):
        raise ValueError(
            f"available: shape {table.shape}; must be (clients, modalities) = "
            f"({num_clients}, {num_modalities})"
        )
    bad = np.argwhere((table != 0) & (table != 1))
    if len(bad):
        i, m = bad[0]
        raise ValueError(f"available[{i}, {m}]={table[i, m]}: must be 0 or 1")
    table = table.astype(bool)
    if not table.any(axis=1).all():
        raise ValueError(
            f"available: client {np.flatnonzero(~table.any(axis=1))[0]} has no "
            "modality; give it one or drop the client"
        )
    return table


def _check_num_clients(split: Split, num_clients: int) -> int:
    """Returns the number of samples n if it can serve the clients."""
    if not 1 <= num_clients <= split.size:
        raise ValueError(
            f"num_clients={num_clients}: must lie in [1, {split.size}], the number of "
            "samples"
        )
    return split.size


def _dirichlet_counts(
    class_counts: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    alpha: float,
    full: float,
    legacy_truncate: bool,
) -> np.ndarray:
    """[N, C] int64 samples of each client and class; the draw without the samples."""
    counts = np.zeros((num_clients, len(class_counts)), np.int64)
    sizes = np.zeros(num_clients, np.int64)
    for k in np.flatnonzero(class_counts):
        # Dir(alpha * 1_N), masked and renormalised, is Dir(alpha * 1) on the clients
        # left. Drawing that directly cannot end with nothing to renormalise. Someone
        # is always left: with samples to come the smallest client is below n / N.
        below = np.flatnonzero(sizes < full)
        p = _draw_dirichlet(alpha, len(below), rng)
        cuts = np.trunc(class_counts[k] * np.cumsum(p)).astype(np.int64)
        if not legacy_truncate:
            cuts[-1] = class_counts[k]
        counts[below, k] = np.diff(cuts, prepend=0)
        sizes += counts[:, k]
    return counts


def _draw_dirichlet(alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """[size] float64 probabilities from Dir(alpha * 1), for any finite alpha > 0."""
    with np.errstate(all="ignore"):
        p = rng.dirichlet(np.full(size, alpha))
        total = p.sum()
    if np.isfinite(total) and total > 0:
        return p / total
    # Beyond the range of floats the law is at its limit: one corner, or the centre.
    return np.eye(size)[rng.integers(size)] if alpha < 1 else np.full(size, 1 / size)


def _by_client(
    table: np.ndarray, num_clients: int, rng: np.random.Generator | None
) -> Partition:
    """Sorts the samples of a table [n] by client, in random order within each."""
    n = len(table)
    samples = np.arange(n) if rng is None else rng.permutation(n)
    samples = samples[table[samples] >= 0]
    order = samples[np.argsort(table[samples], kind="stable")]
    sizes = np.bincount(table[samples], minlength=num_clients)
    return Partition(order.astype(np.int64), sizes.astype(np.int64))


def _top_up(
    partition: Partition, min_samples: int, rng: np.random.Generator
) -> Partition:
    """Gives short clients random samples that others hold beyond min_samples."""
    order, sizes = partition
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    missing = np.maximum(min_samples - sizes, 0)
    moved = rng.choice(order[place >= min_samples], missing.sum(), replace=False)
    table = partition.assignment()
    table[moved] = np.repeat(np.arange(len(sizes)), missing)
    return _by_client(table, len(sizes), rng)
