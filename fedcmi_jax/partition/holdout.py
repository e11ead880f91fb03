"""Samples that a federation does not train on: shares of its clients, whole clients."""

from typing import NamedTuple

import numpy as np

from fedcmi_jax.partition import Partition


class Held(NamedTuple):
    """Samples of the training split that were taken away from training.

    Attributes:
      rows: [v] int64 rows of the split, one client's after the other's.
      clients: [v] int64, whose sample each one is.
    """

    rows: np.ndarray
    clients: np.ndarray


def largest_remainder(
    shares: np.ndarray,
    total: int,
    caps: np.ndarray,
    rng: np.random.Generator,
    lack: np.ndarray | None = None,
) -> np.ndarray:
    """Whole numbers in proportion to shares: Hamilton's method.

    q_i = min(floor(s_i), cap_i); what is missing from the total goes, one each, to the
    largest s_i - q_i that have room.

    Args:
      shares: [n] numbers >= 0.
      total: What the quotas add up to; of the caps, if these add up to less.
      caps: [n] int64, the most that each one can get.
      rng: Decides between equals, so that no place is favoured.
      lack: [n] whom to prefer among equals, the largest first; None: nobody.

    Returns:
      [n] int64 quotas.

    Example:
      >>> rng, caps = np.random.default_rng(0), np.array([9, 9, 1])
      >>> largest_remainder(np.array([2.5, 0.9, 1.6]), 5, caps, rng).tolist()
      [3, 1, 1]
    """
    quotas = np.minimum(np.floor(shares).astype(np.int64), caps)
    missing = min(total, int(caps.sum())) - int(quotas.sum())
    equals = (rng.random(len(shares)), np.zeros(len(shares)) if lack is None else -lack)
    while missing > 0:
        order = np.lexsort((*equals, quotas - shares))
        chosen = order[(quotas < caps)[order]][:missing]
        quotas[chosen] += 1
        missing -= len(chosen)
    return quotas


def take_share(
    partition: Partition,
    labels: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    *,
    sequential: bool = False,
) -> tuple[Partition, Held]:
    """Takes a share of every client's samples, stratified by class.

    Of n samples in all, round(fraction * n) are taken. Client i gives its share of them
    by largest remainder of fraction * n_i, at most n_i - 1; each of its classes the
    same of the client's. Among equal remainders within a client comes first the class
    that has given less than its share at the clients before, then chance. A class of
    few samples at a client may give none there.

    Which samples of a class a client gives is drawn. Where neighbouring rows overlap in
    content, a sample taken so would be known from its neighbours in training: with
    ``sequential`` they are those of the class with the highest rows, one run.

    Args:
      partition: Which sample belongs to which client.
      labels: [n] int class of every sample of the split.
      fraction: Share to take, in [0, 1).
      rng: Source of the draw; left alone where the fraction is 0.
      sequential: ``Split.sequential``.

    Returns:
      The partition of what is left, in the order it had, and what was taken.

    Raises:
      ValueError: fraction is outside [0, 1).

    Example:
      >>> parts = Partition(np.arange(30), np.array([20, 9, 1]))
      >>> labels = np.arange(30) % 2
      >>> left, held = take_share(parts, labels, 0.2, np.random.default_rng(0))
      >>> left.sizes.tolist(), np.bincount(labels[held.rows]).tolist()
      ([16, 7, 1], [3, 3])
    """
    if not 0 <= fraction < 1:
        raise ValueError(
            f"fraction: {fraction} is outside [0, 1); give the share of each client's "
            "samples to hold out"
        )
    taken = np.zeros(len(partition.order), bool)
    if fraction > 0:
        _mark(taken, partition, labels, fraction, rng, sequential)
    owners = np.repeat(np.arange(partition.num_clients), partition.sizes)
    held = Held(partition.order[taken], owners[taken])
    left = np.bincount(owners[~taken], minlength=partition.num_clients)
    return Partition(partition.order[~taken], left.astype(np.int64)), held


def take_clients(
    partition: Partition,
    available: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> tuple[Partition, np.ndarray, Held, np.ndarray, np.ndarray]:
    """Takes whole clients, drawn uniformly without replacement.

    Args:
      partition: Which sample belongs to which client.
      available: [N, M] table of who has what.
      count: h, clients to take.
      rng: Source of the draw; left alone where the count is 0.

    Returns:
      The partition and the table [N - h, M] of the others, renumbered in their order;
      the samples of those taken, ``clients`` in [0, h); their table [h, M]; and [h]
      int64, ascending, which clients they were.

    Raises:
      ValueError: count is negative or leaves no client.

    Example:
      >>> parts = Partition(np.arange(6), np.array([3, 2, 1]))
      >>> rng, has = np.random.default_rng(0), np.ones((3, 2), bool)
      >>> left, _, held, *_ = take_clients(parts, has, 1, rng)
      >>> left.num_clients, left.sizes.sum() + len(held.rows)
      (2, np.int64(6))
    """
    if not 0 <= count < partition.num_clients:
        raise ValueError(
            f"holdout_clients: {count} of {partition.num_clients} clients; give 0 to "
            f"{partition.num_clients - 1}, so that somebody trains"
        )
    away = np.zeros(partition.num_clients, bool)
    if count:
        away[rng.choice(partition.num_clients, count, replace=False)] = True
    taken = np.repeat(away, partition.sizes)
    left = Partition(partition.order[~taken], partition.sizes[~away])
    clients = np.repeat(np.arange(count), partition.sizes[away])
    held = Held(partition.order[taken], clients)
    return left, available[~away], held, available[away], np.flatnonzero(away)


def _mark(
    taken: np.ndarray,
    partition: Partition,
    labels: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    sequential: bool,
) -> None:
    """Sets ``taken`` [n], places in the partition's order, where a sample goes."""
    sizes = partition.sizes
    total, caps = round(fraction * int(sizes.sum())), np.maximum(sizes - 1, 0)
    quotas = largest_remainder(fraction * sizes, total, caps, rng)
    starts = np.cumsum(sizes) - sizes
    lack = np.zeros(int(labels.max(initial=0)) + 1)
    for i in np.flatnonzero(quotas):
        rows = partition.order[starts[i] : starts[i] + sizes[i]]
        first = np.argsort(-rows) if sequential else rng.permutation(sizes[i])
        places = starts[i] + first
        own = labels[partition.order[places]]
        counts = np.bincount(own, minlength=len(lack))
        shares = quotas[i] * counts / sizes[i]
        wanted = largest_remainder(shares, int(quotas[i]), counts, rng, lack)
        lack += shares - wanted
        by_class = np.argsort(own, kind="stable")
        sorted_own = own[by_class]
        rank = np.arange(len(own)) - (np.cumsum(counts) - counts)[sorted_own]
        taken[places[by_class[rank < wanted[sorted_own]]]] = True
