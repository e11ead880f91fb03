"""Where arrays lie: the mesh that clients are dealt over, and what is spread on it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedcmi_jax.types import FederationState, PyTree

AXIS = "clients"
"""Name of the mesh axis that clients are dealt over."""


ROWS = ("memory", "personal", "residual")
"""Fields of a state that have a row per client."""


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


def rows_on(mesh: Mesh | None, num_clients: int) -> int:
    """Rows of per-client memory: N, on D devices rounded up to a multiple of D."""
    devices = mesh.size if mesh else 1
    return -(-num_clients // devices) * devices


def place_rows(tree: PyTree, mesh: Mesh | None, num_clients: int) -> PyTree:
    """Spreads memory [N, ...] over the devices, ceil(N / D) rows each.

    Args:
      tree: Leaves [N, ...], or with the rows of zeros that this function appends.
      mesh: Where; None: left as it is.
      num_clients: N.

    Returns:
      Leaves [rows_on(mesh, N), ...].
    """
    if mesh is None:
        return tree
    rows = rows_on(mesh, num_clients)
    tree = jax.tree.map(
        lambda x: jnp.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)), tree
    )
    return constrain(tree, mesh, P(AXIS))


def trim(tree: PyTree, num_clients: int) -> PyTree:
    """Memory without the rows that ``place_rows`` appended: leaves [N, ...]."""
    return jax.tree.map(lambda x: x if len(x) == num_clients else x[:num_clients], tree)


def place_state(
    state: FederationState, mesh: Mesh | None, num_clients: int
) -> FederationState:
    """Replicates a state on the mesh, its per-client memory spread over the devices.

    Args:
      state: The state; arrays or tracers.
      mesh: Where; None: left as it is.
      num_clients: N. Memory is spread by ``place_rows``; ``own_rows`` undoes it.

    Returns:
      The placed state.
    """
    own = place_rows({name: getattr(state, name) for name in ROWS}, mesh, num_clients)
    rest = state._replace(memory=(), personal={}, residual=())
    return constrain(rest, mesh)._replace(**own)


def own_rows(state: FederationState, num_clients: int) -> FederationState:
    """The state with exactly N rows of memory: what checkpoints hold.

    Args:
      state: The state; arrays or tracers.
      num_clients: N.

    Returns:
      The state without the rows that ``place_rows`` appended.
    """
    return state._replace(
        **{name: trim(getattr(state, name), num_clients) for name in ROWS}
    )


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
