"""The client axis: the only module that knows there is more than one client.

A cohort is cut into chunks. The clients of a chunk run together under ``vmap``; a
``scan`` walks the chunks and accumulates their sums, so memory does not grow with the
cohort. Clients come longest first, and a chunk runs as long as ITS longest client.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.aggregate import UpdateSums
from fedcmi_jax.types import Array, PyTree


class ClientUpdate(NamedTuple):
    """What mapping one client yields.

    Attributes:
      sums: Its contribution to the round's sums.
      memory: What the method remembers of it.
      accepted: bool, whether it is in the sums.
    """

    sums: UpdateSums
    memory: PyTree
    accepted: Array


def longest_first(ids: Array, steps: Array) -> Array:
    """Permutation of the cohort by falling number of steps, ties by client id.

    Args:
      ids: [K] int32.
      steps: [K] int32.

    Returns:
      [K] int32 places; the order does not depend on the order of the cohort.
    """
    return jnp.lexsort((ids, -steps))


def map_clients(
    update: Callable[..., ClientUpdate],
    ids: Array,
    use: Array,
    steps: Array,
    memory: PyTree,
    *,
    num_clients: int,
    chunk_size: int,
) -> tuple[UpdateSums, PyTree, Array]:
    """Runs ``update`` for every client of a cohort and sums what they send.

    Args:
      update: ``(id, use[M], memory, max_steps) -> ClientUpdate`` for one client.
      ids: [K] int32 client ids, longest client first.
      use: [K, M] float32, modalities each one trains with.
      steps: [K] int32, length of each client's pass over its data.
      memory: Per-client memory of the whole federation, leaves [N, ...].
      num_clients: N.
      chunk_size: Clients mapped together; a cohort that does not divide is padded with
        clients of id N, which contribute nothing.

    Returns:
      The sums, the new memory, and accepted [K].
    """
    cohort = ids.shape[0]
    chunk_size = min(chunk_size, cohort)
    padding = -cohort % chunk_size

    def chunked(x: Array, fill: int) -> Array:
        tail = jnp.full((padding, *x.shape[1:]), fill, x.dtype)
        return jnp.concatenate([x, tail]).reshape(-1, chunk_size, *x.shape[1:])

    chunks = (chunked(ids, num_clients), chunked(use, 0), chunked(steps, 0))

    def run_chunk(ids: Array, use: Array, steps: Array, memory: PyTree) -> ClientUpdate:
        own_memory = jax.tree.map(lambda x: x.at[ids].get(mode="clip"), memory)
        max_steps = steps.max()
        if chunk_size == 1:
            first = jax.tree.map(lambda x: x[0], (ids, use, own_memory))
            return jax.tree.map(lambda x: x[None], update(*first, max_steps))
        return jax.vmap(update, in_axes=(0, 0, 0, None))(
            ids, use, own_memory, max_steps
        )

    def body(carry: tuple[UpdateSums, PyTree], chunk):
        sums, memory = carry
        ids, use, steps = chunk
        result = run_chunk(ids, use, steps, memory)
        sums = jax.tree.map(lambda total, x: total + x.sum(0), sums, result.sums)
        memory = jax.tree.map(
            lambda x, new: x.at[ids].set(new, mode="drop"), memory, result.memory
        )
        return (sums, memory), result.accepted

    shapes = jax.eval_shape(
        lambda: run_chunk(chunks[0][0], chunks[1][0], chunks[2][0], memory).sums
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    (sums, memory), accepted = jax.lax.scan(body, (zeros, memory), chunks)
    return sums, memory, accepted.reshape(-1)[:cohort]
