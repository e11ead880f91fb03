"""synthetic: Gaussian classes of any size, with one strength per modality."""

import numpy as np

from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.memory import check_fits

_CHUNK = 65_536  # rows at a time, so that the means of millions of rows never coexist


def synthetic(
    *,
    modalities: tuple[str, ...] = ("strong", "weak"),
    strengths: tuple[float, ...] = (2.0, 0.5),
    num_classes: int = 10,
    features: int = 32,
    train_samples: int = 2000,
    test_samples: int = 1000,
    natural_clients: int = 0,
    seed: int = 0,
) -> Dataset:
    """Class means on a sphere plus unit Gaussian noise, for scale and for tests.

    ``x_m = strength_m * u_{m,y} + e`` with a random unit vector ``u_{m,y}`` per
    modality and class and ``e ~ Normal(0, I)``, independent between modalities. So
    strength is the distance of a class mean from the origin in standard deviations of
    the noise, and a modality of strength 0 says nothing.

    Every modality is [n, features] float32. Class counts of a split differ by at most
    one; the order of the samples is random.

    Args:
      modalities: Names of the modalities, all different.
      strengths: Signal of each modality, in standard deviations of the noise.
      num_classes: Number of classes C.
      features: Features of one sample, the same for every modality.
      train_samples: Samples of the training split.
      test_samples: Samples of the test split.
      natural_clients: Natural clients, equal shares of each split at random; 0: none.
      seed: Seed of means, labels and noise.

    Returns:
      The data set; class names are "0", "1"...

    Raises:
      ValueError: Modalities are none or repeated, strengths do not match them or are
        negative or not finite, a count is below one, there are more natural clients
        than samples, seed is negative, or the arrays are larger than all memory.

    Example:
      >>> dataset = synthetic(modalities=("a", "b", "c"), strengths=(2.0, 1.0, 0.5))
      >>> dataset.num_classes, dataset.shapes["c"]
      (10, (32,))
    """
    if not modalities or len(set(modalities)) != len(modalities):
        raise ValueError(
            f"modalities={modalities}: must be one or more different names"
        )
    if len(strengths) != len(modalities):
        raise ValueError(
            f"strengths={strengths}: must be one number for each of the "
            f"{len(modalities)} modalities {modalities}"
        )
    if not all(np.isfinite(s) and s >= 0 for s in strengths):
        raise ValueError(f"strengths={strengths}: must be finite and >= 0")
    for name, count in (
        ("num_classes", num_classes),
        ("features", features),
        ("train_samples", train_samples),
        ("test_samples", test_samples),
    ):
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")
    if not 0 <= natural_clients <= min(train_samples, test_samples):
        raise ValueError(
            f"natural_clients={natural_clients}: must lie in [0, "
            f"{min(train_samples, test_samples)}], the samples of the smaller split"
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: must be non-negative; pass 0, 1, 2...")

    rows = train_samples + test_samples + 2 * num_classes  # means are float64
    check_fits(
        f"train_samples={train_samples}, test_samples={test_samples}, num_classes="
        f"{num_classes}, features={features}: the arrays",
        4.0 * len(modalities) * features * rows,
        "give fewer",
    )
    rng = np.random.default_rng(seed)
    means = {}
    for modality, strength in zip(modalities, strengths, strict=True):
        direction = rng.standard_normal((num_classes, features))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        means[modality] = (strength * direction).astype(np.float32)

    def split(n: int) -> Split:
        labels = rng.permutation(np.arange(n, dtype=np.int32) % num_classes)
        inputs = {m: _noisy_means(means[m], labels, rng) for m in means}
        if not natural_clients:
            return Split(inputs, labels)
        clients = rng.permutation(np.arange(n, dtype=np.int32) % natural_clients)
        return Split(inputs, labels, clients)

    return Dataset(
        name="synthetic",
        modalities=tuple(modalities),
        class_names=tuple(str(c) for c in range(num_classes)),
        train=split(train_samples),
        test=split(test_samples),
    )


def _noisy_means(
    means: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[n, F] float32, each row its class mean plus unit Gaussian noise."""
    values = rng.standard_normal((len(labels), means.shape[1]), dtype=np.float32)
    for start in range(0, len(labels), _CHUNK):
        rows = slice(start, start + _CHUNK)
        values[rows] += means[labels[rows]]
    return values
