"""FedCMI's formulas: true-class probabilities, their ratios, temperatures, the loss.

Fan et al., arXiv 2401.00894; methods 1.3 and 1.4. P are mean true-class probabilities
per modality and class, r their ratios, T temperatures, d the dominant modality.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array

PROBABILITY_FLOOR = 1e-8
"""P is clamped to [this, 1] before any ratio (methods 1.9, D6)."""

RatioMean = Literal["arithmetic", "geometric"]


def class_probabilities(
    logits: Array, labels: Array, weights: Array, num_classes: int
) -> tuple[Array, Array]:
    """P_m[c], the mean of softmax(logits_m)[c] over the samples of class c.

    Args:
      logits: [n, M, C] self-projection logits.
      labels: [n] int32.
      weights: [n] float32, 1 for the samples to count.
      num_classes: C.

    Returns:
      P [M, C], 0 for an absent class, and held [C] float32 (1 if the class occurs).
    """
    one_hot = jax.nn.one_hot(labels, num_classes) * weights[:, None]
    counts = one_hot.sum(0)
    totals = at_labels(jax.nn.softmax(logits), labels).T @ one_hot
    inverse = 1.0 / jnp.maximum(counts, 1.0)
    return totals * inverse[None], (counts > 0).astype(jnp.float32)


def mean_ratios(
    probabilities: Array,
    held: Array,
    available: Array,
    mean: RatioMean = "arithmetic",
) -> Array:
    """r-bar_m = mean over held classes of P_m[c] / P_ref[c], ref the last modality.

    Args:
      probabilities: [M, C], P.
      held: [C], 1 for classes the client holds.
      available: [M], 1 for modalities the client has.
      mean: ``arithmetic`` (the public code) or ``geometric`` (symmetric: swapping two
        modalities inverts it).

    Returns:
      [M] float32; 1 for the reference and if it holds no class.
    """
    p = jnp.clip(probabilities, PROBABILITY_FLOOR, 1.0)
    r = p * (1.0 / p[argmax_last(available)])[None]
    count = jnp.maximum(held.sum(), 1.0)
    if mean == "geometric":
        average = jnp.exp((jnp.log(r) * held[None]).sum(1) / count)
    else:
        average = (r * held[None]).sum(1) / count
    return jnp.where(held.sum() > 0, average, 1.0)


def class_temperatures(
    probabilities: Array,
    held: Array,
    ratios: Array,
    dominant: Array,
    *,
    gamma: float | Array,
    min_temperature: float,
) -> Array:
    """T_k[c] = 1 / (1 + gamma ln u) where u > 1, else 1 (methods 1.3).

    u = (P_d[c] / P_k[c]) / (r-bar_d / r-bar_k): by how much the dominant modality d
    leads modality k on class c, relative to its mean lead. 0 < T <= 1, so a class that
    is led by more than the average is distilled with sharper targets.

    Args:
      probabilities: [M, C], P.
      held: [C]; T = 1 for an absent class.
      ratios: [M], r-bar.
      dominant: int32, d.
      gamma: Strength, >= 0.
      min_temperature: Lower bound of T (0: none, as in the public code).

    Returns:
      [M, C] float32; row d is 1.
    """
    p = jnp.clip(probabilities, PROBABILITY_FLOOR, 1.0)
    relative = ratios * (1.0 / ratios[dominant])
    lead = p[dominant][None] * (1.0 / p) * relative[:, None]
    sharper = 1.0 / (1.0 + gamma * jnp.log(jnp.maximum(lead, 1.0)))
    temperatures = jnp.where(held[None] > 0, sharper, 1.0)
    return jnp.maximum(temperatures, min_temperature)


def at_labels(values: Array, labels: Array) -> Array:
    """[n, M]: each sample's entry at its own label; values [n, M, C], labels [n]."""
    return jnp.take_along_axis(values, labels[:, None, None], axis=-1)[..., 0]


def argmax_last(values: Array) -> Array:
    """Index of the greatest value, of the last one among equals; values [M]."""
    return values.shape[0] - 1 - jnp.argmax(values[::-1])


def distillation_loss(
    teacher: Array,
    student: Array,
    temperature: Array,
    weights: Array,
    emphasis: Array | float = 1.0,
) -> Array:
    """Weighted mean over samples of H(softmax(teacher / T), softmax(student / T)).

    No T^2 factor, as in the public code: sharper targets give a larger gradient.

    Args:
      teacher: [B, C] logits; no gradient flows into them.
      student: [B, C] logits.
      temperature: [B], T of each sample.
      weights: [B], 0 for samples that do not count.
      emphasis: [B], factor on each sample's loss; the mean is still by ``weights``.

    Returns:
      Scalar, nats.
    """
    sharpness = (1.0 / temperature)[:, None]
    target = jax.nn.softmax(jax.lax.stop_gradient(teacher) * sharpness)
    log_probs = jax.nn.log_softmax(student * sharpness)
    cross_entropy = -(target * log_probs).sum(-1)
    total = (cross_entropy * emphasis * weights).sum()
    return total / jnp.maximum(weights.sum(), 1.0)
