"""Encoders: one sample's array of one modality -> features h (methods 0.2).

An encoder is a factory with keyword-only options that returns a linen module whose
``__call__(x, mask, train)`` maps [B, ...] to [B, F]. A new one is a class, a factory
and a line in ``ENCODERS``.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.layers import NORMS, MappedBatchNorm, conv, dense
from fedcmi_jax.models.pooling import max_pool
from fedcmi_jax.models.signal_encoders import har_conv, spectrogram_conv
from fedcmi_jax.models.text_encoder import text
from fedcmi_jax.types import Array


class MLP(nn.Module):
    """Flatten, then Linear and ReLU for each width."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps [B, ...] to [B, widths[-1]]."""
        del mask, train
        x = x.reshape(x.shape[0], -1)
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
        x, scale, shift = NORMS[self.norm](name="norm")(x, mask, train)
        # Pooling before the ReLU: the same values at a quarter of the work.
        x = conv(x, 32, 5, scale=scale, shift=shift, pool=max_pool, name="conv1")
        x = jax.nn.relu(x)
        x = jax.nn.relu(conv(x, 32, 3, name="conv2"))
        x = jax.nn.relu(conv(x, 64, 3, 2, name="conv3"))
        x = jax.nn.relu(conv(x, 64, 3, name="conv4"))
        return dense(self.features, "dense")(x.mean((1, 2)))


def conv_norm(
    x: Array,
    mask: Array,
    train: bool,
    features: int,
    kernel: int,
    stride: int,
    names: tuple[str, str],
) -> Array:
    """BatchNorm(convolution without bias), in the calling module under these names."""
    x = conv(x, features, kernel, stride, use_bias=False, name=names[0])
    return MappedBatchNorm(name=names[1])(x, mask, train)


class ResNet18(nn.Module):
    """ResNet-18 without its last layer (arXiv 1512.03385), methods 0.2.

    Stem 7x7/2, BatchNorm, ReLU, pool; eight blocks of two 3x3 convolutions with 64,
    128, 256, 512 channels; the mean over all positions. Frames [B, T, H, W, C] are
    images of their own whose features are averaged.
    """

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps images [B, H, W, C] or frames [B, T, H, W, C] to [B, 512]."""
        frames = x.shape[1] if x.ndim == 5 else 1
        x = x.reshape(-1, *x.shape[-3:])
        mask = jnp.repeat(mask, frames)
        x = conv_norm(x, mask, train, 64, 7, 2, ("conv1", "norm1"))
        x = jax.nn.relu(max_pool(x))  # the same values at a quarter of the work
        for i, features in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
            x = Block(features, 1 + (features != x.shape[-1]), name=f"block{i}")(
                x, mask, train
            )
        return x.mean((1, 2)).reshape(-1, frames, 512).mean(1)


class Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), 3x3 convolutions."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        features, stride = self.features, self.stride
        y = conv_norm(x, mask, train, features, 3, stride, ("conv1", "norm1"))
        y = conv_norm(jax.nn.relu(y), mask, train, features, 3, 1, ("conv2", "norm2"))
        if stride > 1:
            names = ("shortcut", "shortcut_norm")
            x = conv_norm(x, mask, train, features, 1, stride, names)
        return jax.nn.relu(x + y)


def mlp(*, features: int = 64, hidden: tuple[int, ...] = ()) -> nn.Module:
    """Multilayer perceptron on the flattened sample.

    Args:
      features: Width F of the last layer, ReLU included.
      hidden: Widths of the layers before it.
    """
    return MLP((*hidden, features))


def convnet(
    *,
    features: int = 512,
    norm: Literal["batch", "group"] = "batch",
) -> nn.Module:
    """The CG-MNIST convolutional net (methods 0.2).

    Args:
      features: Width F of the last linear layer (512 in the reference code).
      norm: Normalisation of the input: masked BatchNorm, or GroupNorm (no state).
    """
    return ConvNet(features, norm)


def resnet18() -> nn.Module:
    """ResNet-18 on images or frames of images, 512 features (methods 0.2)."""
    return ResNet18()


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet18": resnet18,
    "har_conv": har_conv,
    "spectrogram_conv": spectrogram_conv,
    "text": text,
}
"""Registry of encoder factories."""
