"""cg_digits: a colour view that wins in training and misleads in test.

Made as Colored-and-gray MNIST: the biased colouring of Kim et al., "Learning Not to
Learn", CVPR 2019, beside the gray image, the usual stress test of modality imbalance;
here on the real 8x8 digits that scikit-learn carries, so nothing is downloaded.
"""

import numpy as np

from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.digits import CLASS_NAMES, digit_splits, view_rng

CLASS_COLORS = np.array(
    [
        [1.0, 0.5, 0.0],  # orange
        [0.0, 0.5, 1.0],  # azure
        [0.5, 1.0, 0.0],  # lime
        [0.5, 0.0, 1.0],  # violet
        [1.0, 0.0, 0.5],  # rose
        [0.0, 1.0, 0.5],  # spring green
        [1.0, 1.0, 0.5],  # light yellow
        [0.5, 1.0, 1.0],  # light cyan
        [1.0, 0.5, 1.0],  # pink
        [0.5, 0.5, 0.5],  # gray
    ],
    np.float32,
)
"""[10, 3] mean colour of each class, red green blue in [0, 1].

Our choice, as no source lists its colours: the nine bright midpoints of the edges of
the colour cube and its centre, any two at least 0.707 apart, four times the jitter's
standard deviation.
"""


def cg_digits(
    *, color_variance: float = 0.03, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """1,797 digits in a "gray" view and a "color" view whose colour is a trap.

    ``gray_i = x_i`` and ``color_i = x_i * clip(mu_{k_i} + e_i, 0, 1)`` with one draw
    ``e_i ~ Normal(0, color_variance)`` per image and channel. In training ``k_i`` is
    the label, so colour alone predicts it; in test ``k_i`` is uniform over the classes,
    so colour says nothing and what was learnt from it misleads.

    gray is [n, 8, 8, 1] and color [n, 8, 8, 3], both float32 in [0, 1]. Equal seed and
    test_fraction give the split of noisy_digits.

    Args:
      color_variance: Variance of the colour jitter, full intensity 1 (CG-MNIST: 0.03).
      test_fraction: Share of the images in the test split, in (0, 1).
      seed: Seed of split and colours; color_variance does not change the split.

    Returns:
      The data set, 1,437 training and 360 test samples with the defaults.

    Raises:
      ValueError: color_variance is negative or not finite, seed is negative, or
        test_fraction is outside (0, 1) or too close to its ends.

    Example:
      >>> cg_digits().shapes
      {'gray': (8, 8, 1), 'color': (8, 8, 3)}
    """
    if not (np.isfinite(color_variance) and color_variance >= 0):
        raise ValueError(
            f"color_variance={color_variance}: must be finite and >= 0; 0.03 is usual"
        )
    (train, train_labels), (test, test_labels) = digit_splits(test_fraction, seed)
    rng = view_rng(seed)
    train_color = colorize(train, train_labels, rng, variance=color_variance)
    random_ids = rng.integers(0, len(CLASS_COLORS), size=len(test))
    test_color = colorize(test, random_ids, rng, variance=color_variance)
    return Dataset(
        name="cg_digits",
        modalities=("gray", "color"),
        class_names=CLASS_NAMES,
        train=Split({"gray": train, "color": train_color}, train_labels),
        test=Split({"gray": test, "color": test_color}, test_labels),
    )


def colorize(
    images: np.ndarray,
    color_ids: np.ndarray,
    rng: np.random.Generator,
    *,
    variance: float = 0.03,
    colors: np.ndarray = CLASS_COLORS,
) -> np.ndarray:
    """Multiplies every image by a jittered colour, clipped to [0, 1].

    Args:
      images: [n, height, width, 1] float32 in [0, 1].
      color_ids: [n] integers, rows of colors: the labels, or anything else.
      rng: Source of the jitter, one draw per image and channel.
      variance: Variance of the Gaussian jitter, full intensity 1.
      colors: [k, 3] mean colours in [0, 1].

    Returns:
      [n, height, width, 3] float32 in [0, 1].

    Example:
      >>> white = np.ones((1, 2, 2, 1), np.float32)
      >>> image = colorize(white, np.array([0]), np.random.default_rng(0), variance=0)
      >>> image[0, 0, 0].tolist()
      [1.0, 0.5, 0.0]
    """
    mean = colors[color_ids]
    jitter = np.sqrt(np.float32(variance)) * rng.standard_normal(mean.shape, np.float32)
    return images * np.clip(mean + jitter, 0, 1)[:, None, None, :]
