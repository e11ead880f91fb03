"""What the round keeps of every client by itself, brought together from the devices.

Small arrays are gathered, in one operation; of large ones, whole updates, each device
keeps a part.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedcmi_jax.placement import AXIS, constrain
from fedcmi_jax.types import Array, PyTree

MOST_GATHERED = 16
"""Numbers of a client's report that all devices get, leaf by leaf; of more, a part."""


def gather(reports: PyTree, clients: int) -> tuple[PyTree, PyTree]:
    """What all devices get of a device's reports, and what stays there.

    Args:
      reports: Leaves [..., of one client's].
      clients: Of the device.

    Returns:
      Small leaves of all devices, [D, ...], and large ones of this device, [1, ...];
      what is in one tree is None in the other. The small ones travel in one piece, as
      the bits that they are.
    """
    is_small = jax.tree.map(lambda x: x.size <= MOST_GATHERED * clients, reports)
    large = jax.tree.map(lambda x, s: None if s else x[None], reports, is_small)
    small = jax.tree.map(lambda x, s: x if s else None, reports, is_small)
    leaves, structure = jax.tree.flatten(small)
    if not leaves:
        return small, large
    flat = jnp.concatenate([_bits(x).reshape(-1) for x in leaves])
    gathered = jax.lax.all_gather(flat, AXIS)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = jnp.split(gathered, ends, axis=1)
    found = [
        _from_bits(part.reshape(-1, *x.shape), x.dtype)
        for part, x in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found), large


def joined(small: PyTree, large: PyTree) -> PyTree:
    """The two trees of ``gather`` as one, leaves [D, ...]."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, small, large, is_leaf=lambda x: x is None
    )


def in_order(x: Array, rows: np.ndarray, mesh: Mesh | None) -> Array:
    """A report's leaf in the cohort's order.

    Args:
      x: [places, ...], as clients were dealt.
      rows: [K] place of each client of the cohort.
      mesh: The devices; None: one.
    """
    if mesh is not None and x[0].size > MOST_GATHERED:
        # Cut the other way first: else every device would gather all rows.
        x = constrain(x, mesh, P(None, AXIS))
    return x[rows]


def _bits(x: Array) -> Array:
    """As int32: truth values as 0 and 1, floats bit by bit."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return x.astype(jnp.int32)


def _from_bits(bits: Array, dtype: jnp.dtype) -> Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
    return bits.astype(dtype)
