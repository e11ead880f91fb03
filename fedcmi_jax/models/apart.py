"""Functions that XLA compiles by themselves."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from fedcmi_jax.types import Array


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, compiled by itself: XLA fuses nothing across its border.

    For CPU, where XLA may else compute what precedes a transposition anew in the order
    of its result, many times slower, or what a gradient needs anew in every loop of it.
    Of ``jax.lax`` operations only: what is jitted inside would be apart as well.

    Example:
      >>> import jax.numpy as jnp
      >>> apart(jnp.negative)(jnp.ones(2)).tolist()
      [-1.0, -1.0]
    """

    def call(*args: Array) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function)(*args)

    return call
