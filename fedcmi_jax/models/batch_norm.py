"""Normalisation by a batch's statistics, with a gradient that passes over it twice.

XLA:CPU sums over all axes but the last element by element, 20 to 70 times slower than
memory allows. Sums of slices are elementwise, and run as fast as it does.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array

NORM_EPSILON = 1e-5
"""Added to a variance before the square root (torch's default)."""
SLICES = 16
"""Most slices that one elementwise sum adds: as many streams as caches take well."""


@jax.custom_vjp
def normalised(
    x: Array, mask: Array, scale: Array, shift: Array, mean: Array, var: Array
) -> tuple[Array, Array, Array]:
    """z = scale (x - m) r + shift with m, v of the real samples, r = (v + eps)^-1/2.

    Its gradient, n real positions and x^ = (x - m) r, is closed:
      dscale = sum dz x^,  dshift = sum dz,
      dx = scale r (dz - mask (dshift + x^ dscale) / n).

    Args:
      x: [B, ..., F].
      mask: [B], 1 for real samples.
      scale: [F].
      shift: [F].
      mean: [F], m where no sample is real; no gradient flows into it.
      var: [F], v where no sample is real; no gradient flows into it.

    Returns:
      z like x, and m and v [F]; no gradient flows through these two.

    Example:
      >>> x, one = jnp.array([[1.0], [3.0], [9.0]]), jnp.ones(1)
      >>> z, m, v = normalised(x, jnp.array([1.0, 1.0, 0.0]), one, 5 * one, one, one)
      >>> z[:2].round(2).tolist(), m.tolist(), v.tolist()
      ([[4.0], [6.0]], [2.0], [1.0])
    """
    return _forward(x, mask, scale, shift, mean, var)[0]


def _forward(
    x: Array, mask: Array, scale: Array, shift: Array, mean: Array, var: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    rows = mask.reshape(-1, *(1 for _ in x.shape[1:]))
    share = 1.0 / jnp.maximum(real_positions(x, mask), 1.0)
    any_real = mask.sum() > 0
    mean = jnp.where(any_real, share * channel_sums(jnp.multiply, x, rows), mean)
    middle = like(mean, x)
    squares = channel_sums(lambda x, real: real * (x - middle) ** 2, x, rows)
    var = jnp.where(any_real, share * squares, var)
    factor = jax.lax.rsqrt(var + NORM_EPSILON)
    z = (_wide(x) - middle) * like(factor * scale, x) + like(shift, x)
    return (z.astype(x.dtype), mean, var), (x, rows, scale, mean, factor, share)


def _backward(residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]):
    x, rows, scale, mean, factor, share = residuals
    dz, middle = cotangents[0], like(mean, x)
    dshift = channel_sums(lambda dz: dz, dz)
    dscale = factor * channel_sums(lambda dz, x: dz * (x - middle), dz, x)
    slope, level = share * factor * dscale, share * dshift
    drift = rows * ((_wide(x) - middle) * like(slope, x) + like(level, x))
    dx = (_wide(dz) - drift) * like(scale * factor, x)
    nothing = jnp.zeros_like(mean)
    return dx.astype(x.dtype), jnp.zeros(len(x)), dscale, dshift, nothing, nothing


normalised.defvjp(_forward, _backward)


def channel_sums(term: Callable[..., Array], *arrays: Array) -> Array:
    """[F]: the sum of ``term(*arrays)`` over all axes but the last, in float32.

    Args:
      term: Elementwise, of slices [n, ..., F] or [n, ..., 1] along the first axis.
      *arrays: [B, ..., F] or [B, ..., 1].

    Example:
      >>> x = jnp.arange(12.0).reshape(6, 2)
      >>> channel_sums(lambda x: 2 * x, x).tolist()
      [60.0, 72.0]
    """
    samples = len(arrays[0])
    slices = max(n for n in range(1, SLICES + 1) if samples % n == 0)
    parts = [x.reshape(slices, -1, *x.shape[1:]) for x in arrays]
    terms = [term(*(_wide(part[i]) for part in parts)) for i in range(slices)]
    rows = functools.reduce(jnp.add, terms)
    rows = rows.reshape(-1, rows.shape[-1])
    return jnp.dot(jnp.ones(len(rows)), rows, precision=jax.lax.Precision.HIGHEST)


def real_positions(x: Array, mask: Array) -> Array:
    """Number of positions of x [B, ..., F] in samples that mask [B] keeps."""
    return mask.sum() * math.prod(x.shape[1:-1])


def like(vector: Array, x: Array) -> Array:
    """[F] as [1, ..., 1, F], of as many axes as x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _wide(x: Array) -> Array:
    """Float32: sums of a batch need it, whatever precedes."""
    return x.astype(jnp.float32)
