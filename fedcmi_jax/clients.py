"""The client axis: the only module that knows there is more than one client.

A cohort is cut into chunks, and the chunks are dealt to lanes. The clients of a chunk
run together under ``vmap``; a ``scan`` walks the chunks of a lane and accumulates their
sums, so memory does not grow with the cohort; a fixed tree adds the lanes' sums. Lanes
are shared by the devices, so their number changes no bit. Clients come longest first,
and a chunk runs as long as ITS longest client.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedcmi_jax import reports as reports_of
from fedcmi_jax import ring
from fedcmi_jax.placement import AXIS
from fedcmi_jax.types import Array, PyTree


class ClientUpdate(NamedTuple):
    """What mapping one client yields.

    Attributes:
      sums: Its contribution to the round's sums, a tree that adds.
      memory: What the method remembers of it.
      report: What the round keeps of every client by itself, a tree of small arrays;
        large ones come as vectors, which devices share.
    """

    sums: PyTree
    memory: PyTree
    report: PyTree


def longest_first(ids: Array, steps: Array) -> Array:
    """Permutation of the cohort by falling number of steps, ties by client id.

    Args:
      ids: [K] int32.
      steps: [K] int32.

    Returns:
      [K] int32 places; the order does not depend on the order of the cohort.
    """
    return jnp.lexsort((ids, -steps))


def deal(cohort: int, lanes: int, chunk_size: int) -> np.ndarray:
    """Deals a sorted cohort to lanes in chunks of neighbours, back and forth.

    Args:
      cohort: K.
      lanes: How many share the cohort.
      chunk_size: Clients per chunk.

    Returns:
      [lanes, chunks, chunk_size] places in the cohort; K where there is nobody.

    Example:
      >>> deal(7, 2, 2).tolist()
      [[[0, 1], [6, 7]], [[2, 3], [4, 5]]]
    """
    chunks = -(-cohort // (lanes * chunk_size))
    places = np.arange(chunks * lanes * chunk_size)
    table = np.minimum(places, cohort).reshape(chunks, lanes, chunk_size)
    table[1::2] = table[1::2, ::-1]
    return table.swapaxes(0, 1)


def lanes_of_devices(lanes: int, devices: int) -> np.ndarray:
    """Which lanes each device walks: lane l is on device l mod D.

    Args:
      lanes: L.
      devices: D.

    Returns:
      [D, ceil(L / D)] lanes; L where there is none.

    Example:
      >>> lanes_of_devices(8, 3).tolist()
      [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    """
    return (
        np.minimum(np.arange(-(-lanes // devices) * devices), lanes)
        .reshape(-1, devices)
        .T
    )


def map_clients(
    update: Callable[..., ClientUpdate],
    seen: PyTree,
    ids: Array,
    participation: Array,
    steps: Array,
    memory: PyTree,
    *,
    num_clients: int,
    chunk_size: int,
    lanes: int = 1,
    mesh: Mesh | None = None,
    spread: PyTree = (),
    fetch: Callable[[PyTree, PyTree, Array], PyTree] | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Runs ``update`` for every client of a cohort and sums what they send.

    Args:
      update: ``(seen, id, participation[M], memory, max_steps) -> ClientUpdate`` for
        one client.
      seen: What all clients see.
      ids: [K] int32 client ids, longest client first.
      participation: [K, M] float32, modalities each one trains with.
      steps: [K] int32, length of each client's pass over its data.
      memory: What is kept of every client of the federation, leaves [N, ...], on a
        mesh with as many rows more as ``placement.rows_on`` says, spread over it.
      num_clients: N, the id of nobody.
      chunk_size: Clients mapped together; a cohort that does not divide is padded with
        clients of id N, which contribute nothing.
      lanes: Sums that are accumulated apart and then added in a fixed tree, so that the
        result does not depend on how many of the devices, up to this many, share them.
        0: as many as there are devices, and one ``psum``, whose order is the backend's.
      mesh: Devices that share the cohort; None: one.
      spread: What clients look at and every device of the mesh has a part of, leaves
        [D rows, ...].
      fetch: ``(seen, part, ids[chunk]) -> seen``, adds to it what a chunk's clients
        look at of ``spread``; all devices call it together. None: nothing is spread.

    Returns:
      The sums, the new memory, and the reports in the cohort's order, leaves [K, ...];
      on a mesh each device holds a part of every client's vectors.
    """
    count, devices = ids.shape[0], mesh.size if mesh else 1
    chunk_size = min(chunk_size, count)
    places = deal(count, min(lanes or devices, -(-count // chunk_size)), chunk_size)
    count_lanes = len(places)
    nobody = np.full_like(places[:1], count)
    of_devices = lanes_of_devices(count_lanes, devices)
    places = np.concatenate([places, nobody])[of_devices]
    cohort = Members(
        _dealt(ids, places, num_clients),
        _dealt(participation > 0, places, 0),  # a byte each, for there may be many
        _dealt(steps, places, 0),
    )
    run = jax.jit(functools.partial(run_chunk, update, fetch))
    if mesh is None:
        cohort = jax.tree.map(lambda x: x[0], cohort)
        result = walk_lanes(run, add_lanes, (seen, spread), cohort, cohort.ids, memory)
    else:
        add = _psum if lanes == 0 else functools.partial(_gather, count_lanes)
        walk = functools.partial(walk_lanes, run, add)
        result = _walk_on_mesh(walk, mesh, (seen, spread), cohort, memory)
    total, memory, reports = result
    rows = np.argsort(places.reshape(-1), kind="stable")[:count]
    dealt = places.ndim - (mesh is None)

    def in_order(x: Array) -> Array:
        return reports_of.in_order(x.reshape(-1, *x.shape[dealt:]), rows, mesh)

    return total, memory, jax.tree.map(in_order, reports)


class Members(NamedTuple):
    """Clients of a cohort, or of a chunk of it: see ``map_clients``."""

    ids: Array
    participation: Array
    steps: Array


def _dealt(x: Array, places: np.ndarray, fill: int) -> Array:
    """The cohort's rows where they were dealt to; ``fill`` where there is nobody."""
    nobody = jnp.full((1, *x.shape[1:]), fill, x.dtype)
    return jnp.concatenate([x, nobody])[places]


def walk_lanes(
    run: Callable[..., ClientUpdate],
    add: Callable[[PyTree], PyTree],
    seen: PyTree,
    members: Members,
    rows: Array,
    memory: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """The lanes of one device, and the chunks of each, one after the other.

    Args:
      run: ``run_chunk`` of an update.
      add: The lanes' sums, leaves [L, ...] -> their sum over all devices.
      seen: What all clients see, and the device's part of what is spread.
      members: The device's clients [L, chunks, chunk_size].
      rows: Their places in ``memory``; one past its end: nowhere.
      memory: Leaves [rows, ...].

    Returns:
      The sums of all clients, the new memory, and reports [L, chunks, chunk_size, ...].
    """
    first = jax.tree.map(lambda x: x[0, 0], (members, rows))
    shapes = jax.eval_shape(run, seen, *first, memory).sums
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def chunk(carry: tuple[PyTree, PyTree], of: tuple[Members, Array]):
        total, memory = carry
        # Kept apart, so that no rounding depends on what surrounds a client's work.
        result = jax.lax.optimization_barrier(run(seen, *of, memory))
        memory = jax.tree.map(
            lambda x, new: x.at[of[1]].set(new, mode="drop"), memory, result.memory
        )
        total = jax.tree.map(jnp.add, total, result.sums)
        return (total, memory), result.report

    def lane(memory: PyTree, of: tuple[Members, Array]):
        (total, memory), reports = jax.lax.scan(chunk, (zeros, memory), of)
        return memory, (total, reports)

    memory, (totals, reports) = jax.lax.scan(lane, memory, (members, rows))
    sums = add(jax.lax.optimization_barrier(totals))
    return jax.lax.optimization_barrier(sums), memory, reports


def add_lanes(totals: PyTree) -> PyTree:
    """The sum over the lanes [L, ...], neighbours first: ((0 + 1) + (2 + 3)) + ...

    Example:
      >>> add_lanes(jnp.ones((5, 2))).tolist()
      [5.0, 5.0]
    """

    def added(x: Array) -> Array:
        while len(x) > 1:
            odd = x[len(x) // 2 * 2 :]
            x = x[: len(x) - len(odd)].reshape(-1, 2, *x.shape[1:])
            x = x[:, 0] + x[:, 1]
            x = jnp.concatenate([x, odd]) if len(odd) else x
        return x[0]

    return jax.tree.map(added, totals)


def run_chunk(
    update: Callable[..., ClientUpdate],
    fetch: Callable[[PyTree, PyTree, Array], PyTree] | None,
    everything: tuple[PyTree, PyTree],
    members: Members,
    rows: Array,
    memory: PyTree,
) -> ClientUpdate:
    """A chunk's clients under ``vmap``, a single one as it is.

    Returns:
      Their sum, memory and reports [chunk, ...].
    """
    seen, part = everything
    if fetch is not None:
        seen = fetch(seen, part, members.ids)
    own = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), memory)
    ids, participation, steps = members
    participation = participation.astype(jnp.float32)
    longest = steps.max()
    if len(ids) == 1:
        one = jax.tree.map(lambda x: x[0], (ids, participation, own))
        sums, *rest = update(seen, *one, longest)
        return ClientUpdate(sums, *jax.tree.map(lambda x: x[None], rest))
    in_axes = (None, 0, 0, 0, None)
    mapped = jax.vmap(update, in_axes)(seen, ids, participation, own, longest)
    return mapped._replace(sums=jax.tree.map(lambda x: x.sum(0), mapped.sums))


def _walk_on_mesh(
    walk: Callable[..., tuple[PyTree, PyTree, PyTree]],
    mesh: Mesh,
    seen: tuple[PyTree, PyTree],
    cohort: Members,
    memory: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """Every device walks its lanes; one collective operation adds their sums."""

    def shard(seen: tuple[PyTree, PyTree], members: Members, memory: PyTree):
        members = jax.tree.map(lambda x: x[0], members)
        ids = members.ids.reshape(-1)
        rows = jnp.arange(ids.size).reshape(members.ids.shape)
        own = ring.fetch(memory, ids, mesh.size)
        sums, own, reports = walk(seen, members, rows, own)
        small, large = reports_of.gather(reports, ids.size)
        ids = _after((sums, small), ids)
        return sums, ring.store(memory, ids, own, mesh.size), small, large

    mapped = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=((P(), P(AXIS)), P(AXIS), P(AXIS)),
        out_specs=(P(), P(AXIS), P(), P(AXIS)),
        check_vma=False,
    )
    sums, memory, small, large = mapped(seen, cohort, memory)
    return sums, memory, reports_of.joined(small, large)


def _after(done: PyTree, ids: Array) -> Array:
    """The ids as they are, but not before all of ``done``.

    XLA:CPU does not order collective operations within a loop, the ring's, and outside
    of it: of two devices each may wait in another one, for ever. A barrier would not
    last until the program is scheduled, so a number that is 0 is added.
    """
    leaves = [x for x in jax.tree.leaves(done) if x.size]
    first = [x.reshape(-1)[0].astype(jnp.float32) for x in leaves]
    never = [(x > 0) & (x < 0) for x in first]
    return ids + sum(never, start=jnp.zeros((), bool)).astype(ids.dtype)


def _psum(totals: PyTree) -> PyTree:
    """The sum over all devices' lanes in the backend's own order."""
    flat, restore = ravel_pytree(add_lanes(totals))
    return restore(jax.lax.psum(flat, AXIS))


def _gather(lanes: int, totals: PyTree) -> PyTree:
    """The sum over all devices' lanes in the order of ``add_lanes``."""
    if not jax.tree.leaves(totals):
        return totals  # clients were measured, and sent nothing
    restore = ravel_pytree(jax.tree.map(lambda x: x[0], totals))[1]
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(totals)
    # Lane l is row l // D of device l mod D.
    flat = jax.lax.all_gather(flat, AXIS, axis=1).reshape(-1, flat.shape[1])
    return restore(add_lanes(flat[:lanes]))
