"""The UCI-HAR network of FedMultimodal (arXiv 2306.09486), in flax.

Per modality three convolutions and a GRU; both sequences of hidden states, one behind
the other in time, are read by attention heads; two layers classify what they read.
Written from the paper and facts of its public code; initialised as PyTorch does.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

import fedcmi_jax as fc

FILTERS = (32, 64, 128)
"""Of the convolutions; each is followed by ReLU, max pooling by two and dropout."""

KERNEL = 5
HIDDEN = 128
"""Units of the GRU."""

ATTENTION = 512
"""Units between a hidden state and its scores."""

HEADS = 6
CLASSIFIER = 64
DROPOUT = 0.1

TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's of a weight: U(-b, b), b = 1 / sqrt(fan_in)."""

Initializer = Callable[..., jax.Array]


def uniform(fan_in: int) -> Initializer:
    """PyTorch's of a bias: U(-b, b), b = 1 / sqrt(fan_in of the layer's weight)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(features: int, fan_in: int, name: str) -> nn.Dense:
    """A layer with PyTorch's initial weights."""
    return nn.Dense(features, kernel_init=TORCH, bias_init=uniform(fan_in), name=name)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x W + b of rows [n, F], which on CPU is twice as fast as of [B, T, F]."""
    return x @ kernel + bias[None]


class GRU(nn.Module):
    """All hidden states of a sequence, from h_0 = 0.

    r = s(W_r x + b_r + U_r h + c_r),  z likewise,
    n = tanh(W_n x + b_n + r (U_n h + c_n)),  h <- (1 - z) n + z h.
    Every gate has two biases, as in PyTorch, which learn twice as fast as one.
    """

    hidden: int

    @nn.compact
    def __call__(self, x):
        """[B, T, F] -> [B, T, hidden]."""
        size, init = self.hidden, uniform(self.hidden)
        batch, length, features = x.shape
        w = self.param("input", init, (features, 3 * size))
        u = self.param("recurrent", init, (size, 3 * size))
        b = self.param("input_bias", init, (3 * size,))
        c = self.param("recurrent_bias", init, (3 * size,))

        def step(h, given):
            own = affine(h, u, c)
            r, z = jnp.split(nn.sigmoid((given + own)[:, : 2 * size]), 2, axis=1)
            n = jnp.tanh(given[:, 2 * size :] + r * own[:, 2 * size :])
            h = (1 - z) * n + z * h
            return h, h

        given = affine(x.reshape(-1, features), w, b).reshape(batch, length, -1)
        start = jnp.zeros((batch, size), x.dtype)
        _, states = jax.lax.scan(step, start, jnp.swapaxes(given, 0, 1))
        return jnp.swapaxes(states, 0, 1)


class Encoder(nn.Module):
    """A window [B, T, axes] -> its T / 8 hidden states, laid end to end, [B, F]."""

    @nn.compact
    def __call__(self, x, train):
        """As the class says."""
        for i, features in enumerate(FILTERS):
            x = fc.models.Conv(
                features,
                (KERNEL,),
                kernel_init=TORCH,
                bias_init=uniform(KERNEL * x.shape[-1]),
                name=f"conv{i}",
            )(x)
            x = nn.relu(jnp.maximum(x[:, ::2], x[:, 1::2]))
            x = nn.Dropout(DROPOUT, deterministic=not train)(x)
        return GRU(HIDDEN, name="gru")(x).reshape(len(x), -1)


class Attention(nn.Module):
    """logits = W_2 drop(relu(W_1 [sum_t a_1t h_t, ..., sum_t a_6t h_t])).

    a_kt = softmax over t, all modalities together, of v_k . tanh(V h_t).
    """

    num_classes: int

    @nn.compact
    def __call__(self, parts, train):
        """List of M arrays [B, T HIDDEN] -> [B, C]."""
        h = jnp.concatenate([x.reshape(len(x), -1, HIDDEN) for x in parts], axis=1)
        rows = dense(ATTENTION, HIDDEN, "attention0")(h.reshape(-1, HIDDEN))
        scores = dense(HEADS, ATTENTION, "attention1")(jnp.tanh(rows))
        weights = nn.softmax(scores.reshape(*h.shape[:2], HEADS), axis=1)
        read = jnp.einsum("btk,bth->bkh", weights, h).reshape(len(h), -1)
        x = nn.relu(dense(CLASSIFIER, HEADS * HIDDEN, "dense0")(read))
        x = nn.Dropout(DROPOUT, deterministic=not train)(x)
        return dense(self.num_classes, CLASSIFIER, "dense1")(x)


def har_model(shapes, num_classes: int) -> fc.Model:
    """The network; without views of single modalities, which cost evaluation time."""
    encoders = {m: Encoder() for m in shapes}
    fusion = Attention(num_classes)
    model = fc.models.classifier(encoders, shapes, num_classes, fusion=fusion)
    return model._replace(fuse=None)
