"""Convolution whose gradients the CPU backend also runs fast inside loops.

XLA:CPU has fast kernels for convolutions of channels-last images (NHWC, HWIO, NHWC) and
a pass that brings others into this form, but not those in the body of a loop, where a
client's training happens: there they run 30 to 50 times slower. A forward convolution
has the form; the two gradients that JAX derives of it have not. Here they are written
as convolutions that have it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedcmi_jax.models import minimal_filtering
from fedcmi_jax.models.apart import apart
from fedcmi_jax.types import Array

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
"""The one form of a 2-D convolution that XLA:CPU runs fast wherever it is."""

Pairs = tuple[tuple[int, int], ...]


class Window(NamedTuple):
    """How a 2-D kernel walks over images; every entry is per spatial axis.

    Attributes:
      strides: Step s in pixels.
      padding: Zeros (before, after); negative: pixels cut off.
      dilation: Distance d between neighbouring taps of the kernel, in pixels.
      precision: As of ``lax.conv_general_dilated``.
    """

    strides: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    precision: lax.PrecisionLike = None


def convolution(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> Array:
    """``lax.conv_general_dilated`` with gradients that are fast on CPU inside loops.

    For y[o] = sum_i x[s o + d i - p] w[i] (stride s, dilation d, p zeros before):
      dx[n] = sum_i dy[(n + p - d i) / s] w[i]: dy spread by s, kernel reversed;
      dw[i] = sum_o x[s o + d i - p] dy[o]: dy is the kernel, dilated by s, stride d.
    Mapped over clients (``jax.vmap``) it runs one client after the other on CPU, where
    XLA's convolution with a kernel per client is slow. Elsewhere both are XLA's own,
    which for TPU its compiler estimates to be the fastest form (docs/speed.md); the
    choice is made for the platform that a program is compiled for.

    Gradients are of reverse mode and first order. XLA's own are taken, slow in loops on
    CPU, for what no encoder here needs: groups, ``lhs_dilation``, three spatial axes,
    and other than channels-last arrays.

    Args:
      lhs: x, [B, L, C] signals or [B, H, W, C] images.
      rhs: w, [k, C, F] or [k, l, C, F].
      window_strides: Step per spatial axis.
      padding: SAME, VALID, or (before, after) per spatial axis.
      lhs_dilation: As of ``lax.conv_general_dilated``.
      rhs_dilation: Dilation of the kernel per spatial axis; None: 1.
      dimension_numbers: As of ``lax.conv_general_dilated``; channels-last to be fast.
      feature_group_count: Groups of channels.
      precision: As of ``lax.conv_general_dilated``.

    Returns:
      [B, L', F] or [B, H', W', F].

    Example:
      >>> import jax.numpy as jnp
      >>> x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
      >>> convolution(x, w, (2, 2), "VALID", dimension_numbers=CHANNELS_LAST).shape
      (1, 2, 2, 4)
    """
    axes = lhs.ndim - 2
    ones = (1,) * axes
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=given,
        feature_group_count=feature_group_count,
        precision=precision,
    )
    known = (
        axes in (1, 2)
        and feature_group_count == 1
        and tuple(lhs_dilation or ones) == ones
        and given == _channels_last(axes)
        and 0 not in jax.eval_shape(plain, lhs, rhs).shape
    )
    if not known:
        return plain(lhs, rhs)
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or ones)
    if isinstance(padding, str):
        spans = [d * (k - 1) + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], spans, strides, padding)
    pads = tuple((before, after) for before, after in padding)
    if axes == 2:
        return _convolution(Window(strides, pads, dilation, precision), lhs, rhs)
    window = Window((1, *strides), ((0, 0), *pads), (1, *dilation), precision)
    return _convolution(window, lhs[:, None], rhs[None])[:, 0]


def _channels_last(axes: int) -> lax.ConvDimensionNumbers:
    last, spatial = axes + 1, range(1, axes + 1)
    images = (0, last, *spatial)
    return lax.ConvDimensionNumbers(images, (last, axes, *range(axes)), images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(window: Window, x: Array, w: Array) -> Array:
    fast = functools.partial(_fast, window)
    return _on_platform(fast, x, w, elsewhere=functools.partial(_forward, window))


def _with_residuals(window: Window, x: Array, w: Array):
    return _convolution(window, x, w), (x, w)


def _gradients(window: Window, residuals: tuple[Array, Array], dy: Array):
    x, w = residuals
    forward = functools.partial(_forward, window)

    def dx_own(w: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda x: forward(x, w), x)(dy)[0]

    def dw_own(x: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda w: forward(x, w), w)(dy)[0]

    # Apart, so that the one nobody asks for (dx of the samples) is not computed.
    dx = _on_platform(
        functools.partial(_dx, window, x.shape[1:3]), w, dy, elsewhere=dx_own
    )
    dw = _on_platform(
        functools.partial(_dw, window, w.shape[:2]), x, dy, elsewhere=dw_own
    )
    return dx, dw


_convolution.defvjp(_with_residuals, _gradients)


def _on_platform(
    function: Callable[..., Array],
    *args: Array,
    elsewhere: Callable[..., Array] | None = None,
) -> Array:
    """``function`` on CPU, client by client; ``elsewhere`` (None: the same) if not."""
    one_by_one = jax.custom_batching.sequential_vmap(function)
    return lax.platform_dependent(*args, cpu=one_by_one, default=elsewhere or function)


def _forward(window: Window, x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=CHANNELS_LAST,
        precision=window.precision,
    )


def _fast(window: Window, x: Array, w: Array) -> Array:
    """The same with fewer multiplications where that is faster on CPU."""
    sizes = jax.eval_shape(functools.partial(_forward, window), x, w).shape[1:3]
    axis = _filter_axis(window, w.shape, sizes, x.dtype)
    if axis is None:
        return _forward(window, x, w)
    product = functools.partial(_forward, _without_padding(window, axis))
    x = _pad(x, axis + 1, window.padding[axis])
    return minimal_filtering.filtered(product, axis, sizes[axis], x, w)


def _filter_axis(
    window: Window, kernel: tuple[int, ...], sizes: tuple[int, ...], dtype: Any
) -> int | None:
    plain = window._replace(strides=(1, 1), dilation=(1, 1), precision=None)
    channels = min(kernel[2:])
    if window != plain or dtype != jnp.float32:
        return None
    if channels < minimal_filtering.LEAST_CHANNELS:
        return None
    return minimal_filtering.axis_of(kernel[:2], sizes)


def _without_padding(window: Window, axis: int) -> Window:
    pads = list(window.padding)
    pads[axis] = (0, 0)
    return window._replace(padding=tuple(pads))


def _pad(x: Array, axis: int, pads: tuple[int, int]) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (*pads, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _dx(window: Window, sizes: tuple[int, ...], w: Array, dy: Array) -> Array:
    """Gradient [B, H, W, C] with respect to the images, H and W in ``sizes``."""
    padding = []
    for axis, (n, s, d) in enumerate(
        zip(sizes, window.strides, window.dilation, strict=True)
    ):
        before = window.padding[axis][0]
        reach, spread = d * (w.shape[axis] - 1), s * (dy.shape[axis + 1] - 1)
        padding.append((reach - before, n - 1 + before - spread))
    if window.strides == (1, 1):
        return _fast(window._replace(padding=tuple(padding)), dy, _reversed(w))
    return lax.conv_general_dilated(
        dy,
        _reversed(w),
        (1, 1),
        padding,
        lhs_dilation=window.strides,
        rhs_dilation=window.dilation,
        dimension_numbers=CHANNELS_LAST,
        precision=window.precision,
    )


def _dw(window: Window, taps: tuple[int, ...], x: Array, dy: Array) -> Array:
    """Gradient [k, l, C, F] with respect to the kernel, k and l in ``taps``.

    Channels are the batch and samples the channels of this convolution.
    """
    images, kernel = _to_correlate(x, dy)
    shape = (*taps, x.shape[3], dy.shape[3])
    axis = _filter_axis(window, shape, dy.shape[1:3], x.dtype)
    if axis is None or not minimal_filtering.saves_kernel_gradient(x.shape):
        dw = _correlation(window, taps, images, kernel)
    else:
        ones = tuple(1 if i == axis else k for i, k in enumerate(taps))
        inner = _without_padding(window, axis)
        product = functools.partial(_correlation, inner, ones)
        images = _pad(images, axis + 1, window.padding[axis])
        dw = minimal_filtering.kernel_gradient(product, axis, images, kernel)
    return dw.transpose(1, 2, 0, 3)


def _reversed(w: Array) -> Array:
    """[k, l, F, C]: in a loop over taps, or XLA transposes anew for every use."""
    taps = lax.map(jnp.transpose, w.reshape(-1, *w.shape[2:])[::-1])
    return taps.reshape(*w.shape[:2], *taps.shape[1:])


@apart
def _to_correlate(x: Array, dy: Array) -> tuple[Array, Array]:
    """[C, H, W, B] and [H', W', B, F]; the barrier keeps XLA from undoing it."""
    return lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))


def _correlation(
    window: Window, taps: tuple[int, ...], images: Array, kernel: Array
) -> Array:
    """Gradient [C, k, l, F] of the kernel, of x [C, H, W, B] and dy [H', W', B, F].

    XLA would hand it to YNNPACK, whose convolution by such large kernels is up to ten
    times slower, but for a dilation of the images: so images and kernel are both spread
    by 2 along the first axis, which changes no product and costs nothing.
    """
    spread = (2, 1)
    padding = []
    for axis, (k, s, d) in enumerate(
        zip(taps, window.strides, window.dilation, strict=True)
    ):
        before = window.padding[axis][0]
        span = s * (kernel.shape[axis] - 1) + 1
        after = d * (k - 1) + span - images.shape[axis + 1] - before
        padding.append((spread[axis] * before, spread[axis] * after))
    return lax.conv_general_dilated(
        images,
        kernel,
        tuple(a * d for a, d in zip(spread, window.dilation, strict=True)),
        padding,
        lhs_dilation=spread,
        rhs_dilation=tuple(a * s for a, s in zip(spread, window.strides, strict=True)),
        dimension_numbers=CHANNELS_LAST,
        precision=window.precision,
    )
