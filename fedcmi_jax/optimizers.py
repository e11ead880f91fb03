"""The clients' optimizer and learning rate over the rounds (methods 0.6)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.types import Array, PyTree

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


def clipped(optimizer: Optimizer, clip_grad_norm: float | None) -> Optimizer:
    """The optimizer of clipped gradients: g <- g min(1, c / ||g||_2), before all else.

    Args:
      optimizer: Learning rate -> optimizer.
      clip_grad_norm: c, > 0, on the norm over all arrays together; None: the optimizer
        comes back as it is.

    Returns:
      Learning rate -> optimizer. PyTorch's ``clip_grad_norm_`` adds 1e-6 to the norm
      it divides by; here a norm of at most c changes no bit.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedcmi_jax.optimizers import clipped, torch_sgd
      >>> plain = torch_sgd(momentum=0.0, weight_decay=0.0)
      >>> sgd, w = clipped(plain, 1.0)(jnp.array(1.0)), jnp.zeros(2)
      >>> step, _ = sgd.update(jnp.array([3.0, 4.0]), sgd.init(w), w)
      >>> [round(float(x), 6) for x in step]
      [-0.6, -0.8]
    """
    if clip_grad_norm is None:
        return optimizer

    def both(learning_rate: Array) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(clip_grad_norm)
        return optax.chain(clip, optimizer(learning_rate))

    return both


def without_frozen(
    optimizer: optax.GradientTransformation, frozen: PyTree
) -> optax.GradientTransformation:
    """The optimizer without a state of frozen leaves; what it makes of them is void.

    Args:
      optimizer: Any.
      frozen: ``Model.frozen.params``; where nothing is, the optimizer comes back.
    """
    if not any(jax.tree.leaves(frozen)):
        return optimizer
    return optax.masked(optimizer, jax.tree.map(lambda fixed: not fixed, frozen))


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
