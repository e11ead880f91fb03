"""Every convolution of the benchmark's models alone, and what else a step does."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from fedcmi_jax.bench import pieces
from fedcmi_jax.experiment import timing
from fedcmi_jax.models.convolution import convolution
from fedcmi_jax.types import Array

REPEATED_FLOP = 2e10
"""A loop repeats a layer up to about this many FLOP: its start is paging in memory."""


@dataclass(frozen=True)
class Layer:
    """A convolution with zero padding of k // 2, as the encoders call it.

    Attributes:
      name: Model and layer.
      batch: B, as in the workload.
      size: (H, W) of its input, or (T,) of a signal.
      channels: C; the channel of ones that carries BatchNorm's shift included.
      features: F.
      kernel: k.
      stride: s.
      first: Whether nothing before it is trained, so that no dx is asked for.
    """

    name: str
    batch: int
    size: tuple[int, ...]
    channels: int
    features: int
    kernel: int
    stride: int = 1
    first: bool = False

    @property
    def flop(self) -> float:
        """Of forward pass and gradients, padding counted."""
        outputs = self.batch
        for side in self.size:
            outputs *= -(-side // self.stride)
        forward = 2.0 * outputs * math.prod(self.weights)
        return forward * (2 if self.first else 3)

    @property
    def weights(self) -> tuple[int, ...]:
        """Shape of the kernel: taps, C, F."""
        return (self.kernel,) * len(self.size) + (self.channels, self.features)

    @property
    def options(self) -> dict[str, Any]:
        """What a convolution is called with besides its arrays."""
        axes = len(self.size)
        space = "HW"[:axes]
        return {
            "window_strides": (self.stride,) * axes,
            "padding": [(self.kernel // 2,) * 2] * axes,
            "dimension_numbers": (f"N{space}C", f"{space}IO", f"N{space}C"),
        }


def _resnet18() -> Iterator[Layer]:
    yield Layer("resnet18 visual stem", 16, (224, 224), 3, 64, 7, 2, first=True)
    yield Layer("resnet18 audio stem", 16, (257, 299), 1, 64, 7, 2, first=True)
    for modality, size in (("visual", (56, 56)), ("audio", (65, 75))):
        channels = 64
        for features in (64, 128, 256, 512):
            name = f"resnet18 {modality} {features}"
            if features > channels:
                yield Layer(f"{name} / 2", 16, size, channels, features, 3, 2)
                yield Layer(f"{name} shortcut", 16, size, channels, features, 1, 2)
                size = (-(-size[0] // 2), -(-size[1] // 2))
            yield Layer(name, 16, size, features, features, 3)
            channels = features


LAYERS = (
    Layer("convnet gray conv1", 64, (28, 28), 2, 32, 5, first=True),
    Layer("convnet color conv1", 64, (28, 28), 4, 32, 5, first=True),
    Layer("convnet conv2", 64, (14, 14), 32, 32, 3),
    Layer("convnet conv3", 64, (14, 14), 32, 64, 3, 2),
    Layer("convnet conv4", 64, (7, 7), 64, 64, 3),
    *_resnet18(),
    Layer("har_conv conv1", 32, (128,), 3, 32, 5),
    Layer("har_conv conv2", 32, (64,), 32, 64, 5),
    Layer("har_conv conv3", 32, (32,), 64, 128, 5),
    Layer("spectrogram_conv conv1", 32, (112, 112), 2, 16, 3, 2, first=True),
    Layer("spectrogram_conv conv2", 32, (56, 56), 16, 32, 3, 2),
    Layer("spectrogram_conv conv3", 32, (28, 28), 32, 64, 3, 2),
)
"""The convolutions of the workloads ``convnet`` and ``resnet18``, equal ones once, and
of the encoders of HAPT's windows and AV-MNIST's spectrograms.
"""


def program(layer: Layer) -> tuple[Callable[[], float], int]:
    """A loop of forward passes and gradients: runs it, its seconds; and its length."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (layer.batch, *layer.size, layer.channels))
    w = jax.random.normal(key, layer.weights)
    conv = functools.partial(convolution, **layer.options)
    count = max(1, round(REPEATED_FLOP / layer.flop))

    def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, w = carry
        y, vjp = jax.vjp(conv, x, w)
        dx, dw = vjp(y)
        small = 1e-9  # every step depends on the one before; the numbers stay finite
        return (x if layer.first else x + small * dx), w + small * dw

    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, count, step, (x, w)))
    return timing.timed(run, x, w), count


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measures every layer, in turns with a large matrix product.

    Args:
      repeats: Timed runs of each.

    Yields:
      A row per layer, then per piece, with the names of the JSON that
      ``fedcmi bench`` writes.
    """
    product = timing.matmul()
    for layer in LAYERS:
        run, count = program(layer)
        seconds = timing.interleaved({"layer": run, "product": product}, repeats)
        work = layer.flop * count / timing.PEAK_FLOP
        yield {
            "workload": "layers",
            "entry": layer.name,
            "seconds": timing.spread([s / count for s in seconds["layer"]]),
            "flops": layer.flop,
            "share_of_peak": timing.ratio(
                [s * work for s in seconds["product"]], seconds["layer"]
            ),
        }
    for piece in pieces.PIECES:
        run, count = pieces.program(piece)
        times = timing.interleaved({"piece": run}, repeats)["piece"]
        yield {
            "workload": "layers",
            "entry": piece.name,
            "seconds": timing.spread([s / count for s in times]),
        }
