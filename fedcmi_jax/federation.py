"""A data set dealt to clients, on the device; and one client's view of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Batch, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Federation:
    """Samples on the device once, sorted by client (CSR layout).

    Attributes:
      inputs: Modality -> [n, ...] float32 or int32, or a tree of such arrays.
      labels: [n] int32.
      offsets: [N] int32, place of a client's first sample.
      sizes: [N] int32, its training samples n_i.
      probe_sizes: [N] int32, its held-out samples, stored behind the training ones.
      available: [N, M] float32, 1 where the client has the modality.
      present: [n, M] uint8, 1 where a sample has the modality, or None: wherever its
        client has it.
      shards: Parts that the samples are cut into, one on each device of a mesh; every
        part has ceil(n / shards) of them, the last ones padded. 1: they are whole
        (static).
      max_size: L, samples of the longest client, held-out ones included, or more.
        Static: it is the only size that the compiled program depends on, with n, N and
        ``shards``.
      modalities: Names in the order of ``available`` (static; a dict that passes
        through a JAX transformation comes out sorted).
    """

    inputs: dict[str, PyTree]
    labels: Array
    offsets: Array
    sizes: Array
    probe_sizes: Array
    available: Array
    max_size: int = field(metadata={"static": True})
    modalities: tuple[str, ...] = field(metadata={"static": True})
    present: Array | None = None
    shards: int = field(default=1, metadata={"static": True})

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.sizes.shape[0]


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
            inputs={
                m: jax.tree.map(lambda x: x[rows], tensors)
                for m, tensors in self.federation.inputs.items()
            },
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
