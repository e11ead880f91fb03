"""The guard: clients whose updates are far longer than those before (methods 19.1).

It streams: all that it knows is a ring of the lengths of earlier updates, and a client
is judged while it is mapped. Its factor is a value of the state, so that switched on
and off are one program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import scale_blocks, statistics_weights
from fedcmi_jax.reductions import by_columns
from fedcmi_jax.types import Array, Params, PyTree

CAPACITY = 256
"""Clients that the ring remembers: some fifty rounds of five, and cheap to sort."""

LEAST_VALUES = 20
"""Values from which on the ring's median is trusted."""

LEAST_IN_ROUND = 3
"""Values among which one can be the odd one out, before the ring has enough."""

FACTOR = 30.0
"""By default. Honest clients reached 7.7 (BUILD_NOTES), late, when most
of a federation hardly moves any more and few still learn."""


class Guard(NamedTuple):
    """What the guard remembers; part of ``FederationState``.

    Attributes:
      factor: float32, clients beyond factor x median are set aside; infinity: nobody.
      norms: [CAPACITY, 2] float32, l2 norms of accepted clients' parameter and
        statistics updates; 0: none yet, or it has no such blocks.
      steps: [CAPACITY] float32, their local steps, at least 1.
      total: int32, clients remembered so far; place ``total mod CAPACITY`` is next.
    """

    factor: Array
    norms: Array
    steps: Array
    total: Array


class Reach(NamedTuple):
    """How far clients may go in a round: a client is judged by the wider of the two.

    Attributes:
      norm: [2] float32, of the whole update; infinity: anywhere.
      per_step: [2] float32, of the update over its local steps.
    """

    norm: Array
    per_step: Array


def start(factor: float) -> Guard:
    """An empty ring.

    Example:
      >>> int(start(10.0).total)
      0
    """
    return Guard(
        factor=jnp.asarray(factor, jnp.float32),
        norms=jnp.zeros((CAPACITY, 2), jnp.float32),
        steps=jnp.ones(CAPACITY, jnp.float32),
        total=jnp.zeros((), jnp.int32),
    )


def absent(like: Guard) -> Guard:
    """The guard of a state that was saved without: switched off, the ring empty.

    Args:
      like: Its shardings are taken over; arrays or ``jax.ShapeDtypeStruct``.

    Example:
      >>> float(absent(start(10.0)).factor)
      inf
    """

    def placed(x: Array, like: Array) -> Array:
        is_placed = getattr(like, "committed", False)
        return jax.device_put(x, like.sharding) if is_placed else x

    return jax.tree.map(placed, start(jnp.inf), like)


def l2_norm(tree: PyTree) -> Array:
    """Of all floating-point numbers of a tree; float32 scalar, 0 of an empty tree.

    Example:
      >>> float(l2_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
      5.0
    """
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    squares = (by_columns(jnp.sum, x**2) for x in leaves)
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def update_norms(delta: Params, stats_delta: Params, owned: Params) -> Array:
    """[2] float32: l2 norms of a client's updates over its own blocks.

    Args:
      delta: Of the parameters.
      stats_delta: Of the BatchNorm statistics.
      owned: Prefix tree of the parameters, 1 for blocks that count.
    """
    of_stats = statistics_weights(owned, stats_delta)
    own = scale_blocks(owned, delta), scale_blocks(of_stats, stats_delta)
    return jnp.stack([l2_norm(tree) for tree in own])


def reach(guard: Guard) -> Reach:
    """What the ring lets clients do in the round that begins."""
    return _reach(guard.factor, guard.norms, guard.steps, LEAST_VALUES)


def _reach(factor: Array, norms: Array, steps: Array, least: int) -> Reach:
    return Reach(
        factor * _medians(norms, least),
        factor * _medians(norms / steps[:, None], least),
    )


def _medians(values: Array, least: int) -> Array:
    """[2]: lower medians of the columns' positive values; inf where there are few."""
    is_value = values > 0
    count = is_value.sum(0)
    ordered = jnp.sort(jnp.where(is_value, values, jnp.inf), axis=0)
    place = jnp.maximum(count - 1, 0) // 2
    medians = jnp.take_along_axis(ordered, place[None], axis=0)[0]
    return jnp.where(count >= least, medians, jnp.inf)


def is_beyond(reach: Reach, norms: Array, steps: Array) -> Array:
    """Whether a client went beyond what its round allows; bool, of one or of many.

    Args:
      reach: The round's.
      norms: [..., 2] of its update.
      steps: [...] local steps.

    Example:
      >>> reach = Reach(jnp.array([10.0, 10.0]), jnp.array([2.0, 2.0]))
      >>> norms = jnp.array([[11.0, 0.0], [11.0, 0.0]])
      >>> is_beyond(reach, norms, jnp.array([2, 8])).tolist()
      [True, False]
    """
    steps = jnp.maximum(steps, 1).astype(jnp.float32)[..., None]
    norm, per_step = (jnp.broadcast_to(x, norms.shape) for x in reach)
    return (norms > jnp.maximum(norm, steps * per_step)).any(-1)


def is_foul(guard: Guard, norms: Array, steps: Array, accepted: Array) -> Array:
    """[K] bool: whose update is beyond reach by this round's own values.

    Only while the ring has too few values to judge by: then they are judged together
    with those of this round, which is over, so that it can be dropped as a whole only.

    Args:
      guard: Before the round.
      norms: [K, 2].
      steps: [K].
      accepted: [K] bool.
    """
    known = _medians(guard.norms, LEAST_VALUES) < jnp.inf
    here = jnp.where(accepted[:, None] & ~known[None], norms, 0.0)
    before = jnp.where(known[None], 0.0, guard.norms)
    steps = jnp.maximum(steps, 1).astype(jnp.float32)
    limits = _reach(
        guard.factor,
        jnp.concatenate([before, here]),
        jnp.concatenate([guard.steps, steps]),
        LEAST_IN_ROUND,
    )
    return accepted & is_beyond(limits, here, steps)


def remember(guard: Guard, norms: Array, steps: Array, accepted: Array) -> Guard:
    """The ring with a round's accepted clients, in the order of the cohort.

    Args:
      guard: Before the round.
      norms: [K, 2].
      steps: [K].
      accepted: [K] bool; clients without a step are left out as well.
    """
    enters = accepted & (steps > 0)
    place = (guard.total + jnp.cumsum(enters) - 1) % CAPACITY
    # Of more than a ring holds the first ones enter.
    enters &= jnp.cumsum(enters) <= CAPACITY
    place = jnp.where(enters, place, CAPACITY)
    return guard._replace(
        norms=guard.norms.at[place].set(norms, mode="drop"),
        steps=guard.steps.at[place].set(steps.astype(jnp.float32), mode="drop"),
        total=(guard.total + enters.sum()).astype(jnp.int32),
    )
