"""dirichlet: label skew of adjustable strength, the usual benchmark of federation."""

import numpy as np

from fedcmi_jax.partition.base import (
    Partition,
    by_client,
    check_alpha,
    check_num_clients,
    draw_dirichlet,
)
from fedcmi_jax.samples import Split

MAX_RETRIES = 100
"""Resamplings before dirichlet gives up; a failing setting nearly always fails."""


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
    n = check_num_clients(split, num_clients)
    check_alpha(alpha)
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
    partition = by_client(table, num_clients, rng)
    return partition if enough else _top_up(partition, min_samples, rng)


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
        p = draw_dirichlet(alpha, len(below), rng)
        cuts = np.trunc(class_counts[k] * np.cumsum(p)).astype(np.int64)
        if not legacy_truncate:
            cuts[-1] = class_counts[k]
        counts[below, k] = np.diff(cuts, prepend=0)
        sizes += counts[:, k]
    return counts


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
    return by_client(table, len(sizes), rng)
