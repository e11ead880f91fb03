"""Fusion: one feature vector per modality -> fused logits z (methods 0.3).

With x, y the first and second modality's D-vectors:
  concat  z = W [x; y] + b
  sum     z = W_x x + b_x + W_y y + b_y
  film    (g, h) = split(Linear(x));  z = Linear(g * y + h)
  gated   z = Linear(sigmoid(Linear(x)) * Linear(y))
concat and sum take any number of modalities; film and gated are defined for two.
A missing modality is a zero vector, also where the public code has no such forward.

Where z is a sum over modalities, ``shares`` gives the summands: z_m = W_m x_m + b / M
for concat, W_m x_m + b_m for sum (methods 6).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.models.layers import dense
from fedcmi_jax.types import Array, Params


class Concat(nn.Module):
    """z = W [x_1; ...; x_M] + b."""

    num_classes: int

    @nn.compact
    def __call__(self, parts: list[Array]) -> Array:
        """Maps M arrays [B, D] to [B, C]."""
        return dense(self.num_classes, "out")(jnp.concatenate(parts, axis=-1))

    @staticmethod
    def shares(params: Params, parts: list[Array]) -> list[Array]:
        """W_m x_m + b / M for each of the M parts."""
        kernel, bias = params["out"]["kernel"], params["out"]["bias"]
        ends = np.cumsum([x.shape[-1] for x in parts])
        rows = np.split(np.arange(ends[-1]), ends[:-1])
        return [
            x @ kernel[r[0] : r[-1] + 1] + bias[None] / len(parts)
            for x, r in zip(parts, rows, strict=True)
        ]


class Sum(nn.Module):
    """z = sum_m W_m x_m + b_m."""

    num_classes: int

    @nn.compact
    def __call__(self, parts: list[Array]) -> Array:
        """Maps M arrays [B, D] to [B, C]."""
        terms = [dense(self.num_classes, f"out{i}")(x) for i, x in enumerate(parts)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    @staticmethod
    def shares(params: Params, parts: list[Array]) -> list[Array]:
        """W_m x_m + b_m for each of the M parts."""
        layers = [params[f"out{i}"] for i in range(len(parts))]
        return [
            x @ p["kernel"] + p["bias"][None]
            for x, p in zip(parts, layers, strict=True)
        ]


class Film(nn.Module):
    """(g, h) = split(W x + b);  z = V (g * y + h) + d: x conditions y."""

    num_classes: int

    @nn.compact
    def __call__(self, parts: list[Array]) -> Array:
        """Maps 2 arrays [B, D] to [B, C]."""
        x, y = parts
        gain, shift = jnp.split(dense(2 * y.shape[-1], "film")(x), 2, axis=-1)
        return dense(self.num_classes, "out")(gain * y + shift)


class Gated(nn.Module):
    """z = V (sigmoid(W_x x + b_x) * (W_y y + b_y)) + d: x gates y."""

    num_classes: int

    @nn.compact
    def __call__(self, parts: list[Array]) -> Array:
        """Maps 2 arrays [B, D] to [B, C]."""
        x, y = parts
        width = y.shape[-1]
        gate = jax.nn.sigmoid(dense(width, "gate")(x))
        return dense(self.num_classes, "out")(gate * dense(width, "value")(y))


FUSIONS = {"concat": Concat, "sum": Sum, "film": Film, "gated": Gated}
PAIRWISE_FUSIONS = ("film", "gated")
