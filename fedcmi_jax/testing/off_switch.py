"""A method that is switched off by its options is FedAvg: a check for every method.

A method whose terms have coefficients should have values that turn all of them off:
loss terms times 0, gradients passed as they are, everybody's weight n_i, the cohort
drawn uniformly. Two rounds must then end with FedAvg's parameters, on the same model
and with the same momentum, bit for bit: what is left over is a bug. For that a hook
must add no 0 of its own to the gradients' graph that changes the order of summation,
and draw no random numbers from keys that others use.
"""

import functools

import jax.numpy as jnp
import numpy as np

from fedcmi_jax.methods import Method
from fedcmi_jax.testing.conformance import Case
from fedcmi_jax.testing.problem import assert_close, assert_equal, model
from fedcmi_jax.types import FederationState, RoundInfo

ROUNDS = 2
"""From the second round on, what a method remembers has its effect."""


@functools.cache
def _fedavg(momentum: float, uniform: bool) -> tuple[FederationState, RoundInfo]:
    """FedAvg after the same rounds: the same for all methods."""
    same = Method(weight=lambda client, context: jnp.ones(()))
    fedavg = (same if uniform else Method())._replace(momentum=momentum)
    return Case(fedavg, model()).round_of_some(ROUNDS)


def check_off_switch(off: Method, *, uniform: bool = False) -> None:
    """Checks that a method with its options at "off" is FedAvg.

    Args:
      off: The method, made with the options that switch it off.
      uniform: Whether it weights all clients equally, and is FedAvg with such weights,
        up to rounding.

    Raises:
      AssertionError: It is not.

    For example ``check_off_switch(fc.methods.fedprox(mu=0.0))``.
    """
    ours, info = Case(off, model()).round_of_some(ROUNDS)
    theirs, their_info = _fedavg(off.momentum, uniform)
    np.testing.assert_array_equal(info.cohort, their_info.cohort)
    compare = assert_close if uniform else assert_equal
    compare(ours.params, theirs.params)
    compare(ours.batch_stats, theirs.batch_stats)
