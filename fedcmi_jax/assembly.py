"""Data set and partition become a federation on the device."""

import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Dataset, check_labels
from fedcmi_jax.federation import Federation
from fedcmi_jax.partition import Partition, check_available

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
        present = np.asarray(present)[order].astype(bool)
    return Federation(
        inputs={m: jnp.asarray(dataset.train.inputs[m][order]) for m in modalities},
        labels=jnp.asarray(dataset.train.labels[order], jnp.int32),
        offsets=jnp.asarray(offsets, jnp.int32),
        sizes=jnp.asarray(partition.sizes - probes, jnp.int32),
        probe_sizes=jnp.asarray(probes, jnp.int32),
        available=jnp.asarray(available, jnp.float32),
        max_size=longest if capacity is None else capacity,
        modalities=modalities,
        present=None if present is None else jnp.asarray(present, jnp.uint8),
    )


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
