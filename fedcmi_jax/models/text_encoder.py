"""The encoder of token ids: an embedding of hashed words, pooled (methods 0.2).

The public code has a pretrained BERT in its place. This one trains from scratch, so it
needs nothing that would have to be downloaded.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.layers import dense, xavier_normal
from fedcmi_jax.types import Array

_POSITION_DEVIATION = 0.02  # BERT's (arXiv 1810.04805, public code)


class TextEncoder(nn.Module):
    """Embedding, optionally transformer blocks, mean over real tokens, Linear, ReLU.

    Token id 0 is padding: it is in no mean, and no token attends to it. A text without
    tokens has the mean zero.
    """

    takes_token_ids = True

    features: int
    buckets: int
    width: int
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Maps token ids [B, T] to [B, features]."""
        del mask, train
        ids = x.astype(jnp.int32)
        real = ids > 0
        # torch's initialisation of an embedding is Normal(0, 1).
        init = nn.initializers.normal(1.0)
        table = self.param("embedding", init, (self.buckets, self.width))
        h = table[ids % self.buckets]
        if self.blocks:
            init = nn.initializers.normal(_POSITION_DEVIATION)
            h = h + self.param("position", init, h.shape[1:])[None]
            seen = nn.make_attention_mask(real, real, dtype=bool)
            for i in range(self.blocks):
                h = TransformerBlock(self.heads, name=f"block{i}")(h, seen)
        weights = real.astype(h.dtype)
        count = jnp.maximum(weights.sum(1, keepdims=True), 1.0)
        mean = jnp.einsum("bt,btd->bd", weights / count, h)
        return jax.nn.relu(dense(self.features, "dense")(mean))


class TransformerBlock(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): arXiv 1706.03762, norms first."""

    heads: int

    @nn.compact
    def __call__(self, h: Array, seen: Array) -> Array:
        """Maps [B, T, D] to [B, T, D]; seen [B, 1, T, T] says who attends to whom."""
        width = h.shape[-1]
        y = nn.LayerNorm(name="norm1")(h)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=xavier_normal, name="attention"
        )
        h = h + attention(y, mask=seen)
        y = nn.LayerNorm(name="norm2")(h)
        # Four times as wide inside: arXiv 1706.03762, section 3.3.
        y = jax.nn.gelu(dense(4 * width, "dense1")(y))
        return h + dense(width, "dense2")(y)


def text(
    *,
    features: int = 64,
    pool: Literal["bag", "transformer"] = "bag",
    width: int = 64,
    buckets: int = 8192,
    blocks: int = 1,
    heads: int = 4,
) -> nn.Module:
    """Hashed words, embedded and averaged, or after a small transformer.

    Args:
      features: Width F of the last layer, ReLU included.
      pool: bag, the mean of the embeddings; or transformer, blocks before the mean.
      width: Width of the embedding.
      buckets: Rows of the embedding; words share them by their hash.
      blocks: Transformer blocks, unused with bag.
      heads: Attention heads, unused with bag; width must be a multiple.

    Returns:
      A module for token ids [B, T], 0 for padding.

    Raises:
      ValueError: A size is impossible.

    Example:
      >>> text(pool="transformer", heads=2).blocks
      1
    """
    sizes = {"width": width, "buckets": buckets, "blocks": blocks, "heads": heads}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {size} is below 1; give at least 1")
    if width % heads:
        raise ValueError(f"width: {width} is no multiple of heads: {heads}; change one")
    return TextEncoder(
        features, buckets, width, blocks if pool == "transformer" else 0, heads
    )
