"""The client axis: the only module that knows there is more than one client.

A cohort is dealt to devices and cut into chunks. The clients of a chunk run together
under ``vmap``; on every device a ``scan`` walks its chunks and accumulates their sums,
so memory does not grow with the cohort; one reduction adds the devices' sums. Clients
come longest first, and a chunk runs as long as ITS longest client.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedcmi_jax.types import Array, FederationState, PyTree

AXIS = "clients"
"""Name of the mesh axis that clients are dealt over."""


class ClientUpdate(NamedTuple):
    """What mapping one client yields.

    Attributes:
      sums: Its contribution to the round's sums, a tree that adds.
      memory: What the method remembers of it.
      accepted: bool, whether it is in the sums.
    """

    sums: PyTree
    memory: PyTree
    accepted: Array


def client_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over devices (of all processes) along which clients are dealt.

    Args:
      num_devices: How many; None: all there are.

    Returns:
      A mesh with the one axis ``clients``.

    Raises:
      ValueError: There are fewer, or less than one was asked for.

    Example:
      >>> client_mesh(1).shape["clients"]
      1
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"devices: {count} is not possible with {len(devices)} "
            f"{jax.default_backend()} device(s); give 1 to {len(devices)}"
            + (" (or --host-devices)" if jax.default_backend() == "cpu" else "")
        )
    return Mesh(np.array(devices[:count]), (AXIS,))


def shards_memory(mesh: Mesh | None, num_clients: int) -> bool:
    """Whether memory [N, ...] is spread over the mesh, whose size must divide N."""
    return mesh is not None and num_clients % mesh.size == 0


def place_state(
    state: FederationState, mesh: Mesh | None, num_clients: int
) -> FederationState:
    """Replicates a state on the mesh, its per-client memory spread over the devices.

    Args:
      state: The state; arrays or tracers.
      mesh: Where; None: left as it is.
      num_clients: N; memory is replicated, too, unless the mesh size divides it.

    Returns:
      The placed state.
    """
    spec = P(AXIS) if shards_memory(mesh, num_clients) else P()
    own = constrain({"memory": state.memory, "personal": state.personal}, mesh, spec)
    return constrain(state._replace(memory=(), personal={}), mesh)._replace(**own)


def constrain(tree: PyTree, mesh: Mesh | None, spec: P = P()) -> PyTree:  # noqa: B008
    """The tree, laid out on the mesh by ``spec`` (default: replicated)."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts host or single-device arrays on every device of the mesh."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), sharding), tree)


def longest_first(ids: Array, steps: Array) -> Array:
    """Permutation of the cohort by falling number of steps, ties by client id.

    Args:
      ids: [K] int32.
      steps: [K] int32.

    Returns:
      [K] int32 places; the order does not depend on the order of the cohort.
    """
    return jnp.lexsort((ids, -steps))


def deal(cohort: int, devices: int, chunk_size: int) -> np.ndarray:
    """Deals a sorted cohort to devices in chunks of neighbours, back and forth.

    Args:
      cohort: K.
      devices: How many share the cohort.
      chunk_size: Clients per chunk.

    Returns:
      [devices, chunks, chunk_size] places in the cohort; K where there is nobody.

    Example:
      >>> deal(7, 2, 2).tolist()
      [[[0, 1], [6, 7]], [[2, 3], [4, 5]]]
    """
    chunks = -(-cohort // (devices * chunk_size))
    places = np.arange(chunks * devices * chunk_size)
    table = np.minimum(places, cohort).reshape(chunks, devices, chunk_size)
    table[1::2] = table[1::2, ::-1]
    return table.swapaxes(0, 1)


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
    mesh: Mesh | None = None,
) -> tuple[PyTree, PyTree, Array]:
    """Runs ``update`` for every client of a cohort and sums what they send.

    Args:
      update: ``(seen, id, participation[M], memory, max_steps) -> ClientUpdate`` for
        one client.
      seen: What all clients see.
      ids: [K] int32 client ids, longest client first.
      participation: [K, M] float32, modalities each one trains with.
      steps: [K] int32, length of each client's pass over its data.
      memory: What is kept of every client of the federation, leaves [N, ...].
      num_clients: N.
      chunk_size: Clients mapped together; a cohort that does not divide is padded with
        clients of id N, which contribute nothing.
      mesh: Devices that share the cohort; None: one.

    Returns:
      The sums, the new memory, and accepted [K].
    """
    count, devices = ids.shape[0], mesh.size if mesh else 1
    chunk_size = min(chunk_size, -(-count // devices))
    places = deal(count, devices, chunk_size)
    cohort = Members(
        _dealt(ids, places, num_clients),
        _dealt(participation, places, 0),
        _dealt(steps, places, 0),
    )
    walk = functools.partial(walk_chunks, update, chunk_size)
    if mesh is None:
        sums, memory, accepted = walk(seen, cohort, cohort.ids, memory)
    else:
        sums, memory, accepted = _walk_on_mesh(walk, mesh, seen, cohort, memory)
    in_order = jnp.zeros(count, bool)
    accepted = in_order.at[places.reshape(-1)].set(accepted, mode="drop")
    return sums, memory, accepted


class Members(NamedTuple):
    """Clients of a cohort, or of a chunk of it: see ``map_clients``."""

    ids: Array
    participation: Array
    steps: Array


def _dealt(x: Array, places: np.ndarray, fill: int) -> Array:
    """The cohort's rows in the order of ``deal``; ``fill`` where there is nobody."""
    nobody = jnp.full((1, *x.shape[1:]), fill, x.dtype)
    return jnp.concatenate([x, nobody])[places.reshape(-1)]


def walk_chunks(
    update: Callable[..., ClientUpdate],
    chunk_size: int,
    seen: PyTree,
    members: Members,
    rows: Array,
    memory: PyTree,
) -> tuple[PyTree, PyTree, Array]:
    """The chunks of one device, one after the other.

    Args:
      update: For one client.
      chunk_size: Clients mapped together.
      seen: What all clients see.
      members: The device's clients [n].
      rows: [n] their places in ``memory``; one past its end: nowhere.
      memory: Leaves [rows, ...].

    Returns:
      The sums, the new memory, and accepted [n].
    """
    run = functools.partial(run_chunk, update, seen)

    def body(carry: tuple[PyTree, PyTree], chunk: tuple[Members, Array]):
        sums, memory = carry
        result = run(chunk[0], chunk[1], memory)
        sums = jax.tree.map(lambda total, x: total + x.sum(0), sums, result.sums)
        memory = jax.tree.map(
            lambda x, new: x.at[chunk[1]].set(new, mode="drop"), memory, result.memory
        )
        return (sums, memory), result.accepted

    chunks = jax.tree.map(
        lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), (members, rows)
    )
    first = jax.tree.map(lambda x: x[0], chunks)
    shapes = jax.eval_shape(lambda: run(first[0], first[1], memory).sums)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    (sums, memory), accepted = jax.lax.scan(body, (zeros, memory), chunks)
    return sums, memory, accepted.reshape(-1)


def run_chunk(
    update: Callable[..., ClientUpdate],
    seen: PyTree,
    members: Members,
    rows: Array,
    memory: PyTree,
) -> ClientUpdate:
    """A chunk's clients under ``vmap``; a single one as it is. Leaves [chunk, ...]."""
    own = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), memory)
    ids, participation, steps = members
    longest = steps.max()
    if len(ids) == 1:
        one = jax.tree.map(lambda x: x[0], (ids, participation, own))
        return jax.tree.map(lambda x: x[None], update(seen, *one, longest))
    in_axes = (None, 0, 0, 0, None)
    return jax.vmap(update, in_axes)(seen, ids, participation, own, longest)


def _walk_on_mesh(
    walk: Callable[..., tuple[PyTree, PyTree, Array]],
    mesh: Mesh,
    seen: PyTree,
    cohort: Members,
    memory: PyTree,
) -> tuple[PyTree, PyTree, Array]:
    """Every device walks its share of the cohort; one reduction adds their sums."""

    def shard(seen: PyTree, members: Members, own: PyTree):
        rows = jnp.arange(members.ids.shape[0])
        sums, own, accepted = walk(seen, members, rows, own)
        flat, restore = ravel_pytree(sums)
        return restore(jax.lax.psum(flat, AXIS)), own, accepted

    mapped = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(P(), P(AXIS), P(AXIS)),
        out_specs=(P(), P(AXIS), P(AXIS)),
        check_vma=False,
    )
    own = jax.tree.map(lambda x: x.at[cohort.ids].get(mode="clip"), memory)
    sums, own, accepted = mapped(seen, cohort, constrain(own, mesh, P(AXIS)))
    memory = jax.tree.map(
        lambda x, new: x.at[cohort.ids].set(new, mode="drop"), memory, own
    )
    return sums, memory, accepted
