"""Clients' rows that are spread over devices: fetched for a cohort, and put back.

Row i of N lies on device i // (N / D). Left to itself, XLA gathers all rows on every
device to pick some by id, so that memory per device would not fall with their number.
Here what a device asks for goes once around the ring of devices instead, and each fills
in what it has: no device ever holds more than its own rows and one cohort's share.

For use within ``jax.shard_map`` over the axis ``clients``; copies only, so exact.
"""

import jax
import jax.numpy as jnp

from fedcmi_jax.placement import AXIS
from fedcmi_jax.types import Array, PyTree


def fetch(block: PyTree, ids: Array, devices: int) -> PyTree:
    """The rows of some clients, wherever they lie.

    Args:
      block: This device's rows, leaves [N / D, ...].
      ids: [k] int32, the clients that this device asks for, as many as any other; from
        N on: the last client's.
      devices: D.

    Returns:
      Leaves [k, ...].
    """
    if not jax.tree.leaves(block):
        return block
    size = len(jax.tree.leaves(block)[0])
    ids = jnp.minimum(ids, size * devices - 1)

    def visit(_: Array, asked: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        ids, rows = asked
        places, is_here = _places(ids, size)
        rows = jax.tree.map(
            lambda row, own: jnp.where(
                is_here.reshape(-1, *[1] * (own.ndim - 1)), own[places], row
            ),
            rows,
            block,
        )
        return _pass_on((ids, rows), devices)

    nothing = jax.tree.map(
        lambda x: jnp.zeros((len(ids), *x.shape[1:]), x.dtype), block
    )
    return jax.lax.fori_loop(0, devices, visit, (ids, nothing))[1]


def store(block: PyTree, ids: Array, rows: PyTree, devices: int) -> PyTree:
    """Puts rows back where they belong.

    Args:
      block: This device's rows, leaves [N / D, ...].
      ids: [k] int32, clients of whom this device has new rows; from N on: nobody.
      rows: Leaves [k, ...].
      devices: D.

    Returns:
      The block with what was new in it.
    """
    if not jax.tree.leaves(block):
        return block
    size = len(jax.tree.leaves(block)[0])

    def visit(_: Array, carry: tuple[PyTree, Array, PyTree]):
        block, ids, rows = carry
        places, is_here = _places(ids, size)
        places = jnp.where(is_here, places, size)
        block = jax.tree.map(
            lambda own, row: own.at[places].set(row, mode="drop"), block, rows
        )
        return block, *_pass_on((ids, rows), devices)

    return jax.lax.fori_loop(0, devices, visit, (block, ids, rows))[0]


def _places(ids: Array, size: int) -> tuple[Array, Array]:
    """Where clients are in this device's rows, and whether they are."""
    places = ids - jax.lax.axis_index(AXIS) * size
    return jnp.clip(places, 0, size - 1), (places >= 0) & (places < size)


def _pass_on(tree: PyTree, devices: int) -> PyTree:
    """To the next device of the ring, from the one before."""
    ring = [(d, (d + 1) % devices) for d in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, ring), tree)
