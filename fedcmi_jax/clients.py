"""The client axis: the only module that knows there is more than one client.

A cohort is dealt to devices and cut into chunks. The clients of a chunk run together
under ``vmap``; on every device a ``scan`` walks its chunks and accumulates their sums,
so memory does not grow with the cohort; one reduction adds the devices' sums. Clients
come longest first, and a chunk runs as long as ITS longest client.
"""

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
    memory = constrain(state.memory, mesh, spec)
    return constrain(state._replace(memory=()), mesh)._replace(memory=memory)


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
    shared: PyTree,
    ids: Array,
    use: Array,
    steps: Array,
    memory: PyTree,
    *,
    num_clients: int,
    chunk_size: int,
    mesh: Mesh | None = None,
) -> tuple[PyTree, PyTree, Array]:
    """Runs ``update`` for every client of a cohort and sums what they send.

    Args:
      update: ``(shared, id, use[M], memory, max_steps) -> ClientUpdate`` for one
        client.
      shared: What all clients see.
      ids: [K] int32 client ids, longest client first.
      use: [K, M] float32, modalities each one trains with.
      steps: [K] int32, length of each client's pass over its data.
      memory: Per-client memory of the whole federation, leaves [N, ...].
      num_clients: N.
      chunk_size: Clients mapped together; a cohort that does not divide is padded with
        clients of id N, which contribute nothing.
      mesh: Devices that share the cohort; None: one.

    Returns:
      The sums, the new memory, and accepted [K].
    """
    cohort, devices = ids.shape[0], mesh.size if mesh else 1
    chunk_size = min(chunk_size, -(-cohort // devices))
    places = deal(cohort, devices, chunk_size)

    def dealt(x: Array, fill: int) -> Array:
        nobody = jnp.full((1, *x.shape[1:]), fill, x.dtype)
        return jnp.concatenate([x, nobody])[places.reshape(-1)]

    ids, use, steps = dealt(ids, num_clients), dealt(use, 0), dealt(steps, 0)

    def run_device(shared, ids, rows, use, steps, memory):
        """The chunks of one device; ``rows`` are the clients' places in ``memory``."""

        def run_chunk(ids, rows, use, steps, memory) -> ClientUpdate:
            own = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), memory)
            max_steps = steps.max()
            if chunk_size == 1:
                first = jax.tree.map(lambda x: x[0], (ids, use, own))
                result = update(shared, *first, max_steps)
                return jax.tree.map(lambda x: x[None], result)
            return jax.vmap(update, in_axes=(None, 0, 0, 0, None))(
                shared, ids, use, own, max_steps
            )

        def body(carry: tuple[PyTree, PyTree], chunk):
            sums, memory = carry
            ids, rows, use, steps = chunk
            result = run_chunk(ids, rows, use, steps, memory)
            sums = jax.tree.map(lambda total, x: total + x.sum(0), sums, result.sums)
            memory = jax.tree.map(
                lambda x, new: x.at[rows].set(new, mode="drop"),
                memory,
                result.memory,
            )
            return (sums, memory), result.accepted

        chunks = jax.tree.map(
            lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), (ids, rows, use, steps)
        )
        shapes = jax.eval_shape(
            lambda: (
                run_chunk(
                    chunks[0][0], chunks[1][0], chunks[2][0], chunks[3][0], memory
                ).sums
            )
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
        (sums, memory), accepted = jax.lax.scan(body, (zeros, memory), chunks)
        return sums, memory, accepted.reshape(-1)

    if mesh is None:
        sums, memory, accepted = run_device(shared, ids, ids, use, steps, memory)
    else:

        def run_shard(shared, ids, use, steps, memory):
            rows = jnp.arange(ids.shape[0])
            sums, memory, accepted = run_device(shared, ids, rows, use, steps, memory)
            flat, restore = ravel_pytree(sums)
            return restore(jax.lax.psum(flat, AXIS)), memory, accepted

        mapped = jax.shard_map(
            run_shard,
            mesh=mesh,
            in_specs=(P(), P(AXIS), P(AXIS), P(AXIS), P(AXIS)),
            out_specs=(P(), P(AXIS), P(AXIS)),
            check_vma=False,
        )
        own = jax.tree.map(lambda x: x.at[ids].get(mode="clip"), memory)
        own = constrain(own, mesh, P(AXIS))
        sums, own, accepted = mapped(shared, ids, use, steps, own)
        memory = jax.tree.map(
            lambda x, new: x.at[ids].set(new, mode="drop"), memory, own
        )
    accepted_in_order = jnp.zeros(cohort, bool)
    accepted = accepted_in_order.at[places.reshape(-1)].set(accepted, mode="drop")
    return sums, memory, accepted
