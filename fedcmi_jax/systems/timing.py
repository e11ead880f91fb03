"""What becomes of a client's round, and how long it takes (methods 22)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import by_block, statistics_weights
from fedcmi_jax.compression import Compression
from fedcmi_jax.systems.effects import Systems
from fedcmi_jax.types import Array, Params, PyTree
from fedcmi_jax.uploads import is_like_params

MOST_STEPS = 2**30
"""Of a client in a round, whatever its speed: int32 holds them."""


class Outcome(NamedTuple):
    """What became of one client's round.

    Attributes:
      returned: bool, whether what it sent arrived in time.
      seconds: float32, until it arrived.
      partial: bool, whether it took fewer steps than it would have.
    """

    returned: Array
    seconds: Array
    partial: Array


class Clock(NamedTuple):
    """What a round reports.

    Attributes:
      returned: [K] bool, whose update arrived.
      partial: int32, how many of them took fewer steps than they would have.
      seconds: float32, simulated, of all rounds up to this one.
    """

    returned: Array
    partial: Array
    seconds: Array


def most_steps(
    systems: Systems, speed: Array, bandwidth: Array, num_bytes: Array, batch_size: int
) -> Array:
    """Local steps that a client can take by the deadline; int32.

    floor((deadline - bytes / bandwidth) speed / B), at least 0.

    Args:
      systems: Its deadline.
      speed: Samples per second.
      bandwidth: Bytes per second.
      num_bytes: Down and up.
      batch_size: B; a smaller last batch takes as long.
    """
    if systems.deadline is None:
        return jnp.asarray(MOST_STEPS, jnp.int32)
    left = systems.deadline - num_bytes / bandwidth
    steps = jnp.floor(left * speed / batch_size)
    return jnp.clip(steps, 0, MOST_STEPS).astype(jnp.int32)


def outcome(
    systems: Systems,
    key: Array,
    steps: Array,
    possible: Array,
    seconds_per_step: Array,
    network_seconds: Array,
) -> Outcome:
    """What became of a client's round.

    Args:
      systems: Dropout, and what comes of the late.
      key: Of this client and round.
      steps: int32, steps that it wants to take.
      possible: int32, ``most_steps``.
      seconds_per_step: float32.
      network_seconds: float32, of both directions.
    """
    late = steps > possible
    taken = jnp.minimum(steps, possible)
    in_time = taken > 0 if systems.late == "partial" else ~late
    lost = jax.random.uniform(key) < systems.dropout
    partial = late if systems.late == "partial" else jnp.zeros_like(late)
    return Outcome(
        returned=in_time & ~lost,
        seconds=network_seconds + taken * seconds_per_step,
        partial=partial,
    )


def clock(systems: Systems, before: Array, outcomes: Outcome, is_real: Array) -> Clock:
    """A round's report: it lasts until the last client is back, or to the deadline.

    Args:
      systems: The deadline.
      before: float32, seconds of the rounds before.
      outcomes: Of the cohort, leaves [K].
      is_real: [K] bool, False for padding.
    """
    returned = outcomes.returned & is_real
    seconds = jnp.where(returned, outcomes.seconds, 0.0).max()
    if systems.deadline is not None:
        missing = (is_real & ~returned).any()
        seconds = jnp.where(missing, systems.deadline, seconds)
    partial = (outcomes.partial & returned).sum().astype(jnp.int32)
    return Clock(returned, partial, before + seconds)


def start(systems: Systems | None) -> PyTree:
    """What the state holds of it: simulated seconds so far, or ()."""
    return () if systems is None else jnp.zeros(())


def traffic(
    owned: Params,
    params: Params,
    stats: Params,
    upload: PyTree,
    compression: Compression | None,
) -> tuple[Array, Array]:
    """Bytes that a client receives and sends in a round, by what it owns; float32.

    Args:
      owned: Prefix tree of the parameters, 1 for blocks that it is sent and sends.
      params: Shapes of the parameters.
      stats: Of the BatchNorm statistics.
      upload: Of what the method sends beside them.
      compression: Of the parameters on their way up; None: none.
    """

    def total(weights: Params, tree: PyTree, size: Callable[[int, int], int]) -> Array:
        found = by_block(lambda w, x: w * size(x.size, x.dtype.itemsize), weights, tree)
        return sum(jax.tree.leaves(found), start=jnp.zeros(()))

    def full(size: int, itemsize: int) -> int:
        return size * itemsize

    def small(size: int, itemsize: int) -> int:
        if compression is None:
            return full(size, itemsize)
        return compression.num_bytes(size)

    of_stats = total(statistics_weights(owned, stats), stats, full)
    down = total(owned, params, full) + of_stats
    up = total(owned, params, small) + of_stats
    for part in upload if type(upload) is tuple else (upload,):
        if is_like_params(part, owned):
            up += total(owned, part, full)
        else:
            up += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))
    return down, up
