"""cg_mnist: 70,000 digits in gray and in a colour that wins, then misleads."""

from typing import Any

import numpy as np

from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.sampling import MNIST_SIZES, check_subset, subset
from fedcmi_jax.data.tfds import as_float, prepare, read_arrays
from fedcmi_jax.samples import PathOption


def cg_mnist(
    *,
    train_samples: int | None = None,
    test_samples: int | None = None,
    seed: int = 0,
    data_dir: PathOption | None = None,
    manual_dir: PathOption | None = None,
) -> Dataset:
    """MNIST in a "gray" view and a "color" view whose colour is a trap.

    Made as `cg_digits`: ``color_i = gray_i * clip(mu_{k_i} + e_i, 0, 1)`` with a jitter
    of variance 0.03. In training k_i is the label, in test it is drawn at random.

    gray is [n, 28, 28, 1] and color [n, 28, 28, 3], float32 in [0, 1].

    Args:
      train_samples: Keep so many training samples, every class in proportion; None:
        all 60,000.
      test_samples: The same for the 10,000 test samples.
      seed: Seed of the choice of samples. The colours are part of the data set.
      data_dir: Folder of prepared data; None: $FEDCMI_DATA_ROOT or the user's cache.
      manual_dir: Folder with the raw files, where downloading is not possible.

    Returns:
      The data set, 60,000 training and 10,000 test samples with the defaults.

    Raises:
      ValueError: A number of samples is out of range, or the data cannot be prepared.
    """
    counts = {"train_samples": train_samples, "test_samples": test_samples}
    check_subset(seed, counts, MNIST_SIZES)
    builder = prepare("cg_mnist", data_dir=data_dir, manual_dir=manual_dir)
    return Dataset(
        name="cg_mnist",
        modalities=("gray", "color"),
        class_names=tuple(builder.info.features["label"].names),
        train=_split(builder, "train", train_samples, seed, split_index=0),
        test=_split(builder, "test", test_samples, seed, split_index=1),
    )


def _split(
    builder: Any, name: str, count: int | None, seed: int, *, split_index: int
) -> Split:
    arrays = read_arrays(builder, name, ("gray", "color", "label"))
    labels = arrays.pop("label").astype(np.int32)
    kept = subset(labels, count, seed, split_index, f"{name}_samples")
    return Split(
        {m: as_float(x[kept]) for m, x in arrays.items()},
        labels[kept],
    )
