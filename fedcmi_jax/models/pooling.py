"""Max pooling by slices and ``maximum``.

On CPU the gradient of XLA's own, ``reduce_window``, is over ten times slower.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedcmi_jax.models.apart import apart
from fedcmi_jax.types import Array

Picked = tuple[Array, int]
"""What the gradient needs: which of three was taken, and the size pooled from."""


def max_pool(x: Array) -> Array:
    """3x3 max pooling of NHWC images, stride 2, padding 1, one axis after the other.

    Of equal values the first one gets the gradient.

    Example:
      >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0].tolist()
      [[4.0, 5.0], [7.0, 8.0]]
    """
    with jax.named_scope("max_pool"):
        return _pool(2, _pool(1, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(axis: int, x: Array) -> Array:
    return _largest(*_windows(axis, x))


def _forward(axis: int, x: Array) -> tuple[Array, Picked]:
    pick = functools.partial(_pick, axis)
    y, picked = lax.platform_dependent(x, cpu=apart(pick), default=pick)
    return y, (picked, x.shape[axis])


def _pick(axis: int, x: Array) -> tuple[Array, Array]:
    before, own, after = _windows(axis, x)
    y = _largest(before, own, after)
    first, second, third = (lax.full(y.shape, i, jnp.int8) for i in range(3))
    later = lax.select(lax.eq(own, y), second, third)
    return y, lax.select(lax.eq(before, y), first, later)


def _backward(axis: int, residuals: Picked, dy: Array) -> tuple[Array]:
    picked, size = residuals
    before, own, after = (jnp.where(picked == i, dy, 0) for i in range(3))
    odd = after + _shift(before, axis, -1, 0)
    # Stacked in front and moved: XLA:CPU interleaves slowly where it stacks.
    dx = jnp.moveaxis(jnp.stack([own, odd]), 0, axis + 1)
    dx = dx.reshape(*dy.shape[:axis], -1, *dy.shape[axis + 1 :])
    return (lax.slice_in_dim(dx, 0, size, axis=axis),)


_pool.defvjp(_forward, _backward)


def _largest(before: Array, own: Array, after: Array) -> Array:
    return lax.max(lax.max(before, own), after)


def _windows(axis: int, x: Array) -> tuple[Array, Array, Array]:
    """Neighbour before, own and neighbour after of every second entry."""
    out = (x.shape[axis] + 1) // 2
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (0, 2 * out - x.shape[axis], 0)
    x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
    x = x.reshape(*x.shape[:axis], out, 2, *x.shape[axis + 1 :])
    own, after = (lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1))
    return _shift(after, axis, 1, -jnp.inf), own, after


def _shift(x: Array, axis: int, by: int, fill: float) -> Array:
    """x[i - by] at i, ``fill`` where there is none."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (by, -by, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), pads)
