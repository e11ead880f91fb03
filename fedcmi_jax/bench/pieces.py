"""What else a training step of the convolutional workloads does, piece by piece."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.experiment import timing
from fedcmi_jax.local import select
from fedcmi_jax.models.batch_norm import normalised
from fedcmi_jax.models.pooling import max_pool
from fedcmi_jax.optimizers import torch_sgd
from fedcmi_jax.types import Array, PyTree

COUNT = 10
"""Steps of a loop."""
SMALL = 1e-9
"""Every step depends on the one before; the numbers stay finite."""


class Piece(NamedTuple):
    """A part of a step.

    Attributes:
      name: Of the row.
      step: What a loop carries -> the same, once more.
      start: What it carries first.
    """

    name: str
    step: Callable[[Any], Any]
    start: Callable[[], Any]


def _norm(carry: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    """Forward pass and gradient of batch norm and ReLU, in training."""
    x, scale, shift = carry
    zeros, mask = jnp.zeros_like(scale), jnp.ones(len(x))

    def layer(x: Array, scale: Array, shift: Array) -> Array:
        z, _, _ = normalised(x, mask, scale, shift, zeros, zeros)
        return jax.nn.relu(z)

    z, vjp = jax.vjp(layer, *carry)
    return tuple(a + SMALL * b for a, b in zip(carry, vjp(z), strict=True))


def _pool(x: Array) -> Array:
    """Forward pass and gradient of max pooling."""
    y, vjp = jax.vjp(max_pool, x)
    return x + SMALL * vjp(y)[0]


def _sgd(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    """A step of the clients' optimizer, as clients take it: undone if it is padding."""
    params, state = carry
    updates, moved = _optimizer().update(params, state, params)
    is_real = params[0].sum() < jnp.inf
    return (
        select(is_real, optax.apply_updates(params, updates), params),
        select(is_real, moved, state),
    )


def _optimizer() -> optax.GradientTransformation:
    return torch_sgd()(jnp.float32(0.01))


def _weights() -> tuple[PyTree, PyTree]:
    params = [_normal(3, 3, 256, 256) for _ in range(19)]
    return params, _optimizer().init(params)


def _normal(*shape: int) -> Array:
    return jax.random.normal(jax.random.key(0), shape)


def _activations(*shape: int) -> Callable[[], tuple[Array, ...]]:
    """x, and the norm's scale and shift."""
    return lambda: (_normal(*shape), _normal(shape[-1]), _normal(shape[-1]))


PIECES = (
    Piece("convnet max pool", _pool, lambda: _normal(64, 28, 28, 32)),
    Piece("resnet18 visual max pool", _pool, lambda: _normal(16, 112, 112, 64)),
    Piece("resnet18 visual stem's norm", _norm, _activations(16, 112, 112, 64)),
    Piece("resnet18 visual 64's norm", _norm, _activations(16, 56, 56, 64)),
    Piece("resnet18 visual 512's norm", _norm, _activations(16, 7, 7, 512)),
    Piece("SGD on 11.2 million weights", _sgd, _weights),
)
"""What is not a convolution in the workloads ``convnet`` and ``resnet18``."""


def program(piece: Piece) -> tuple[Callable[[], float], int]:
    """A loop of that piece: runs it, its seconds; and its length."""
    step = piece.step
    run = jax.jit(lambda x: jax.lax.fori_loop(0, COUNT, lambda _, x: step(x), x))
    return timing.timed(run, piece.start()), COUNT
