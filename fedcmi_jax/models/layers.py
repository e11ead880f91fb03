"""Layers with the conventions of the reference code: masks, torch BatchNorm, init.

Everything is written for ONE client and mapped over clients by the round, so no layer
may use an operation that XLA runs badly under per-client weights. In particular a
convolution is patches times a matrix: ``lax.conv`` under vmapped weights becomes a
grouped convolution, an order of magnitude slower on CPU.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics (torch's default)."""
NORM_EPSILON = 1e-5
"""Added to a variance before the square root (torch's default)."""

FEW_CHANNELS = 8
"""Up to here a convolution cuts wide patches; measured on CPU, see docs/speed.md."""

xavier_normal = nn.initializers.xavier_normal()
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming-normal, fan_out, ReLU gain, not truncated: methods 0.2."""


def dense(features: int, name: str) -> nn.Dense:
    """A linear layer, Xavier-normal weights and zero bias (methods 0.2)."""
    return nn.Dense(features, kernel_init=xavier_normal, name=name)


def torch_conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), the framework default that methods 0.2 keeps."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _patches(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """[B, H, W, C] -> [B, H', W', k * k * C], taps in row-major order."""
    height, width = (
        (size + 2 * padding - kernel) // stride + 1 for size in x.shape[1:3]
    )
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    below, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [
        x[:, i : i + below : stride, j : j + right : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _wide_patches(x: Array, kernel: int, stride: int, padding: int, run: int) -> Array:
    """[B, H, W, C] -> [B, H', W' / run, k * 2 run s * C]: what ``run`` outputs see.

    Two neighbouring blocks of ``run * s`` columns each: few, long, contiguous copies.
    """
    batch, height, width, channels = x.shape
    out_height = (height + 2 * padding - kernel) // stride + 1
    blocks = ((width + 2 * padding - kernel) // stride + 1) // run
    block = run * stride
    right = max((blocks + 1) * block - width - padding, 0)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, right), (0, 0)))
    x = x[:, :, : (blocks + 1) * block]
    x = x.reshape(batch, -1, blocks + 1, block * channels)
    below = stride * (out_height - 1) + 1
    shifted = [
        x[:, i : i + below : stride, j : j + blocks]
        for i in range(kernel)
        for j in (0, 1)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _wide_weights(weights: Array, stride: int, run: int) -> Array:
    """The kernel at its ``run`` places in a wide patch: [k * 2 run s * C, run * F]."""
    kernel, _, channels, features = weights.shape
    columns = 2 * run * stride
    placed = [
        jnp.pad(
            weights,
            ((0, 0), (stride * i, columns - kernel - stride * i), (0, 0), (0, 0)),
        )
        for i in range(run)
    ]
    wide = jnp.stack(placed, axis=3)
    return wide.reshape(kernel * columns * channels, run * features)


def _lowered(
    x: Array, weights: Array, stride: int, padding: int
) -> tuple[Array, Callable[[Array], Array]]:
    """A convolution as (patches [rows, ..], kernel -> matrix [.., outputs])."""
    kernel, _, channels, features = weights.shape
    run = -(-kernel // stride) - 1  # wide enough for two blocks to hold the last window
    width = (x.shape[2] + 2 * padding - kernel) // stride + 1
    if channels <= FEW_CHANNELS and run > 1 and width % run == 0:
        patches = _wide_patches(x, kernel, stride, padding, run)
        matrix = functools.partial(_wide_weights, stride=stride, run=run)
    else:
        patches = _patches(x, kernel, stride, padding)
        matrix = functools.partial(jnp.reshape, shape=(-1, features))
    return patches.reshape(-1, patches.shape[-1]), matrix


def _product(x: Array, weights: Array, stride: int, padding: int) -> Array:
    kernel, features = weights.shape[0], weights.shape[-1]
    height, width = (
        (size + 2 * padding - kernel) // stride + 1 for size in x.shape[1:3]
    )
    patches, matrix = _lowered(x, weights, stride, padding)
    return (patches @ matrix(weights)).reshape(len(x), height, width, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: Array, weights: Array, stride: int, padding: int) -> Array:
    """Convolution of NHWC images as patches x matrix, with a gradient to match.

    The gradient is written out because patches are many times the size of the images.
    They are cut again rather than kept. At stride 1 the gradient to the images is again
    a convolution, with the kernel flipped; the transpose of cutting patches (a sum of
    shifted pads) takes several times as long. And the barrier keeps XLA from computing
    what precedes the weight gradient in that product's transposed layout. Images of few
    channels are cut into patches for several outputs in a row: more multiplications, in
    a better-shaped product, for less than half of the copying.

    Args:
      x: [B, H, W, C].
      weights: [k, k, C, F].
      stride: Step s in pixels.
      padding: Zeros added on every side, less than k.

    Returns:
      [B, H', W', F].
    """
    return _product(x, weights, stride, padding)


def _conv2d_forward(x: Array, weights: Array, stride: int, padding: int):
    return _product(x, weights, stride, padding), (x, weights)


def _conv2d_backward(stride: int, padding: int, residuals, dy: Array):
    x, weights = residuals
    patches, matrix = _lowered(x, weights, stride, padding)
    patches, dy = jax.lax.optimization_barrier((patches, dy))
    d_matrix = patches.T @ dy.reshape(len(patches), -1)
    d_weights = jax.linear_transpose(matrix, weights)(d_matrix)[0]
    if stride == 1:
        flipped = weights[::-1, ::-1].swapaxes(2, 3)
        return _product(dy, flipped, 1, weights.shape[0] - 1 - padding), d_weights
    cut = functools.partial(_product, weights=weights, stride=stride, padding=padding)
    return jax.linear_transpose(cut, x)(dy)[0], d_weights


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


Lowering = Literal["auto", "patches", "lax"]
LOWERINGS: dict[str, Lowering] = {"cpu": "patches"}
"""Backend -> lowering of a convolution for ``auto``; elsewhere lax.conv.

Measured on CPU. No accelerator was at hand: there it is XLA's own convolution."""


class Conv(nn.Module):
    """2-D convolution of NHWC images, optionally of an affine map of them.

    ``Conv(x, scale, shift)`` is the convolution of ``scale * x + shift`` with zero
    padding. The map goes into the kernel: an input channel of ones carries the shift
    (it is zero in the padding, as it must be). So no gradient with respect to the
    images is needed to learn scale and shift.

    Attributes:
      features: Output channels.
      kernel: Side of the square kernel.
      stride: Step in pixels.
      padding: Zeros added on every side.
      use_bias: Whether to add a bias.
      lowering: patches (``conv2d``), lax (XLA's convolution), or auto: by backend.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Array, scale: Array | None = None, shift: Array | None = None
    ) -> Array:
        """Maps [B, H, W, C] to [B, H', W', features]; scale and shift [C]."""
        k, channels = self.kernel, x.shape[-1]
        weights = self.param(
            "kernel", kaiming_normal_fan_out, (k, k, channels, self.features)
        )
        if scale is not None and shift is not None:
            constant = jnp.einsum("ijcf,c->ijf", weights, shift)[:, :, None]
            weights = jnp.concatenate(
                [weights * scale[None, None, :, None], constant], axis=2
            )
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
        lowering = self.lowering
        if lowering == "auto":
            lowering = LOWERINGS.get(jax.default_backend(), "lax")
        if lowering == "patches":
            y = conv2d(x, weights, self.stride, self.padding)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                weights,
                (self.stride, self.stride),
                [(self.padding, self.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            init = torch_conv_bias(k * k * channels)
            y = y + _like(self.param("bias", init, (self.features,)), y)
        return y


def max_pool(x: Array) -> Array:
    """3x3 max pooling of NHWC images, stride 2, padding 1, one axis after the other.

    Slices and ``maximum``: the gradient of ``reduce_window`` is over ten times slower
    on CPU.
    """
    for axis in (1, 2):
        out = (x.shape[axis] + 1) // 2
        pad = [(0, 0)] * x.ndim
        pad[axis] = (1, 2 * out - x.shape[axis])
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        before, own, after = (
            jax.lax.slice_in_dim(x, i, i + 2 * out - 1, 2, axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(before, own), after)
    return x


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, of the real samples only.

    Torch's conventions: ``running <- 0.9 running + 0.1 batch`` with the unbiased batch
    variance n/(n-1) var; normalisation by the biased one; epsilon 1e-5. A batch
    without a real sample is normalised by the running statistics and leaves them as
    they are.
    """

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, train: bool
    ) -> tuple[Array, Array, Array]:
        """Normalises x [B, ..., F]; mask [B] is 1 for real samples.

        Returns:
          The normalised x, and the affine map to follow: scale [F] and shift [F].
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = mean_var.value, var_var.value
        dtype = x.dtype
        x = x.astype(jnp.float32)  # sums of a batch need it, whatever precedes
        if train:
            count = mask.sum() * (x.size // (x.shape[0] * x.shape[-1]))
            safe = jnp.maximum(count, 1.0)
            batch_mean = _masked_sum(x, mask) / safe
            batch_var = _masked_sum((x - _like(batch_mean, x)) ** 2, mask) / safe
            if not self.is_initializing():
                unbiased = batch_var * safe / jnp.maximum(count - 1.0, 1.0)
                rate = jnp.where(count > 0, BATCH_NORM_MOMENTUM, 0.0)
                mean_var.value = jax.lax.stop_gradient(
                    mean + rate * (batch_mean - mean)
                )
                var_var.value = jax.lax.stop_gradient(var + rate * (unbiased - var))
            mean = jnp.where(count > 0, batch_mean, mean)
            var = jnp.where(count > 0, batch_var, var)
        factor = jax.lax.rsqrt(var + NORM_EPSILON)
        normalised = (x - _like(mean, x)) * _like(factor, x)
        return normalised.astype(dtype), scale, shift


class GroupNorm(nn.Module):
    """GroupNorm over each sample's positions and a group of channels.

    Attributes:
      groups: Upper bound on the number of groups; the greatest divisor of the channel
        count not above it is used.
    """

    groups: int = 8

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, train: bool
    ) -> tuple[Array, Array, Array]:
        """Normalises x [B, ..., F] per sample; mask and train change nothing.

        Returns:
          The normalised x, and the affine map to follow: scale [F] and shift [F].
        """
        del mask, train
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        groups = next(g for g in range(self.groups, 0, -1) if shape[0] % g == 0)
        norm = nn.GroupNorm(
            groups, epsilon=NORM_EPSILON, use_scale=False, use_bias=False
        )
        return norm(x), scale, shift


NORMS = {"batch": BatchNorm, "group": GroupNorm}


def _like(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _masked_sum(x: Array, mask: Array) -> Array:
    """[F]: sum of x [B, ..., F] over the samples that mask [B] keeps.

    The samples are summed by a matrix product: XLA:CPU runs a reduction whose last axis
    is short (a gray image) many times slower.
    """
    rows = x.reshape(x.shape[0], -1)
    total = jnp.dot(mask, rows, precision=jax.lax.Precision.HIGHEST)
    return total.reshape(-1, x.shape[-1]).sum(0)
