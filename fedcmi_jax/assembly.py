"""Data set and partition become a federation on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedcmi_jax.data.base import Dataset, check_labels
from fedcmi_jax.federation import Federation
from fedcmi_jax.partition import Partition, check_available
from fedcmi_jax.placement import AXIS, replicate
from fedcmi_jax.types import Array

CAPACITY_STEPS = 8
"""Values of L per doubling that runs are compiled for. Partitions of several seeds then
mostly share one. The price is at most 1/8 more rows in arrays of a number per sample;
no step is in vain, since a pass ends at the last batch of the longest client.
"""


def coarse_capacity(longest: int) -> int:
    """The samples of the longest client, rounded up to one of few values.

    L = ceil(n / s) s with s = 2^floor(log2 n) / 8, at least 1.

    Args:
      longest: n, at least 1.

    Returns:
      L, with n <= L < 1.125 n.

    Example:
      >>> [coarse_capacity(n) for n in (5, 64, 65, 100, 127, 1_000)]
      [5, 64, 72, 104, 128, 1024]
    """
    step = max(1, (1 << (longest.bit_length() - 1)) // CAPACITY_STEPS)
    return -(-longest // step) * step


def build_federation(
    dataset: Dataset,
    partition: Partition,
    available: np.ndarray | None = None,
    *,
    probe_fraction: float = 0.0,
    capacity: int | None = None,
    mesh: Mesh | None = None,
) -> Federation:
    """Puts the training split on the device, sorted by client.

    Args:
      dataset: Supplies the training samples and the order of the modalities.
      partition: Which sample belongs to which client.
      available: [N, M] table of who has what; None: everybody has everything.
      probe_fraction: Share of each client's samples (in [0, 1), rounded down) held
        out of its training, for methods that measure something on unseen data.
      capacity: L of the compiled program, see ``coarse_capacity``; no effect on
        results. None: the samples of the longest client.
      mesh: Spread the samples over its devices, for a federation larger than one of
        them; the algorithm must run on the same mesh. Each process reads only the
        inputs that its own devices hold. No effect on results. None: they are on one
        device (``placement.replicate`` copies them to all).

    Returns:
      The federation.

    Raises:
      ValueError: The table has the wrong shape or a client without modality, a sample
        has none of its client's modalities, a label is no integer in [0, C), the
        fraction is out of range, or a client has more samples than the capacity.

    Example:
      >>> import numpy as np, fedcmi_jax as fc
      >>> data = fc.data.load("synthetic", train_samples=100, test_samples=20)
      >>> parts = fc.partition.iid(data.train, 4, np.random.default_rng(0))
      >>> fc.build_federation(data, parts).num_clients
      4
    """
    if not 0.0 <= probe_fraction < 1.0:
        raise ValueError(
            f"probe_fraction: {probe_fraction} is outside [0, 1); give the share of "
            "each client's samples to hold out"
        )
    longest = int(partition.sizes.max())
    if capacity is not None and capacity < longest:
        raise ValueError(
            f"capacity: {capacity} is less than the {longest} samples of the longest "
            "client; give at least as many, or None"
        )
    where = f"dataset {dataset.name!r}, train split"
    check_labels(dataset.train.labels, dataset.num_classes, where)
    if len(partition.order) + longest > np.iinfo(np.int32).max:
        raise ValueError(
            f"partition: {len(partition.order):,} samples; places are int32, give "
            f"fewer than {np.iinfo(np.int32).max:,}"
        )
    num_clients = len(partition.sizes)
    modalities = dataset.modalities
    if available is None:
        available = np.ones((num_clients, len(modalities)), bool)
    available = check_available(available, num_clients, len(modalities))
    probes = np.floor(partition.sizes * probe_fraction).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(partition.sizes)[:-1]])
    order = partition.order
    present = dataset.train.available
    if present is not None:
        owner = np.repeat(np.arange(num_clients), partition.sizes)
        check_present(present, order, owner, available)
        present = np.asarray(present).astype(bool).astype(np.uint8)
    put = _whole(order) if mesh is None else _spread(order, mesh)
    inputs = {m: jax.tree.map(put, dataset.train.inputs[m]) for m in modalities}
    labels = put(dataset.train.labels.astype(np.int32))
    tables = {
        "offsets": jnp.asarray(offsets, jnp.int32),
        "sizes": jnp.asarray(partition.sizes - probes, jnp.int32),
        "probe_sizes": jnp.asarray(probes, jnp.int32),
        "available": jnp.asarray(available, jnp.float32),
    }
    return Federation(
        inputs=inputs,
        labels=labels,
        **replicate(tables, mesh),
        max_size=longest if capacity is None else capacity,
        modalities=modalities,
        present=None if present is None else put(present),
        shards=1 if mesh is None else mesh.size,
    )


def _whole(order: np.ndarray) -> Callable[[np.ndarray], Array]:
    """Puts an array's rows on the device in this order."""
    return lambda x: jnp.asarray(x[order])


def _spread(order: np.ndarray, mesh: Mesh) -> Callable[[np.ndarray], Array]:
    """Spreads an array's rows in this order over the mesh; reads what is put only."""
    rows = -(-len(order) // mesh.size)
    sharding = NamedSharding(mesh, P(AXIS))

    def put(x: np.ndarray) -> Array:
        shape = (rows * mesh.size, *x.shape[1:])
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            own = slice(*index[0].indices(shape[0])) if index else slice(0, shape[0])
            found = x[order[own]].astype(dtype, copy=False)
            missing = own.stop - own.start - len(found)
            return np.pad(found, [(0, missing)] + [(0, 0)] * (found.ndim - 1))

        return jax.make_array_from_callback(shape, sharding, part)

    return put


def check_present(
    present: np.ndarray | None,
    rows: np.ndarray,
    owners: np.ndarray,
    available: np.ndarray,
) -> None:
    """Refuses a sample that has none of its client's modalities.

    Args:
      present: [n, M], which modalities each sample of a split has; None: all.
      rows: [v] rows of the split.
      owners: [v], the client of each one.
      available: [N, M] bool, who has what.

    Raises:
      ValueError: There is one; names client, sample and the remedy.
    """
    if present is None:
        return
    has = np.asarray(present)[rows].astype(bool) & available[owners]
    useless = np.flatnonzero(~has.any(axis=1))
    if useless.size:
        raise ValueError(
            f"available: client {owners[useless[0]]} has none of the modalities of "
            f"its sample {rows[useless[0]]}; give it another modality or leave the "
            "sample out"
        )
