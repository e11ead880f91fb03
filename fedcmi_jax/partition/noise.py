"""Noise in what clients train on: labels that are wrong, inputs that are blurred.

Applied to samples that were dealt out for training, after all held-out shares were
taken, so that validation and test samples stay as they are. Every client draws from a
generator of its own, so its noise does not depend on the other clients.
"""

from collections.abc import Callable

import numpy as np

from fedcmi_jax.choices import check_choice
from fedcmi_jax.partition.base import Partition
from fedcmi_jax.samples import Split, map_arrays, named_arrays

LABEL_NOISE_KINDS = ("symmetric", "pair")
"""Kinds of wrong labels; see ``add_label_noise``."""

ClientRng = Callable[[int], np.random.Generator]
"""Client -> its generator, the same for every call; -1: that of all clients."""


def add_label_noise(
    split: Split,
    partition: Partition,
    num_classes: int,
    rng_of: ClientRng,
    *,
    fraction: float,
    kind: str = "symmetric",
    fraction_min: float | None = None,
    clients: float = 1.0,
) -> Split:
    """Replaces a share of each client's labels by wrong ones.

    round(clients * N) clients, drawn without replacement, are noisy. A noisy client i
    draws its share ``eps_i ~ U(fraction_min, fraction)``, and round(eps_i * n_i) of its
    samples, drawn without replacement, get another label: ``y + u mod C`` with u
    uniform in [1, C) if symmetric, ``y + 1 mod C`` if pair.

    Args:
      split: Samples.
      partition: Which sample belongs to which client; the others stay as they are.
      num_classes: Number of classes C.
      rng_of: Client -> generator.
      fraction: Largest share of a client's samples, in [0, 1].
      kind: symmetric: any other class; pair: the next one.
      fraction_min: Smallest share; None: all noisy clients have ``fraction``.
      clients: Share of clients that are noisy, in [0, 1].

    Returns:
      The split with other labels, of the same dtype.

    Raises:
      ValueError: A share is out of range, the kind is unknown or C is below 2.

    Source:
      Symmetric and pair noise: arXiv 1804.06872. Clients that differ in their noise:
      arXiv 2204.04677 (its rho is ``clients``, its tau ``fraction_min`` at fraction 1;
      there the new label is drawn from all classes, the true one among them).

    Example:
      >>> split = Split({}, np.zeros(8, np.int32))
      >>> parts = Partition(np.arange(8), np.array([4, 4]))
      >>> rng_of = lambda client: np.random.default_rng(client + 1)
      >>> noisy = add_label_noise(split, parts, 3, rng_of, fraction=0.5, kind="pair")
      >>> [int(part.sum()) for part in np.split(noisy.labels, 2)]
      [2, 2]
    """
    check_label_noise(fraction, kind, fraction_min, clients)
    if num_classes < 2:
        raise ValueError("label_noise: there is one class and no wrong label; leave it")
    labels = np.array(split.labels)
    num_clients = partition.num_clients
    lowest = fraction if fraction_min is None else fraction_min
    noisy = rng_of(-1).permutation(num_clients)[: round(clients * num_clients)]
    starts = np.cumsum(partition.sizes) - partition.sizes
    for i in sorted(noisy.tolist()):
        rng, size = rng_of(i), partition.sizes[i]
        share = lowest + (fraction - lowest) * rng.random()
        chosen = rng.permutation(size)[: round(share * size)]
        rows = partition.order[starts[i] + chosen]
        step = rng.integers(1, num_classes, len(rows)) if kind == "symmetric" else 1
        labels[rows] = (labels[rows] + step) % num_classes
    return split._replace(labels=labels)


def check_label_noise(
    fraction: float, kind: str, fraction_min: float | None, clients: float
) -> None:
    """Refuses label noise that cannot be.

    Raises:
      ValueError: A share is out of range or the kind is unknown.

    Example:
      >>> check_label_noise(0.2, "pair", None, 1.0)
    """
    check_choice("label_noise_kind", kind, LABEL_NOISE_KINDS)
    for name, share in (("label_noise", fraction), ("noisy_clients", clients)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: {share} is outside [0, 1]; try 0.2")
    if fraction_min is not None and not 0 <= fraction_min <= fraction:
        raise ValueError(
            f"label_noise_min: {fraction_min} is outside [0, {fraction}], label_noise "
            "being the most; give less, or leave it out"
        )


def add_feature_noise(
    split: Split, partition: Partition, rng_of: ClientRng, *, sigma: float
) -> Split:
    """Adds Gaussian noise to inputs, of another strength at every client.

    ``x + N(0, (sigma * i / N)^2)`` for client i = 1..N, every number of every modality
    on its own: client 1 is nearly clean, client N has all of sigma.

    Args:
      split: Samples; the arrays stay as they are, those returned are copies in memory.
      partition: Which sample belongs to which client.
      rng_of: Client -> generator.
      sigma: Standard deviation at client N, in the inputs' units, >= 0.

    Returns:
      The split with other inputs.

    Raises:
      ValueError: sigma is negative or not finite, or a modality is of token ids.

    Source:
      Noise-based feature imbalance of NIID-Bench, arXiv 2102.02079, whose text calls
      the same number a variance. There test samples are noisy as well.

    Example:
      >>> split = Split({"a": np.zeros((4, 9), np.float32)}, np.zeros(4, np.int32))
      >>> parts = Partition(np.arange(4), np.array([2, 2]))
      >>> noisy = add_feature_noise(split, parts, np.random.default_rng, sigma=1.0)
      >>> first, second = np.split(noisy.inputs["a"], 2)
      >>> bool(first.std() < second.std())
      True
    """
    check_feature_noise(sigma)

    def copied(where: str, values: np.ndarray) -> np.ndarray:
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(
                f"feature_noise: {where} is of token ids, which have no noise; leave "
                "it out, or give features instead of tokens"
            )
        return np.array(values)

    inputs = {
        m: map_arrays(copied, f"modality {m!r}", x) for m, x in split.inputs.items()
    }
    arrays = [x for m in inputs for _, x in named_arrays(m, inputs[m])]
    starts = np.cumsum(partition.sizes) - partition.sizes
    for i, (start, size) in enumerate(zip(starts, partition.sizes, strict=True)):
        rng, rows = rng_of(i), partition.order[start : start + size]
        scale = sigma * (i + 1) / partition.num_clients
        for values in arrays:
            noise = rng.standard_normal((size, *values.shape[1:]), np.float32)
            values[rows] += (scale * noise).astype(values.dtype)
    return split._replace(inputs=inputs)


def check_feature_noise(sigma: float) -> None:
    """Refuses a deviation that is none.

    Raises:
      ValueError: It is negative or not finite.

    Example:
      >>> check_feature_noise(0.1)
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"feature_noise: {sigma} must be finite and >= 0; try 0.1")
