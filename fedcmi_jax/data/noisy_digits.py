"""noisy_digits: a clean view that is easy to learn and a noisy one that is not.

After the two-view Noisy MNIST of Wang et al., "On Deep Multi-View Representation
Learning", ICML 2015, on the real 8x8 digits that scikit-learn carries: no download.
"""

import numpy as np

from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.digits import CLASS_NAMES, digit_splits, view_rng


def noisy_digits(
    *,
    noise: float = 1.5,
    test_fraction: float = 0.2,
    standardize: bool = True,
    seed: int = 0,
) -> Dataset:
    """1,797 digits in a strong view, "clean", and a weak one, "noisy".

    ``clean_i = x_i`` and ``noisy_i = x_j + u``, where ``j != i`` is drawn among the
    images of the same class and split, and every pixel of ``u`` is uniform in
    [0, noise). The views share the class and nothing else: no handwriting, no noise.
    The noisy view of a sample held out of the training split (validation, clients' own
    tests) is thus made from an image whose clean view may be in training.

    Both are [n, 8, 8, 1] float32. Before standardisation clean lies in [0, 1] and noisy
    in [0, 1 + noise): the noise is not clipped, so its amplitude matters above 1 too.
    Without standardisation the noise's mean of noise/2 drives an MLP's units dead at
    learning rates that suit the clean view.

    Args:
      noise: Amplitude of the weak view's uniform noise, in units of full intensity.
      test_fraction: Share of the images in the test split, in (0, 1).
      standardize: Bring each view to mean 0 and standard deviation 1, by two numbers
        per view taken from its training split.
      seed: Seed of split, pairing and noise; noise does not change the split.

    Returns:
      The data set, 1,437 training and 360 test samples with the defaults.

    Raises:
      ValueError: noise is negative or not finite, seed is negative, or test_fraction is
        outside (0, 1) or too close to its ends.

    Example:
      >>> dataset = noisy_digits(noise=1.0)
      >>> dataset.train.size, dataset.test.size, dataset.shapes["noisy"]
      (1437, 360, (8, 8, 1))
    """
    check_noise(noise)
    train, test = digit_splits(test_fraction, seed)
    rng = view_rng(seed)

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        noisy = noisy_view(images, labels, rng, noise=noise)
        return Split({"clean": images, "noisy": noisy}, labels)

    dataset = Dataset(
        name="noisy_digits",
        modalities=("clean", "noisy"),
        class_names=CLASS_NAMES,
        train=split(*train),
        test=split(*test),
    )
    return standardized(dataset) if standardize else dataset


def check_noise(noise: float) -> None:
    """Refuses an impossible amplitude.

    Raises:
      ValueError: It is negative or not finite.
    """
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise}: must be finite and >= 0; 1 is usual")


def standardized(dataset: Dataset) -> Dataset:
    """Each modality shifted and scaled to mean 0 and deviation 1 on the training split.

    Args:
      dataset: Any data set.

    Returns:
      The same with (x - mean) / deviation, two numbers per modality for both splits.
    """

    def scaled(split: Split) -> Split:
        inputs = {}
        for m, values in split.inputs.items():
            train = dataset.train.inputs[m]
            inputs[m] = (values - train.mean()) / np.maximum(train.std(), 1e-8)
        return split._replace(inputs=inputs)

    return dataset._replace(train=scaled(dataset.train), test=scaled(dataset.test))


def noisy_view(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, noise: float
) -> np.ndarray:
    """Another image of each sample's class plus uniform noise in [0, noise).

    Args:
      images: [n, ...] float32 in [0, 1].
      labels: [n] integers.
      rng: Source of the draws.
      noise: Amplitude, in units of full intensity.

    Returns:
      [n, ...] float32.

    Raises:
      ValueError: A class has a single sample.
    """
    view = images[same_class_partners(labels, rng)]
    view += np.float32(noise) * rng.random(view.shape, dtype=np.float32)
    return view


def same_class_partners(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws for every sample another one of the same class, uniformly.

    Draws are independent, so a sample may be the partner of several or of none.

    Args:
      labels: [n] non-negative integers.
      rng: Source of the draws.

    Returns:
      [n] int64 sample indices; entry i is never i.

    Raises:
      ValueError: A class has a single sample.

    Example:
      >>> same_class_partners(np.array([0, 1, 1, 0]), np.random.default_rng(0)).tolist()
      [3, 2, 1, 0]
    """
    counts = np.bincount(labels)
    if (counts == 1).any():
        raise ValueError(
            f"labels: class {np.flatnonzero(counts == 1)[0]} has a single sample, "
            "pairing needs two; drop the class or add samples"
        )
    by_class = np.argsort(labels, kind="stable")
    classes = labels[by_class]
    start = (np.cumsum(counts) - counts)[classes]
    place = np.arange(len(labels)) - start
    # One of the class's other places: draw among one fewer and step over the own place.
    other = rng.integers(0, counts[classes] - 1)
    other += other >= place
    partners = np.empty(len(labels), np.int64)
    partners[by_class] = by_class[start + other]
    return partners
