"""Encoders: one sample's array of one modality -> features h (methods 0.2).

An encoder is a factory with keyword-only options that returns a linen module whose
``__call__(x, mask, train)`` maps [B, ...] to [B, F]. A new one is a class, a factory
and a line in ``ENCODERS``.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from fedcmi_jax.models.layers import NORMS, Conv, dense, max_pool
from fedcmi_jax.types import Array


class MLP(nn.Module):
    """Flatten, then Linear and ReLU for each width."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps [B, ...] to [B, widths[-1]]."""
        del mask, train
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.widths):
            x = jax.nn.relu(dense(width, f"dense{i}")(x))
        return x


class ConvNet(nn.Module):
    """The CG-MNIST convnet: norm, conv5(32), pool, conv3(32), conv3/2(64), conv3(64).

    The published net ends in a 7x7 average pool of a 7x7 map; a mean over all
    positions is the same there and admits any image of at least 4x4.
    """

    features: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps images [B, H, W, channels] to [B, features]."""
        x = NORMS[self.norm](name="norm")(x, mask, train)
        x = max_pool(jax.nn.relu(Conv(32, 5, padding=2, name="conv1")(x)))
        x = jax.nn.relu(Conv(32, 3, padding=1, name="conv2")(x))
        x = jax.nn.relu(Conv(64, 3, stride=2, padding=1, name="conv3")(x))
        x = jax.nn.relu(Conv(64, 3, padding=1, name="conv4")(x))
        return dense(self.features, "dense")(x.mean((1, 2)))


def mlp(*, features: int = 64, hidden: tuple[int, ...] = ()) -> nn.Module:
    """Multilayer perceptron on the flattened sample.

    Args:
      features: Width F of the last layer, ReLU included.
      hidden: Widths of the layers before it.
    """
    return MLP((*hidden, features))


def convnet(
    *, features: int = 512, norm: Literal["batch", "group"] = "batch"
) -> nn.Module:
    """The CG-MNIST convolutional net (methods 0.2).

    Args:
      features: Width F of the last linear layer (512 in the reference code).
      norm: Normalisation of the input: masked BatchNorm, or GroupNorm (no state).
    """
    return ConvNet(features, norm)


ENCODERS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "convnet": convnet}
"""Registry of encoder factories."""
