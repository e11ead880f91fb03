"""Layers with the conventions of the reference code: masks, torch BatchNorm, init.

Everything is written for ONE client and mapped over clients by the round, so no layer
may use an operation that XLA runs badly under per-client weights. In particular a
convolution is patches times a matrix: ``lax.conv`` under vmapped weights becomes a
grouped convolution, an order of magnitude slower on CPU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics (torch's default)."""
NORM_EPSILON = 1e-5
"""Added to a variance before the square root (torch's default)."""

xavier_normal = nn.initializers.xavier_normal()
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming-normal, fan_out, ReLU gain, not truncated: methods 0.2."""


def dense(features: int, name: str) -> nn.Dense:
    """A linear layer, Xavier-normal weights and zero bias (methods 0.2)."""
    return nn.Dense(features, kernel_init=xavier_normal, name=name)


def _torch_conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), the framework default that methods 0.2 keeps."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """2-D convolution of NHWC images as patches x matrix.

    Attributes:
      features: Output channels.
      kernel: Side of the square kernel.
      stride: Step in pixels.
      padding: Zeros added on every side.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        k, s, p = self.kernel, self.stride, self.padding
        batch, height, width, channels = x.shape
        weights = self.param(
            "kernel", kaiming_normal_fan_out, (k, k, channels, self.features)
        )
        bias = self.param("bias", _torch_conv_bias(k * k * channels), (self.features,))
        out_h = (height + 2 * p - k) // s + 1
        out_w = (width + 2 * p - k) // s + 1
        x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        shifted = [
            x[:, i : i + s * (out_h - 1) + 1 : s, j : j + s * (out_w - 1) + 1 : s]
            for i in range(k)
            for j in range(k)
        ]
        patches = jnp.concatenate(shifted, axis=-1).reshape(-1, k * k * channels)
        y = patches @ weights.reshape(-1, self.features)
        return y.reshape(batch, out_h, out_w, self.features) + bias[None, None, None]


def max_pool(x: Array, window: int = 3, stride: int = 2, padding: int = 1) -> Array:
    """Max pooling of NHWC images by shifted slices.

    The gradient of ``reduce_window`` is over ten times slower on CPU than that of
    slices and maximum; the values are the same.
    """

    def pool(x: Array, axis: int) -> Array:
        out = (x.shape[axis] + 2 * padding - window) // stride + 1
        pad = [(0, 0)] * x.ndim
        pad[axis] = (padding, padding)
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        stop = stride * (out - 1) + 1
        result = jax.lax.slice_in_dim(x, 0, stop, stride, axis)
        for i in range(1, window):
            shifted = jax.lax.slice_in_dim(x, i, i + stop, stride, axis)
            result = jnp.maximum(result, shifted)
        return result

    return pool(pool(x, 1), 2)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, of the real samples only.

    Torch's conventions: ``running <- 0.9 running + 0.1 batch`` with the unbiased batch
    variance n/(n-1) var; normalisation by the biased one; epsilon 1e-5. A batch
    without a real sample is normalised by the running statistics and leaves them as
    they are.
    """

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Normalises x [B, ..., F]; mask [B] is 1 for real samples."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = mean_var.value, var_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            weights = mask.reshape((-1,) + (1,) * (x.ndim - 1))
            pixels = x.size // (x.shape[0] * x.shape[-1])
            count = mask.sum() * pixels
            safe = jnp.maximum(count, 1.0)
            batch_mean = (x * weights).sum(axes) / safe
            centred = (x - _like(batch_mean, x)) * weights
            batch_var = (centred**2).sum(axes) / safe
            if not self.is_initializing():
                unbiased = batch_var * safe / jnp.maximum(count - 1.0, 1.0)
                rate = jnp.where(count > 0, BATCH_NORM_MOMENTUM, 0.0)
                mean_var.value = jax.lax.stop_gradient(
                    mean + rate * (batch_mean - mean)
                )
                var_var.value = jax.lax.stop_gradient(var + rate * (unbiased - var))
            mean = jnp.where(count > 0, batch_mean, mean)
            var = jnp.where(count > 0, batch_var, var)
        factor = scale * jax.lax.rsqrt(var + NORM_EPSILON)
        return (x - _like(mean, x)) * _like(factor, x) + _like(shift, x)


class GroupNorm(nn.Module):
    """GroupNorm over each sample's positions and a group of channels.

    Attributes:
      groups: Upper bound on the number of groups; the greatest divisor of the channel
        count not above it is used.
    """

    groups: int = 8

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Normalises x [B, ..., F] per sample; mask and train change nothing."""
        del mask, train
        channels = x.shape[-1]
        groups = next(g for g in range(self.groups, 0, -1) if channels % g == 0)
        return nn.GroupNorm(num_groups=groups, epsilon=NORM_EPSILON, name="norm")(x)


NORMS = {"batch": BatchNorm, "group": GroupNorm}


def _like(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
