"""Reductions over all elements of an array that XLA:CPU vectorises."""

from collections.abc import Callable

import jax

from fedcmi_jax.types import Array


def by_columns(reduce: Callable[..., Array], values: Array) -> Array:
    """``reduce(values)``, first over all axes but the last, then over what is left.

    XLA:CPU reduces over all axes at once element by element, over leading ones in
    vectors. The barrier keeps it from making one reduction of the two. Sums are
    rounded in another order than those of ``reduce(values)``.

    Args:
      reduce: Such as ``jnp.sum`` or ``jnp.all``; takes an array and axes.
      values: Array.

    Returns:
      Scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(by_columns(jnp.sum, jnp.ones((3, 4))))
      12.0
    """
    if values.ndim > 1:
        leading = tuple(range(values.ndim - 1))
        values = jax.lax.optimization_barrier(reduce(values, axis=leading))
    return reduce(values)
