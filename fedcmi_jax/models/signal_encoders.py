"""Encoders of sensor signals and spectrograms."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.layers import NORMS, conv, dense
from fedcmi_jax.types import Array


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
            # Pooling before the ReLU: the same values at half the work.
            x = conv(x, channels, 5, pool=pool_pairs, name=f"conv{i + 1}")
            x = jax.nn.relu(x)
        return dense(self.features, "dense")(x.mean(1))


class SpectrogramConv(nn.Module):
    """Norm; conv3/2(16), conv3/2(32), conv3/2(64), each ReLU; mean over time, linear.

    Unlike an image's rows, the frequencies are not averaged: the same pattern at
    another pitch is another sound.
    """

    features: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps spectrograms [B, frequencies, frames, channels] to [B, features]."""
        x, scale, shift = NORMS[self.norm](name="norm")(x, mask, train)
        x = jax.nn.relu(conv(x, 16, 3, 2, scale=scale, shift=shift, name="conv1"))
        x = jax.nn.relu(conv(x, 32, 3, 2, name="conv2"))
        x = jax.nn.relu(conv(x, 64, 3, 2, name="conv3"))
        return dense(self.features, "dense")(x.mean(2).reshape(x.shape[0], -1))


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
) -> nn.Module:
    """2-D convolutions on spectrograms [frequencies, frames, 1] that keep the pitch.

    Args:
      features: Width F of the last linear layer.
      norm: Normalisation of the input: masked BatchNorm, or GroupNorm (no state).
    """
    return SpectrogramConv(features, norm)
