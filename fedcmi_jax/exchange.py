"""Samples spread over devices: a chunk's travel to the device that trains it.

Each device holds a part of a federation's samples. When a chunk of clients is about to
be trained, every device sends what it holds of it, a few samples of each client at a
time, so that no device ever has more than its part and a chunk's samples. They arrive
bit for bit, so where samples lie changes no result.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.federation import Federation
from fedcmi_jax.placement import AXIS
from fedcmi_jax.types import Array, PyTree

BLOCKS = 4
"""A device sends and receives 1 / BLOCKS of a chunk's samples at a time: with a chunk
itself that is one and a half chunks."""


class Samples(NamedTuple):
    """What a device holds of a federation; see ``Federation``."""

    inputs: dict[str, PyTree]
    labels: Array
    present: Array | None


def split(federation: Federation) -> tuple[Federation, Samples]:
    """A federation's tables, which every device has, and the samples, which are spread.

    Args:
      federation: The federation.

    Returns:
      The federation without samples, and the samples.
    """
    samples = Samples(federation.inputs, federation.labels, federation.present)
    nothing = jnp.zeros(0, federation.labels.dtype)
    hollow = dataclasses.replace(federation, inputs={}, labels=nothing, present=None)
    return hollow, samples


def collect(federation: Federation, samples: Samples, ids: Array) -> Federation:
    """The federation with the samples of a chunk of clients, at new offsets.

    All devices of the mesh axis call this together, each for a chunk of its own; they
    send as many samples as the longest client of all these chunks has.

    Args:
      federation: Without samples: ``split``.
      samples: The part that this device holds.
      ids: [S] int32, this device's chunk; N is nobody.

    Returns:
      A federation whose samples are those of the chunk only, S L of them or a few more.
      What lies past a client's own is never looked at.
    """
    length = federation.max_size
    width = -(-length // (BLOCKS * federation.shards))
    room = -(-length // width) * width
    wanted = jax.lax.all_gather(ids, AXIS)
    starts = federation.offsets.at[wanted].get(mode="clip")
    totals = federation.sizes + federation.probe_sizes
    totals = totals.at[wanted].get(mode="fill", fill_value=0)
    here, rows_here = jax.lax.axis_index(AXIS), samples.labels.shape[0]
    clients, places = jnp.arange(len(ids))[:, None], jnp.arange(width)

    def block(i: Array, chunk: Samples) -> Samples:
        rows = starts[..., None] + (i * width + places)[None, None]
        holders = jnp.minimum(rows[here] // rows_here, federation.shards - 1)

        def travel(own: Array, x: Array) -> Array:
            sent = x.at[rows - here * rows_here].get(mode="clip")
            received = jax.lax.all_to_all(sent, AXIS, 0, 0)
            chosen = received[holders, clients, places[None]]
            return jax.lax.dynamic_update_slice_in_dim(own, chosen, i * width, 1)

        return jax.tree.map(travel, chunk, samples)

    def empty(x: Array) -> Array:
        return jnp.zeros((len(ids), room, *x.shape[1:]), x.dtype)

    blocks = -(-totals.max() // width)
    chunk = jax.lax.fori_loop(0, blocks, block, jax.tree.map(empty, samples))
    chunk = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunk)
    chunk = jax.lax.optimization_barrier(chunk)
    offsets = jnp.zeros_like(federation.offsets)
    offsets = offsets.at[ids].set(jnp.arange(len(ids)) * room, mode="drop")
    return dataclasses.replace(federation, **chunk._asdict(), offsets=offsets, shards=1)
