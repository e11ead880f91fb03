"""Server optimizers: FedAdagrad, FedAdam, FedYogi, FedAvgM; Reddi et al., ICLR 2021.

Algorithm 2 of arXiv 2003.00295 (version 5). With Delta_t the clients' mean update:
  m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t,   m_{-1} = 0
  x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau),   v_{-1} = tau^2
There is no bias correction, and tau stands outside the root. Like every optax optimizer
these take a gradient: the round feeds them -Delta_t.

The default learning rates are the best of a grid on one validation split (noisy-digits,
FedAvg, one seed): ``experiments/tuning_study.py server``, docs/results.md.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedcmi_jax.types import Array, Params

BETA_1 = 0.9
"""Decay of m in FedAdam and FedYogi (the paper's experiments, section 5)."""

BETA_2 = 0.99
"""Decay of v in FedAdam and FedYogi (the same)."""

TAU = 1e-3
"""Degree of adaptivity: the paper finds 1e-3 good on nearly all of its tasks."""

MOMENTUM = 0.9
"""Of FedAvgM (the same experiments)."""


class Moments(NamedTuple):
    """State of an adaptive server optimizer.

    Attributes:
      m: Running mean of the clients' mean updates, like the parameters.
      v: What their squares have come to, like the parameters.
    """

    m: Params
    v: Params


def fed_adagrad(
    learning_rate: float = 0.1, *, beta_1: float = 0.0, tau: float = TAU
) -> optax.GradientTransformation:
    """FedAdagrad: v_t = v_{t-1} + Delta_t^2.

    Args:
      learning_rate: eta, > 0.
      beta_1: Decay of m, in [0, 1); 0 as in the paper's experiments.
      tau: Degree of adaptivity, > 0.

    Returns:
      An optimizer for ``build_algorithm(server_optimizer=)``.

    Raises:
      ValueError: A number is outside its range.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.fed_adagrad(0.1)
      >>> params = {"w": jnp.zeros(1)}
      >>> state = optimizer.init(params)
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)  # Delta = 1
      >>> round(float(step["w"][0]), 4)  # 0.1 * 1 / (sqrt(1e-6 + 1) + 1e-3)
      0.0999
    """
    return _adaptive(learning_rate, beta_1, tau, lambda v, square: v + square)


def fed_adam(
    learning_rate: float = 0.01,
    *,
    beta_1: float = BETA_1,
    beta_2: float = BETA_2,
    tau: float = TAU,
) -> optax.GradientTransformation:
    """FedAdam: v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2.

    Args:
      learning_rate: eta, > 0.
      beta_1: Decay of m, in [0, 1).
      beta_2: Decay of v, in [0, 1).
      tau: Degree of adaptivity, > 0.

    Returns:
      An optimizer for ``build_algorithm(server_optimizer=)``.

    Raises:
      ValueError: A number is outside its range.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.fed_adam(0.1)
      >>> state = optimizer.init({"w": jnp.zeros(1)})
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)  # Delta = 1
      >>> round(float(step["w"][0]), 4)  # 0.1 * 0.1 / (sqrt(0.01) + 1e-3)
      0.099
    """
    _check_share(beta_2=beta_2)
    return _adaptive(
        learning_rate,
        beta_1,
        tau,
        lambda v, square: beta_2 * v + (1 - beta_2) * square,
    )


def fed_yogi(
    learning_rate: float = 0.01,
    *,
    beta_1: float = BETA_1,
    beta_2: float = BETA_2,
    tau: float = TAU,
) -> optax.GradientTransformation:
    """FedYogi: v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2).

    Args:
      learning_rate: eta, > 0.
      beta_1: Decay of m, in [0, 1).
      beta_2: Decay of v, in [0, 1).
      tau: Degree of adaptivity, > 0.

    Returns:
      An optimizer for ``build_algorithm(server_optimizer=)``.

    Raises:
      ValueError: A number is outside its range.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.fed_yogi(0.1)
      >>> state = optimizer.init({"w": jnp.zeros(1)})
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)  # Delta = 1
      >>> round(float(state.v["w"][0]), 6)  # 1e-6 + 0.01
      0.010001
    """
    _check_share(beta_2=beta_2)
    return _adaptive(
        learning_rate,
        beta_1,
        tau,
        lambda v, square: v - (1 - beta_2) * square * jnp.sign(v - square),
    )


def fed_avgm(
    learning_rate: float = 1.0, *, momentum: float = MOMENTUM
) -> optax.GradientTransformation:
    """FedAvgM: m_t = beta m_{t-1} + Delta_t,  x_{t+1} = x_t + eta m_t.

    Hsu et al. 2019, arXiv 1909.06335.

    Args:
      learning_rate: eta, > 0.
      momentum: beta, in [0, 1).

    Returns:
      An optimizer for ``build_algorithm(server_optimizer=)``.

    Raises:
      ValueError: A number is outside its range.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.fed_avgm(0.5)
      >>> state = optimizer.init({"w": jnp.zeros(1)})
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)
      >>> float(step["w"][0])
      0.5
    """
    _check_positive(learning_rate=learning_rate)
    _check_share(momentum=momentum)
    return optax.sgd(learning_rate, momentum=momentum)


def optax_adam(learning_rate: float = 0.03) -> optax.GradientTransformation:
    """Adam as optax has it, bias-corrected, v_{-1} = 0: not the paper's FedAdam.

    Args:
      learning_rate: eta, > 0.

    Returns:
      An optimizer with the paper's decays, and tau as its epsilon.

    Raises:
      ValueError: The rate is not positive.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.optax_adam(0.1)
      >>> state = optimizer.init({"w": jnp.zeros(1)})
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)
      >>> round(float(step["w"][0]), 4)  # 0.1 * 1 / (1 + 1e-3)
      0.0999
    """
    _check_positive(learning_rate=learning_rate)
    return optax.adam(learning_rate, b1=BETA_1, b2=BETA_2, eps=TAU)


def optax_yogi(learning_rate: float = 0.03) -> optax.GradientTransformation:
    """Yogi as optax has it, bias-corrected, m_{-1} = 1e-6: not the paper's FedYogi.

    Args:
      learning_rate: eta, > 0.

    Returns:
      An optimizer with the paper's decays, and tau as its epsilon.

    Raises:
      ValueError: The rate is not positive.

    Example:
      >>> import fedcmi_jax as fc, jax.numpy as jnp
      >>> optimizer = fc.server_optimizers.optax_yogi(0.1)
      >>> state = optimizer.init({"w": jnp.zeros(1)})
      >>> step, state = optimizer.update({"w": -jnp.ones(1)}, state)
      >>> float(step["w"][0]) > 0
      True
    """
    _check_positive(learning_rate=learning_rate)
    return optax.yogi(learning_rate, b1=BETA_1, b2=BETA_2, eps=TAU)


REGISTRY: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adagrad": fed_adagrad,
    "adam": fed_adam,
    "yogi": fed_yogi,
    "avgm": fed_avgm,
    "optax_adam": optax_adam,
    "optax_yogi": optax_yogi,
}
"""Name in a configuration -> optimizer of a learning rate, which has a default."""


def _adaptive(
    learning_rate: float,
    beta_1: float,
    tau: float,
    accumulate: Callable[[Array, Array], Array],
) -> optax.GradientTransformation:
    """Algorithm 2, with ``(v, Delta^2) -> v`` of one of its three lines."""
    _check_positive(learning_rate=learning_rate, tau=tau)
    _check_share(beta_1=beta_1)

    def init(params: Params) -> Moments:
        m = jax.tree.map(jnp.zeros_like, params)
        return Moments(m, jax.tree.map(lambda x: jnp.full_like(x, tau**2), params))

    def update(
        gradient: Params, state: Moments, params: Params | None = None
    ) -> tuple[Params, Moments]:
        del params
        delta = jax.tree.map(jnp.negative, gradient)
        m = jax.tree.map(lambda m, d: beta_1 * m + (1 - beta_1) * d, state.m, delta)
        v = jax.tree.map(lambda v, d: accumulate(v, d**2), state.v, delta)
        step = jax.tree.map(lambda m, v: learning_rate * m / (jnp.sqrt(v) + tau), m, v)
        return step, Moments(m, v)

    return optax.GradientTransformation(init, update)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{name}: {value} is not positive; try 0.01")


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: {value} is outside [0, 1); try 0.9")
