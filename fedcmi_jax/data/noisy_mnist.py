"""noisy_mnist: the two-view Noisy MNIST of Wang et al., ICML 2015.

The MNIST counterpart of `noisy_digits`.
"""

from typing import Any

import numpy as np

from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.noisy_digits import check_noise, noisy_view, standardized
from fedcmi_jax.data.sampling import MNIST_SIZES, check_subset, subset
from fedcmi_jax.data.tfds import as_float, prepare, read_arrays
from fedcmi_jax.samples import PathOption

_VIEW_STREAM = 1  # apart from the choice of samples


def noisy_mnist(
    *,
    noise: float = 1.0,
    train_samples: int | None = None,
    test_samples: int | None = None,
    standardize: bool = True,
    seed: int = 0,
    data_dir: PathOption | None = None,
    manual_dir: PathOption | None = None,
) -> Dataset:
    """MNIST in a strong view, "clean", and a weak one, "noisy".

    ``clean_i = x_i`` and ``noisy_i = x_j + u``, where ``j != i`` is drawn among the
    images of the same class and split, and every pixel of ``u`` is uniform in
    [0, noise). Unlike in the original, the images are not rotated and the noise is not
    clipped.

    Both are [n, 28, 28, 1] float32.

    Args:
      noise: Amplitude of the weak view's uniform noise, in units of full intensity
        (Wang et al.: 1).
      train_samples: Keep so many training samples, every class in proportion; None:
        all 60,000.
      test_samples: The same for the 10,000 test samples.
      standardize: Bring each view to mean 0 and standard deviation 1, by two numbers
        per view taken from its training split.
      seed: Seed of the choice of samples, pairing and noise.
      data_dir: Folder of prepared data; None: $FEDCMI_DATA_ROOT or the user's cache.
      manual_dir: Folder with the raw files, where downloading is not possible.

    Returns:
      The data set, 60,000 training and 10,000 test samples with the defaults.

    Raises:
      ValueError: noise is negative or not finite, a number of samples is out of range
        or leaves a class with one image, or the data cannot be prepared.
    """
    check_noise(noise)
    counts = {"train_samples": train_samples, "test_samples": test_samples}
    check_subset(seed, counts, MNIST_SIZES)
    builder = prepare("mnist", data_dir=data_dir, manual_dir=manual_dir)
    dataset = Dataset(
        name="noisy_mnist",
        modalities=("clean", "noisy"),
        class_names=tuple(builder.info.features["label"].names),
        train=_split(builder, "train", train_samples, seed, 0, noise),
        test=_split(builder, "test", test_samples, seed, 1, noise),
    )
    return standardized(dataset) if standardize else dataset


def _split(
    builder: Any,
    name: str,
    count: int | None,
    seed: int,
    split_index: int,
    noise: float,
) -> Split:
    arrays = read_arrays(builder, name, ("image", "label"))
    labels = arrays["label"].astype(np.int32)
    kept = subset(labels, count, seed, split_index, f"{name}_samples")
    clean, labels = as_float(arrays["image"][kept]), labels[kept]
    rng = np.random.default_rng((seed, split_index, _VIEW_STREAM))
    noisy = noisy_view(clean, labels, rng, noise=noise)
    return Split({"clean": clean, "noisy": noisy}, labels)
