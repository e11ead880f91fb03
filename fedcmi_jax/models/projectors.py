"""Projectors: encoder features h -> self- or infiltration vector (methods 1.2)."""

import flax.linen as nn
import jax

from fedcmi_jax.models.layers import dense
from fedcmi_jax.types import Array


class Linear(nn.Module):
    """W h + b."""

    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, F] to [B, D]."""
        return dense(self.features, "dense0")(h)


class MLP(nn.Module):
    """Linear, ReLU, Linear, ReLU, Linear, all D wide."""

    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, F] to [B, D]."""
        h = jax.nn.relu(dense(self.features, "dense0")(h))
        h = jax.nn.relu(dense(self.features, "dense1")(h))
        return dense(self.features, "dense2")(h)


PROJECTORS = {"linear": Linear, "mlp": MLP}
