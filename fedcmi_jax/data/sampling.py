"""Subsets of a split, for machines that cannot take all of it."""

import numpy as np


def stratified_sample(
    labels: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws samples without replacement, every class in proportion.

    Systematic sampling along the samples sorted by class and shuffled within each, so
    every class has its share to less than one sample.

    Args:
      labels: [n] integers.
      count: Samples to draw, in [0, n].
      rng: Source of the draws.

    Returns:
      [count] ascending int64 sample indices.

    Example:
      >>> labels = np.repeat([0, 1], [30, 10])
      >>> chosen = stratified_sample(labels, 4, np.random.default_rng(0))
      >>> labels[chosen].tolist()
      [0, 0, 0, 1]
    """
    n = len(labels)
    shuffled = rng.permutation(n)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    tickets = np.arange(n + 1) * count // n
    return np.sort(by_class[np.diff(tickets) > 0])


def subset(
    labels: np.ndarray, count: int | None, seed: int, split_index: int, option: str
) -> np.ndarray | slice:
    """Rows of a split that an option of a data set asks for.

    Args:
      labels: [n] integers of the whole split.
      count: Samples to keep; None: all.
      seed: Seed of the choice, non-negative.
      split_index: Number of the split, so that splits draw independently.
      option: Name of the option, for messages.

    Returns:
      Index of the rows; for all, a slice, which copies nothing.

    Raises:
      ValueError: count is outside [1, n], or seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must be non-negative; pass 0, 1, 2...")
    if count is None:
        return slice(None)
    if not 1 <= count <= len(labels):
        raise ValueError(
            f"{option}={count}: must lie in [1, {len(labels)}], or be left out for all"
        )
    return stratified_sample(labels, count, np.random.default_rng((seed, split_index)))
