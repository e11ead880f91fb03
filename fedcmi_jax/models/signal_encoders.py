"""Encoders of sensor signals and spectrograms.

As in ``encoders``: what XLA runs badly under per-client weights is avoided. A 1-D
convolution is shifted slices times a matrix; the square kernels of ``layers.Conv``
would do k times the work on a signal.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.layers import (
    NORMS,
    Conv,
    Lowering,
    dense,
    kaiming_normal_fan_out,
    torch_conv_bias,
)
from fedcmi_jax.types import Array


class Conv1D(nn.Module):
    """Convolution along time, zero padding of k // 2 on both sides, stride 1.

    Attributes:
      features: Output channels.
      kernel: Odd length k of the kernel.
    """

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, C] to [B, T, features]."""
        k, length, channels = self.kernel, x.shape[1], x.shape[2]
        weights = self.param(
            "kernel", kaiming_normal_fan_out, (k, channels, self.features)
        )
        bias = self.param("bias", torch_conv_bias(k * channels), (self.features,))
        x = jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0)))
        taps = jnp.concatenate([x[:, i : i + length] for i in range(k)], axis=-1)
        return taps @ weights.reshape(-1, self.features) + bias[None, None]


class HarConv(nn.Module):
    """Norm; conv5(32), conv5(64), conv5(128), each ReLU and pool by 2; mean over time.

    The convolutional part of the 1-D encoder of FedMultimodal (Feng et al., KDD 2023),
    whose recurrent layer and attention are replaced by the mean.
    """

    features: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps signals [B, T, axes], T at least 8, to [B, features]."""
        x, scale, shift = NORMS[self.norm](name="norm")(x, mask, train)
        x = x * scale[None, None] + shift[None, None]
        for i, channels in enumerate((32, 64, 128)):
            x = pool_pairs(Conv1D(channels, 5, name=f"conv{i + 1}")(x))
            x = jax.nn.relu(x)  # after pooling: the same values at half the work
        return dense(self.features, "dense")(x.mean(1))


class SpectrogramConv(nn.Module):
    """Norm; conv3/2(16), conv3/2(32), conv3/2(64), each ReLU; mean over time, linear.

    Unlike an image's rows, the frequencies are not averaged: the same pattern at
    another pitch is another sound.
    """

    features: int
    norm: str
    lowering: Lowering

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps spectrograms [B, frequencies, frames, channels] to [B, features]."""
        x, scale, shift = NORMS[self.norm](name="norm")(x, mask, train)
        for i, channels in enumerate((16, 32, 64)):
            conv = Conv(channels, 3, 2, 1, lowering=self.lowering, name=f"conv{i + 1}")
            x = jax.nn.relu(conv(x, scale, shift) if i == 0 else conv(x))
        return dense(self.features, "dense")(x.mean(2).reshape(len(x), -1))


def pool_pairs(x: Array) -> Array:
    """The larger of every two neighbours in time, [B, T, C] -> [B, T // 2, C]."""
    even = x.shape[1] // 2 * 2
    return jnp.maximum(x[:, 0:even:2], x[:, 1:even:2])


def har_conv(
    *, features: int = 128, norm: Literal["batch", "group"] = "batch"
) -> nn.Module:
    """1-D convolutions on sensor signals [T, axes].

    Args:
      features: Width F of the last linear layer (FedMultimodal: 128).
      norm: Normalisation of the input: masked BatchNorm, or GroupNorm (no state).
    """
    return HarConv(features, norm)


def spectrogram_conv(
    *,
    features: int = 128,
    norm: Literal["batch", "group"] = "batch",
    lowering: Lowering = "auto",
) -> nn.Module:
    """2-D convolutions on spectrograms [frequencies, frames, 1] that keep the pitch.

    Args:
      features: Width F of the last linear layer.
      norm: Normalisation of the input: masked BatchNorm, or GroupNorm (no state).
      lowering: How convolutions are computed: patches, lax, or auto: by backend.
    """
    return SpectrogramConv(features, norm, lowering)
