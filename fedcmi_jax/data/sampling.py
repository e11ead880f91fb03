"""Subsets of a split, for machines that cannot take all of it."""

from collections.abc import Mapping

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


MNIST_SIZES = {"train_samples": 60_000, "test_samples": 10_000}
"""Option of a data set made of MNIST's images -> how many there are."""


def check_subset(
    seed: int, counts: Mapping[str, int | None], sizes: Mapping[str, int]
) -> None:
    """Refuses what `subset` would, before there are samples to choose from.

    Args:
      seed: Seed of the choice.
      counts: Option -> its value; None: all.
      sizes: Option -> the samples that there are.

    Raises:
      ValueError: As `subset`.

    Example:
      >>> check_subset(0, {"test_samples": 0}, MNIST_SIZES)
      Traceback (most recent call last):
      ValueError: test_samples=0: must lie in [1, 10000], or be left out for all
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must be non-negative; pass 0, 1, 2...")
    for option, count in counts.items():
        if count is not None and not 1 <= count <= sizes[option]:
            raise ValueError(
                f"{option}={count}: must lie in [1, {sizes[option]}], or be left out "
                "for all"
            )


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
    check_subset(seed, {option: count}, {option: len(labels)})
    if count is None:
        return slice(None)
    return stratified_sample(labels, count, np.random.default_rng((seed, split_index)))
