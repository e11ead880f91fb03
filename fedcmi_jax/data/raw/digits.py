"""The real 8x8 digit images behind noisy_digits and cg_digits, and their split."""

import importlib.util
import math
import pathlib

import numpy as np

from fedcmi_jax.data.sampling import stratified_sample

CLASS_NAMES = tuple("0123456789")

_MAX_INTENSITY = 16.0  # load_digits stores intensities 0..16
_MIN_PER_CLASS = 2  # noisy_digits pairs each image with another one of its class
_SPLIT_STREAM, _VIEW_STREAM = 0, 1  # so that no view's draws can change the split


def view_rng(seed: int) -> np.random.Generator:
    """Generator of everything a data set draws after the split."""
    return np.random.default_rng((seed, _VIEW_STREAM))


def digit_splits(
    test_fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Loads scikit-learn's digits and splits them; equal arguments, equal split.

    Args:
      test_fraction: Share of the 1,797 images in the test split, in (0, 1).
      seed: Seed of the split, a non-negative integer.

    Returns:
      (train, test), each (images [n, 8, 8, 1] float32 in [0, 1], labels [n] int32),
      in the order of the source.

    Raises:
      ValueError: seed is negative, or test_fraction is outside (0, 1) or leaves a class
        with fewer than two images in a split.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must be non-negative; pass 0, 1, 2...")
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"test_fraction={test_fraction}: must lie in (0, 1); 0.2 is usual"
        )
    pixels, classes = _digits()
    images = np.asarray(pixels / _MAX_INTENSITY, np.float32).reshape(-1, 8, 8, 1)
    labels = np.asarray(classes, np.int32)
    rng = np.random.default_rng((seed, _SPLIT_STREAM))
    train, test = split_indices(labels, test_fraction, rng)
    for part in (train, test):
        fewest = np.bincount(labels[part], minlength=len(CLASS_NAMES)).min()
        if fewest < _MIN_PER_CLASS:
            raise ValueError(
                f"test_fraction={test_fraction}: leaves a class with {fewest} images in"
                f" a split, needs {_MIN_PER_CLASS}; use a value in [0.02, 0.98]"
            )
    return (images[train], labels[train]), (images[test], labels[test])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and labels, as ``sklearn.datasets.load_digits`` has them.

    From the file behind it, where it is: importing scikit-learn takes longer than all
    else that a run imports.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = pathlib.Path(folder, "datasets", "data", "digits.csv.gz")
        if path.exists():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def split_indices(
    labels: np.ndarray, test_fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples at random, stratified by class.

    The test split has exactly ceil(test_fraction * n) samples, and every class has its
    share of them to less than one sample.

    Args:
      labels: [n] integers.
      test_fraction: Share of test samples, in (0, 1).
      rng: Source of the draws.

    Returns:
      (train, test), ascending int64 sample indices.
    """
    n = len(labels)
    num_test = math.ceil(test_fraction * n)
    test = stratified_sample(labels, num_test, rng)
    return np.setdiff1d(np.arange(n), test), test
