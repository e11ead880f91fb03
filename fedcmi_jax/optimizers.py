"""The clients' optimizer and learning rate over the rounds (methods 0.6)."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from fedcmi_jax.types import Array

Optimizer = Callable[[Array], optax.GradientTransformation]
"""Learning rate -> optax optimizer."""


def torch_sgd(*, momentum: float = 0.9, weight_decay: float = 1e-4) -> Optimizer:
    """d = g + wd w;  buf = momentum buf + d;  w <- w - lr buf (methods 0.6).

    Args:
      momentum: In [0, 1).
      weight_decay: On all parameters, BatchNorm and biases included.

    Returns:
      Learning rate -> optimizer. State is fresh per client and round.
    """

    def optimizer(learning_rate: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum),
            optax.scale(-learning_rate),
        )

    return optimizer


def linear_decay(
    start: float,
    end: float,
    decay_start: int,
    rounds: int,
    *,
    legacy: bool = False,
) -> Callable[[Array], Array]:
    """Learning rate lr_t of round t (methods 0.6).

    lr_t = lr_0 for t <= T_0, then lr_0 - (lr_0 - lr_min) (t - T_0) / (R - T_0). The
    public code has (t / R) there, so that its rate jumps down after T_0.

    Args:
      start: lr_0.
      end: lr_min; equal to start: constant.
      decay_start: T_0, the last round at lr_0.
      rounds: R, rounds of the whole run.
      legacy: The public code's form.

    Returns:
      Round (int32 scalar) -> float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedcmi_jax.optimizers import linear_decay
      >>> float(linear_decay(1.0, 0.0, 4, 8)(jnp.array(6)))
      0.5
    """

    def rate(round: Array) -> Array:
        t = round.astype(jnp.float32)
        if legacy:
            share = t / rounds
        else:
            share = (t - decay_start) / max(rounds - decay_start, 1)
        return jnp.where(round <= decay_start, start, start - (start - end) * share)

    return rate
