"""Convolutions by kernels of three taps with half the multiplications.

Winograd's minimal filtering F(4, 3) (Lavin and Gray, arXiv 1509.09308) along one axis:
four outputs of a filter of three taps are y = A'(G w * B' d) of six inputs d: six
products of channels instead of twelve. The other axis is convolved as usual. Matrices
are those of the points 0, 1, -1, 2, -2; results are within 1e-5 of the largest one.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from fedcmi_jax.types import Array

TAPS = 3
TILE = 4
"""Outputs that share six products."""
LEAST_CHANNELS = 32
"""With fewer, the sums around the products cost more than the products saved."""
MOST_WASTE = 1.5
"""Padded over real outputs where it is still worth it; of half the products."""

CACHED = 2**20
"""Numbers in images that caches still hold; see ``saves_kernel_gradient``."""

Product = Callable[[Array, Array], Array]


def axis_of(taps: tuple[int, ...], outputs: tuple[int, ...]) -> int | None:
    """The spatial axis, 0 or 1, to filter along; None: neither is worth it.

    Args:
      taps: Size of the kernel.
      outputs: Size of the output.

    Example:
      >>> axis_of((3, 3), (9, 10)), axis_of((5, 5), (8, 8)), axis_of((3, 3), (2, 2))
      (1, None, None)
    """
    waste = [_tiles(n) * TILE / n for n in outputs]
    able = [i for i in (0, 1) if taps[i] == TAPS and waste[i] < MOST_WASTE]
    return min(able, key=lambda i: waste[i], default=None)


def filtered(product: Product, axis: int, size: int, x: Array, w: Array) -> Array:
    """Convolution along an axis of x, whose first and last outputs see all taps.

    Args:
      product: Convolution of [B, ..., C] by a kernel with one tap along the axis.
      axis: Spatial axis, 0 or 1.
      size: Outputs along it.
      x: [B, H, W, C], padded along the axis by the convolution's zeros.
      w: [3, l, C, F], or [k, 3, C, F] for axis 1.

    Returns:
      [B, H', W', F].
    """
    tiles = _tiles(size)
    kernels = _kernel_points(_parts(w, axis, 1))
    inputs = _input_points(_windows(x, axis + 1, tiles))
    points = [product(d, k) for d, k in zip(inputs, kernels, strict=True)]
    y = jnp.stack(_outputs(points), axis + 2)
    shape = (*y.shape[: axis + 1], TILE * tiles, *y.shape[axis + 3 :])
    return lax.slice_in_dim(y.reshape(shape), 0, size, axis=axis + 1)


def kernel_gradient(product: Product, axis: int, x: Array, dy: Array) -> Array:
    """Gradient with respect to the kernel of ``filtered``: F(4, 3) transposed.

    Args:
      product: The same gradient of the convolution with one tap along the axis, of
        x and dy as given here.
      axis: Spatial axis, 0 or 1.
      x: [C, H, W, B], padded along the axis as for ``filtered``.
      dy: [H', W', B, F].

    Returns:
      [C, 3, l, F], or [C, k, 3, F] for axis 1.
    """
    size = dy.shape[axis]
    tiles = _tiles(size)
    inputs = _input_points(_windows(x, axis + 1, tiles))
    dy = _grown(dy, axis, TILE * tiles)
    dy = dy.reshape(*dy.shape[:axis], tiles, TILE, *dy.shape[axis + 1 :])
    slopes = _output_points([_at(dy, i, axis + 1) for i in range(TILE)])
    points = [product(d, s) for d, s in zip(inputs, slopes, strict=True)]
    return jnp.concatenate(_kernel_taps(points), axis + 1)


def saves_kernel_gradient(shape: tuple[int, ...]) -> bool:
    """Whether ``kernel_gradient`` of images [B, H, W, C] is faster, as measured.

    It moves images more often than ``filtered``: it takes more channels to pay.
    """
    return shape[3] >= 4 * LEAST_CHANNELS or (
        shape[3] >= 2 * LEAST_CHANNELS and math.prod(shape) < CACHED
    )


def _tiles(outputs: int) -> int:
    return -(-outputs // TILE)


def _parts(x: Array, axis: int, size: int) -> list[Array]:
    count = x.shape[axis] // size
    return [
        lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis) for i in range(count)
    ]


def _at(x: Array, i: int, axis: int) -> Array:
    return lax.index_in_dim(x, i, axis, keepdims=False)


def _grown(x: Array, axis: int, size: int) -> Array:
    """Zeros after x, or x cut off, so that it has that size."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (0, size - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _windows(x: Array, axis: int, tiles: int) -> list[Array]:
    """The six inputs of every tile, four apart: [..., tiles, ...] each."""
    x = _grown(x, axis, TILE * (tiles + 1))
    x = x.reshape(*x.shape[:axis], tiles + 1, TILE, *x.shape[axis + 1 :])
    first = lax.slice_in_dim(x, 0, tiles, axis=axis)
    second = lax.slice_in_dim(x, 1, tiles + 1, axis=axis)
    own = [_at(first, i, axis + 1) for i in range(TILE)]
    return own + [_at(second, i, axis + 1) for i in range(TAPS - 1)]


def _input_points(d: list[Array]) -> list[Array]:
    """B' d."""
    even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1]
    near, far = d[4] - d[2], 2 * (d[3] - d[1])
    return [
        4 * d[0] - 5 * d[2] + d[4],
        even + odd,
        even - odd,
        near + far,
        near - far,
        4 * d[1] - 5 * d[3] + d[5],
    ]


def _kernel_points(w: list[Array]) -> list[Array]:
    """G w."""
    near, far = (w[0] + w[2]) * (-1 / 6), w[0] * (1 / 24) + w[2] * (1 / 6)
    one, two = w[1] * (1 / 6), w[1] * (1 / 12)
    return [w[0] * (1 / 4), near - one, near + one, far + two, far - two, w[2]]


def _outputs(m: list[Array]) -> list[Array]:
    """A' m."""
    near, far = (m[1] + m[2], m[1] - m[2]), (m[3] + m[4], m[3] - m[4])
    return [
        m[0] + near[0] + far[0],
        near[1] + 2 * far[1],
        near[0] + 4 * far[0],
        near[1] + 8 * far[1] + m[5],
    ]


def _output_points(y: list[Array]) -> list[Array]:
    """A y."""
    near, far = (y[0] + y[2], y[1] + y[3]), (y[0] + 4 * y[2], 2 * y[1] + 8 * y[3])
    return [
        y[0],
        near[0] + near[1],
        near[0] - near[1],
        far[0] + far[1],
        far[0] - far[1],
        y[3],
    ]


def _kernel_taps(m: list[Array]) -> list[Array]:
    """G' m."""
    near, far = m[1] + m[2], m[3] + m[4]
    return [
        m[0] * (1 / 4) - near * (1 / 6) + far * (1 / 24),
        (m[2] - m[1]) * (1 / 6) + (m[3] - m[4]) * (1 / 12),
        (far - near) * (1 / 6) + m[5],
    ]
