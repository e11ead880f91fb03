"""Projectors: encoder features h -> self- or infiltration vector (methods 1.2)."""

import functools

import flax.linen as nn
import jax

from fedcmi_jax.models.layers import dense
from fedcmi_jax.types import Array


class Projector(nn.Module):
    """Linear layers, all D wide, with ReLU between them."""

    features: int
    layers: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, F] to [B, D]."""
        for i in range(self.layers - 1):
            h = jax.nn.relu(dense(self.features, f"dense{i}")(h))
        return dense(self.features, f"dense{self.layers - 1}")(h)


PROJECTORS = {
    "linear": functools.partial(Projector, layers=1),
    "mlp": functools.partial(Projector, layers=3),
}
"""Name -> width D -> module."""
