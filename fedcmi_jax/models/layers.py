"""Layers with the conventions of the reference code: masks, torch BatchNorm, init.

Everything is written for ONE client and mapped over clients by the round, so no layer
may use an operation that XLA runs badly in loops or under per-client weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.batch_norm import NORM_EPSILON, like, normalised, real_positions
from fedcmi_jax.models.convolution import convolution
from fedcmi_jax.types import Array

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the new batch in the running statistics (torch's default)."""

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


class Conv(nn.Conv):
    """``flax.linen.Conv`` that is fast on CPU inside a client's training loop.

    Attributes, parameters (``kernel``, ``bias``) and numbers are those of
    ``flax.linen.Conv``; only the product is ``convolution``, whose gradients XLA runs
    fast there, and which runs clients that are mapped together one after the other.

    Example:
      >>> layer = Conv(16, (3, 3), strides=2)
      >>> x = jnp.ones((1, 8, 8, 3))
      >>> y, variables = layer.init_with_output(jax.random.key(0), x)
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 4, 4, 16), (3, 3, 3, 16))
    """

    conv_general_dilated_cls: Any = functools.partial(lambda: convolution)


def conv(
    x: Array,
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    use_bias: bool = True,
    pool: Callable[[Array], Array] | None = None,
    name: str,
) -> Array:
    """Convolution of the reference code, in the calling module under that name.

    Zero padding of k // 2; initialisation of methods 0.2.

    Args:
      x: Signals [B, L, C] or images [B, H, W, C].
      features: Output channels F.
      kernel: Length of the kernel k along every axis.
      stride: Step along every axis.
      scale: [C]; with ``shift`` the convolution is that of ``scale * x + shift``. The
        map goes into the kernel, so no gradient to x is needed to learn it.
      shift: [C].
      use_bias: Whether to add a bias.
      pool: Max pooling of the result; the bias is added to its smaller output, which
        gives the same numbers, for rounding keeps the order.
      name: Of the layer.

    Returns:
      [B, L / stride, F] or [B, H / stride, W / stride, F], rounded up; or pooled.
    """
    axes = x.ndim - 2
    product: Callable[..., Array] = convolution
    if scale is not None and shift is not None:
        product = functools.partial(_affine_convolution, scale, shift)
    if pool is not None:
        product = functools.partial(_pooled, pool, product)
    layer = Conv(
        features,
        (kernel,) * axes,
        stride,
        kernel // 2,
        use_bias=use_bias,
        kernel_init=kaiming_normal_fan_out,
        bias_init=torch_conv_bias(kernel**axes * x.shape[-1]),
        conv_general_dilated_cls=lambda: product,
        name=name,
    )
    return layer(x)


def _affine_convolution(
    scale: Array, shift: Array, x: Array, weights: Array, *args: Any, **options: Any
) -> Array:
    """Convolution of ``scale * x + shift``: a channel of ones carries the shift.

    It is zero in the padding, as it must be.
    """
    constant = jnp.einsum("...cf,c->...f", weights, shift)[..., None, :]
    wide = (1,) * (weights.ndim - 2) + (-1, 1)
    weights = jnp.concatenate([weights * scale.reshape(wide), constant], axis=-2)
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
    return convolution(x, weights, *args, **options)


def _pooled(
    pool: Callable[[Array], Array],
    product: Callable[..., Array],
    *args: Any,
    **options: Any,
) -> Array:
    return pool(product(*args, **options))


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
        x = self._normalised(x, mask, train, jnp.ones(shape), jnp.zeros(shape))
        return x, scale, shift

    def _normalised(
        self, x: Array, mask: Array, train: bool, scale: Array, shift: Array
    ) -> Array:
        """Normalises x and maps it; in training, updates the statistics."""
        shape = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = mean_var.value, var_var.value
        if not train:
            factor = jax.lax.rsqrt(var + NORM_EPSILON) * scale
            z = (x.astype(jnp.float32) - like(mean, x)) * like(factor, x)
            return (z + like(shift, x)).astype(x.dtype)
        z, batch_mean, batch_var = normalised(x, mask, scale, shift, mean, var)
        if not self.is_initializing():
            count = real_positions(x, mask)
            besides = jnp.maximum(count - 1.0, 1.0)
            unbiased = batch_var * (jnp.maximum(count, 1.0) / besides)
            rate = jnp.where(count > 0, BATCH_NORM_MOMENTUM, 0.0)
            mean_var.value = mean + rate * (batch_mean - mean)
            var_var.value = var + rate * (unbiased - var)
        return z


class MappedBatchNorm(BatchNorm):
    """BatchNorm with its affine map, in one pass; the same parameters."""

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:  # type: ignore[override]
        """Normalises and maps x [B, ..., F]; mask [B] is 1 for real samples."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("bias", nn.initializers.zeros, shape)
        return self._normalised(x, mask, train, scale, shift)


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
