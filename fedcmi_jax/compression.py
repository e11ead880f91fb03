"""What clients send made smaller, by lossy transforms of their updates (methods 21).

A transform takes an array as a vector and gives what the server makes of what arrives,
a vector of the same length; what travels is counted, not packed. Transforms compose,
and what they drop may be kept at the client for its next round (error feedback,
arXiv 1901.09847). Statistics and a method's uploads are sent as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import by_block, drop_frozen
from fedcmi_jax.types import Array, Model, Params, PyTree

FULL = 32
"""Bits of a number that no transform shortens."""

INDEX_BYTES = 4
"""Of the place of a number that is sent alone; of the seed that draws such places."""

SCALE_BYTES = 4
"""Of the float32 that quantised numbers are multiples of."""

LEAST_BITS, MOST_BITS = 2, 16
"""Of quantised numbers: a sign and one level; what float32 rounds uniformly well."""


class Payload(NamedTuple):
    """What is left of an array to send.

    Attributes:
      numbers: How many.
      bits: Of each.
      extra: Bytes beside them: places, scales, seeds.
    """

    numbers: int
    bits: int = FULL
    extra: int = 0

    @property
    def num_bytes(self) -> int:
        """All of it.

        Example:
          >>> Payload(10, bits=3, extra=4).num_bytes
          8
        """
        return math.ceil(self.numbers * self.bits / 8) + self.extra


class Transform(NamedTuple):
    """One step of a compression.

    Attributes:
      apply: ``(key, x [p] float32) -> [p]``, what arrives in the place of x.
      payload: What is to be sent -> what is to be sent after it.
      leaves_out: Whether it sends a part of the numbers only.
    """

    apply: Callable[[Array, Array], Array]
    payload: Callable[[Payload], Payload]
    leaves_out: bool = False


class Compression(NamedTuple):
    """Transforms, one after the other, of every array of an update.

    Attributes:
      name: Registry name.
      transforms: In order.
      feedback: Whether a client adds what was dropped to its next update.
    """

    name: str
    transforms: tuple[Transform, ...]
    feedback: bool

    def num_bytes(self, size: int) -> int:
        """Bytes of an array of so many numbers as it travels."""
        payload = Payload(size)
        for transform in self.transforms:
            payload = transform.payload(payload)
        return payload.num_bytes


def chain(*compressions: Compression | None) -> Compression | None:
    """One after the other; feedback if one of them has it.

    Raises:
      ValueError: Two of them send a part of the numbers only.

    Example:
      >>> both = chain(top_k(share=0.1), quantize(bits=8))
      >>> both.name, both.num_bytes(1000)
      ('top_k+quantize', 504)
    """
    real = [c for c in compressions if c is not None]
    if not real:
        return None
    parts = [c.name for c in real if any(t.leaves_out for t in c.transforms)]
    if len(parts) > 1:
        raise ValueError(
            f"chain: {' and '.join(parts)} both leave numbers out; keep one"
        )
    return Compression(
        "+".join(c.name for c in real),
        sum((c.transforms for c in real), ()),
        any(c.feedback for c in real),
    )


def none() -> None:
    """Updates are sent as float32 numbers."""


def quantize(*, bits: int = 8, feedback: bool = False) -> Compression:
    """Stochastic uniform quantisation (QSGD, arXiv 1610.02132), without bias.

    x -> (m / s) floor(s x / m + u) with m = max |x|, s = 2^(bits - 1) - 1, u ~ U[0, 1).

    Args:
      bits: Of every number, its sign included: 2 to 16, or 32: as it is.
      feedback: Whether a client adds the error to its next update.

    Raises:
      ValueError: bits is none of these.
    """
    if bits == FULL:
        steps: tuple[Transform, ...] = ()
    elif LEAST_BITS <= bits <= MOST_BITS:
        steps = (_quantize(bits),)
    else:
        raise ValueError(
            f"bits: {bits} is not possible; give {LEAST_BITS} to {MOST_BITS}, or "
            f"{FULL} for no quantisation"
        )
    return Compression("quantize", steps, feedback)


def bfloat16(*, feedback: bool = False) -> Compression:
    """Numbers rounded to bfloat16: 8 bits of exponent, 7 of mantissa.

    Args:
      feedback: Whether a client adds the error to its next update.
    """

    def apply(key: Array, x: Array) -> Array:
        del key
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

    step = Transform(apply, lambda payload: payload._replace(bits=16))
    return Compression("bfloat16", (step,), feedback)


def top_k(
    *, share: float = 0.01, bits: int = FULL, feedback: bool = True
) -> Compression:
    """The largest numbers of every array (arXiv 1809.07599), with their places.

    Args:
      share: Of every array's numbers that are sent, in (0, 1]: at least one.
      bits: Of each, quantised as by ``quantize``; 32: as they are.
      feedback: Whether a client adds what was left out to its next update.

    Raises:
      ValueError: share or bits is out of range.
    """

    def chosen(key: Array, x: Array, k: int) -> Array:
        del key
        return jax.lax.top_k(jnp.abs(x), k)[1]

    return _sparse("top_k", share, bits, feedback, chosen, INDEX_BYTES, 0)


def random_k(
    *, share: float = 0.01, bits: int = FULL, feedback: bool = True
) -> Compression:
    """Numbers at random places, which follow from a seed (arXiv 1809.07599).

    Args:
      share: Of every array's numbers that are sent, in (0, 1]: at least one.
      bits: Of each, quantised as by ``quantize``; 32: as they are.
      feedback: Whether a client adds what was left out to its next update; without,
        updates are shrunk to the share on average.

    Raises:
      ValueError: share or bits is out of range.
    """

    def chosen(key: Array, x: Array, k: int) -> Array:
        return jax.lax.top_k(jax.random.uniform(key, x.shape), k)[1]

    return _sparse("random_k", share, bits, feedback, chosen, 0, INDEX_BYTES)


REGISTRY: dict[str, Callable[..., Compression | None]] = {
    "none": none,
    "quantize": quantize,
    "bfloat16": bfloat16,
    "top_k": top_k,
    "random_k": random_k,
}
"""Name -> factory with keyword-only options."""


def start(compression: Compression | None, model: Model, params: Params) -> PyTree:
    """What a client keeps before its first round: nothing dropped yet; or ()."""
    if compression is None or not compression.feedback:
        return ()
    return drop_frozen(model.frozen.params, jax.tree.map(jnp.zeros_like, params))


def compressed(
    compression: Compression, key: Array, delta: Params, owned: Params, residual: PyTree
) -> tuple[Params, PyTree]:
    """What arrives of a client's update, and what it keeps for the next: T(d + e).

    Args:
      compression: The transforms T.
      key: Of this client and round.
      delta: d, without frozen leaves.
      owned: Prefix tree, 1 for blocks that it sends.
      residual: e, or () without feedback.

    Returns:
      T(d + e); and e <- d + e - T(d + e) in blocks that it sends, or ().
    """
    whole = delta
    if compression.feedback:
        whole = jax.tree.map(jnp.add, delta, residual)
    leaves, structure = jax.tree.flatten(whole)
    sent = jax.tree.unflatten(
        structure,
        [
            _array(compression, jax.random.fold_in(key, i), x)
            for i, x in enumerate(leaves)
        ],
    )
    if not compression.feedback:
        return sent, ()
    left = jax.tree.map(jnp.subtract, whole, sent)
    kept = by_block(
        lambda w, new, old: jnp.where(w > 0, new, old), owned, left, residual
    )
    return sent, kept


def _array(compression: Compression, key: Array, x: Array) -> Array:
    flat = x.reshape(-1)
    for i, transform in enumerate(compression.transforms):
        flat = transform.apply(jax.random.fold_in(key, i), flat)
    return flat.reshape(x.shape)


def _quantize(bits: int) -> Transform:
    levels = 2.0 ** (bits - 1) - 1

    def apply(key: Array, x: Array) -> Array:
        largest = jnp.abs(x).max()
        # Divided first: levels over a tiny number is infinite.
        scaled = x / jnp.where(largest > 0, largest, 1.0) * levels
        whole = jnp.floor(scaled + jax.random.uniform(key, x.shape))
        return jnp.clip(whole, -levels, levels) * (largest / levels)

    def payload(before: Payload) -> Payload:
        return before._replace(bits=bits, extra=before.extra + SCALE_BYTES)

    return Transform(apply, payload)


def _sparse(
    name: str,
    share: float,
    bits: int,
    feedback: bool,
    chosen: Callable[[Array, Array, int], Array],
    per_number: int,
    per_array: int,
) -> Compression:
    """A part of every array's numbers; their places cost extra, unless all are sent."""
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} is outside (0, 1]; try 0.01")

    def kept(size: int) -> int:
        return max(1, math.ceil(share * size))

    def apply(key: Array, x: Array) -> Array:
        places = chosen(key, x, kept(x.size))
        return jnp.zeros_like(x).at[places].set(x[places])

    def payload(before: Payload) -> Payload:
        k = kept(before.numbers)
        extra = 0 if k == before.numbers else per_number * k + per_array
        return before._replace(numbers=k, extra=before.extra + extra)

    steps = (
        Transform(apply, payload, leaves_out=share < 1),
        *quantize(bits=bits).transforms,
    )
    return Compression(name, steps, feedback)
