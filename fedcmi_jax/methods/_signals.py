"""Signals of our own that FedCMI's distillation may use: formulas (methods 1.10).

The published signal saturates: true-class probabilities of training samples are near 1
for every modality, so ratios are near 1 and targets are nearly the label. Each formula
here changes one of: what is distilled, how softly, for whom, how strongly.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._infiltration import PROBABILITY_FLOOR, at_labels
from fedcmi_jax.types import Array

Gate = Literal["none", "sample", "class"]

LamScale = Literal["none", "gap"]

Calibration = Literal["none", "temperature"]

Level = Literal["logits", "features"]

CALIBRATION_BOUNDS = (1.0, 10.0)
"""A calibrated teacher is never sharper than it is: where all samples are right, the
likelihood grows up to T = 0, which says nothing. Beyond 10 every margin that a small
classifier reaches is flat."""

HALVINGS = 20
"""Of the interval of ln T: what is left of ln 10 is 2e-6."""

SMALLEST_SQUARE = 1e-12
"""Below it a squared length is clamped, so that a zero vector has a slope."""


def knows_better(teacher: Array, student: Array, labels: Array) -> Array:
    """1 where q(teacher)_j[y_j] > q(student)_j[y_j], else 0.

    Compared by their log-odds, z_y - ln sum_{c != y} exp z_c: near 1 float32
    probabilities tie, and these do not.

    Args:
      teacher: [B, C] logits.
      student: [B, C] logits.
      labels: [B] int32.

    Returns:
      [B] float32.
    """
    both = jnp.stack([teacher, student], axis=1)
    is_true = jax.nn.one_hot(labels, both.shape[-1])[:, None] > 0
    others = jax.nn.logsumexp(jnp.where(is_true, -jnp.inf, both), axis=-1)
    odds = at_labels(both, labels) - others
    return (odds[:, 0] > odds[:, 1]).astype(jnp.float32)


def class_gates(teachers: Array, students: Array, held: Array) -> Array:
    """1 where P_teacher[c] > P_k[c]; also 1 for a class that nobody measured.

    Args:
      teachers: [..., C], P of the teachers.
      students: [..., C], P of the students; broadcast against ``teachers``.
      held: [C], 1 for the classes that were measured.

    Returns:
      float32, the shape of both.
    """
    unknown = (held == 0).reshape((1,) * (teachers.ndim - 1) + (-1,))
    return ((teachers > students) | unknown).astype(jnp.float32)


def gap(ratios: Array, source: Array) -> Array:
    """clip(ln(r-bar_d / r-bar_k), 0, 1): nothing at a tie, everything from e-fold on.

    Args:
      ratios: [M], r-bar.
      source: int32, d.

    Returns:
      [M] float32, the factor on lambda of each student k.
    """
    log_ratios = jnp.log(jnp.maximum(ratios, PROBABILITY_FLOOR))
    return jnp.clip(log_ratios[source] - log_ratios, 0.0, 1.0)


def without_own(shares: Array, available: Array) -> Array:
    """z without the student's own share: sum_{m != k} has_m z_m, for every k.

    Args:
      shares: [B, M, C], shares z_m of the fused logits (``Model.shares``).
      available: [B, M], 1 where the sample has the modality.

    Returns:
      [B, M, C].
    """
    present = shares * available[:, :, None]
    return jnp.stack(
        [
            sum(present[:, m] for m in range(shares.shape[1]) if m != k)
            for k in range(shares.shape[1])
        ],
        axis=1,
    )


def calibration_temperature(logits: Array, labels: Array, weights: Array) -> Array:
    """T that minimises mean_j CE(z_j / T, y_j) within CALIBRATION_BOUNDS.

    Temperature scaling (Guo et al., arXiv 1706.04599), one T per row of logits. The
    loss is convex in a = 1 / T with slope mean_j (sum_c q(a z_j)_c z_jc - z_jy), so its
    sign halves the interval of ln T.

    Args:
      logits: [n, M, C].
      labels: [n] int32.
      weights: [n] float32, 1 for the samples to count.

    Returns:
      [M] float32; 1 without any sample.
    """
    count = jnp.maximum(weights.sum(), 1.0)
    truth = at_labels(logits, labels)

    def slope(log_temperature: Array) -> Array:
        a = jnp.exp(-log_temperature)
        expected = (jax.nn.softmax(logits * a[None, :, None]) * logits).sum(-1)
        return ((expected - truth) * weights[:, None]).sum(0) / count

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2.0
        softer = slope(middle) > 0.0
        return jnp.where(softer, middle, low), jnp.where(softer, high, middle)

    ones = jnp.ones(logits.shape[1])
    low, high = (jnp.log(bound) * ones for bound in CALIBRATION_BOUNDS)
    # At a bound the interval's other end would be off by its last half.
    least = slope(low) <= 0.0
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    fitted = jnp.exp((low + high) / 2.0)
    return jnp.where(least | (weights.sum() == 0), 1.0, fitted)


def feature_loss(
    teacher: Array, student: Array, weights: Array, emphasis: Array | float = 1.0
) -> Array:
    """Weighted mean over samples of 1 - cos(teacher, student).

    Args:
      teacher: [B, D] features; no gradient flows into them.
      student: [B, D] features.
      weights: [B], 0 for samples that do not count.
      emphasis: [B], factor on each sample's loss; the mean is still by ``weights``.

    Returns:
      Scalar in [0, 2].
    """
    distance = 1.0 - (unit(jax.lax.stop_gradient(teacher)) * unit(student)).sum(-1)
    return (distance * emphasis * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def unit(x: Array) -> Array:
    """Rows of length 1; a zero row stays."""
    squares = (x * x).sum(-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, SMALLEST_SQUARE))
