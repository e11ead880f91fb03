"""How much longer momentum makes the steps of a short training."""

import jax.numpy as jnp

from fedcmi_jax.types import Array


def momentum_gain(momentum: float | Array, steps: float | Array) -> Array:
    """G = (1/S) sum_{s=1..S} (1 - m^s) / (1 - m), the mean length of SGD's steps.

    A momentum buffer that starts empty multiplies a constant gradient by
    (1 - m^s) / (1 - m) in its step s, so that S steps at learning rate eta move as far
    as S steps without momentum at eta G. With gradients g_s they move by
    eta sum_s g_s (1 - m^{S-s+1}) / (1 - m), whose coefficients add up to S G.

    Args:
      momentum: m, in [0, 1).
      steps: S; below 1 it counts as 1. May be traced.

    Returns:
      float32 scalar, from 1 (one step, or no momentum) to 1 / (1 - m) (many steps).

    Example:
      >>> [round(float(momentum_gain(0.9, s)), 2) for s in (1, 5, 20, 1000)]
      [1.0, 2.63, 6.05, 9.91]
    """
    m = jnp.asarray(momentum, jnp.float32)
    s = jnp.maximum(jnp.asarray(steps, jnp.float32), 1.0)
    return (1.0 - m * (1.0 - m**s) / (s * (1.0 - m))) / (1.0 - m)
