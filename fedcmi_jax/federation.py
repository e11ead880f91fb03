"""A data set dealt to clients, on the device; and one client's view of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Dataset, check_labels
from fedcmi_jax.partition import Partition, check_available
from fedcmi_jax.types import Array, Batch, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Federation:
    """Samples on the device once, sorted by client (CSR layout).

    Attributes:
      inputs: Modality -> [n, ...] float32.
      labels: [n] int32.
      offsets: [N] int32, place of a client's first sample.
      sizes: [N] int32, its training samples n_i.
      probe_sizes: [N] int32, its held-out samples, stored behind the training ones.
      available: [N, M] float32, 1 where the client has the modality.
      present: [n, M] uint8, 1 where a sample has the modality, or None: wherever its
        client has it.
      max_size: L, samples of the longest client, held-out ones included, or more.
        Static: it is the only size that the compiled program depends on, with n and N.
      modalities: Names in the order of ``available`` (static; a dict that passes
        through a JAX transformation comes out sorted).
    """

    inputs: dict[str, Array]
    labels: Array
    offsets: Array
    sizes: Array
    probe_sizes: Array
    available: Array
    max_size: int = field(metadata={"static": True})
    modalities: tuple[str, ...] = field(metadata={"static": True})
    present: Array | None = None

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.sizes.shape[0]


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


@dataclass(frozen=True)
class ClientData:
    """One client's samples, as method hooks see them.

    Not a pytree: it lives inside the mapped client function and closes over the
    federation's arrays, so that no client ever has a copy of its data.

    Attributes:
      federation: The arrays it looks into.
      offset: int32, its first sample.
      num_examples: int32, training samples n_i.
      num_probe: int32, held-out samples.
      available: [M] float32, modalities it uses in this round.
      batch_size: B.
      max_batches: int32, an upper bound (not batched over clients) on the batches of
        one pass over training and held-out samples.
    """

    federation: Federation
    offset: Array
    num_examples: Array
    num_probe: Array
    available: Array
    batch_size: int
    max_batches: Array

    @property
    def capacity(self) -> int:
        """L rounded up to whole batches: the length of per-sample arrays."""
        return -(-self.federation.max_size // self.batch_size) * self.batch_size

    def batch(self, positions: Array, valid: Array) -> Batch:
        """The samples at ``positions`` [B] of this client; ``valid`` [B] of them."""
        # Padding repeats the client's own last sample: another client's could be
        # anything, and 0 x inf is not 0.
        last = jnp.maximum(self.num_examples + self.num_probe, 1) - 1
        rows = self.offset + jnp.minimum(positions, last)
        valid = valid.astype(jnp.float32)
        available = jnp.broadcast_to(
            self.available[None], (positions.shape[0], self.available.shape[0])
        )
        if self.federation.present is not None:
            available = available * self.federation.present[rows]
        return Batch(
            inputs={m: x[rows] for m, x in self.federation.inputs.items()},
            labels=self.federation.labels[rows],
            valid=valid,
            available=available,
            positions=positions,
        )

    def map(self, fn: Callable[[Batch], PyTree]) -> PyTree:
        """Applies ``fn`` to all samples in stored order, a batch at a time.

        Args:
          fn: Batch -> tree of [B, ...].

        Returns:
          The tree with arrays [capacity, ...], row j for the client's sample j; rows
          past its last sample are meaningless (zero or of padding) and must be masked.
        """
        total = self.num_examples + self.num_probe

        def batch_at(i: Array) -> Batch:
            return self._block(i, total)

        shapes = jax.eval_shape(lambda: fn(batch_at(jnp.zeros((), jnp.int32))))
        start = jax.tree.map(
            lambda s: jnp.zeros((self.capacity, *s.shape[1:]), s.dtype), shapes
        )

        def body(i: Array, rows: PyTree) -> PyTree:
            values = fn(batch_at(i))
            return jax.tree.map(
                lambda r, v: jax.lax.dynamic_update_slice_in_dim(
                    r, v, i * self.batch_size, 0
                ),
                rows,
                values,
            )

        return jax.lax.fori_loop(0, self.max_batches, body, start)

    def sum(self, fn: Callable[[Batch], PyTree]) -> PyTree:
        """Sums ``fn`` over the batches of one pass over the training samples.

        Args:
          fn: Batch -> tree of sums over the batch's samples; ``batch.valid`` marks
            the real ones.

        Returns:
          The tree, summed.
        """

        def block(i: Array) -> PyTree:
            return fn(self._block(i, self.num_examples))

        shapes = jax.eval_shape(lambda: block(jnp.zeros((), jnp.int32)))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.fori_loop(
            0,
            self.max_batches,
            lambda i, total: jax.tree.map(jnp.add, total, block(i)),
            start,
        )

    def _block(self, i: Array, stop: Array) -> Batch:
        """Batch number i of the stored order; samples from ``stop`` on are padding."""
        positions = i * self.batch_size + jnp.arange(self.batch_size)
        return self.batch(positions, positions < stop)

    def stored(self) -> Batch:
        """Labels, validity and availability of every sample, inputs left out.

        Returns:
          A ``Batch`` of ``capacity`` rows whose ``inputs`` is empty and whose
          ``valid`` marks the training samples.
        """
        positions = jnp.arange(self.capacity)
        batch = self.batch(positions, positions < self.num_examples)
        return batch._replace(inputs={})

    def measured(self) -> Array:
        """[capacity] float32: samples to measure on.

        The held-out ones if the client has any, else its training samples.
        """
        positions = jnp.arange(self.capacity)
        total = self.num_examples + self.num_probe
        held_out = (positions >= self.num_examples) & (positions < total)
        training = positions < self.num_examples
        return jnp.where(self.num_probe > 0, held_out, training).astype(jnp.float32)
