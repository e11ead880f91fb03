"""Samples on the host, one cohort's at a time on the device: for data that do not fit.

Which clients a round trains follows from the seed and the round alone, so the host
knows it beforehand. While a round runs, a thread gathers the samples of the next cohort
and sends them. The compiled round is that of resident data: it is given a federation
that holds the cohort's samples only, at offsets that point to them, in buffers with
room for any cohort, so that nothing is ever compiled again. On the device there are two
cohorts at most, the running one and the next.
"""

import dataclasses
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.assembly import build_federation
from fedcmi_jax.cohort import named_key, uniform_cohort
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.federation import Federation
from fedcmi_jax.partition import Partition
from fedcmi_jax.placement import replicate
from fedcmi_jax.types import Array

ALIGNMENT = 64
"""Bytes; XLA:CPU shares host memory that starts at a multiple of it (measured: a cohort
of 59 MB is ready in 16 ms, 54 ms otherwise)."""


def build_skeleton(
    dataset: Dataset,
    partition: Partition,
    available: np.ndarray | None = None,
    *,
    probe_fraction: float = 0.0,
    capacity: int | None = None,
) -> Federation:
    """The federation of a data set, its training inputs left on the host.

    Args:
      dataset: As of ``build_federation``, as are the others.
      partition: Which sample belongs to which client.
      available: [N, M] table of who has what; None: everybody has everything.
      probe_fraction: Share of each client's samples held out of its training.
      capacity: L of the compiled program; None: the samples of the longest client.

    Returns:
      A federation whose inputs are [n, 0]: enough for ``init``, ``deploy`` and
      evaluation. ``CohortStream`` adds samples.

    Raises:
      ValueError: See ``build_federation``.
    """
    n = dataset.train.size
    nothing = {m: np.zeros((n, 0), np.float32) for m in dataset.modalities}
    hollow = dataset._replace(train=dataset.train._replace(inputs=nothing))
    return build_federation(
        hollow, partition, available, probe_fraction=probe_fraction, capacity=capacity
    )


class CohortStream:
    """The federation of one round after the other, made ready ahead of time.

    Attributes:
      capacity: Samples that a buffer holds: those of the K largest clients.
      cohort_bytes: Size of a round's buffers on the device.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        skeleton: Federation,
        key: Array,
        clients_per_round: int,
        *,
        mesh: Mesh | None = None,
        prefetch: bool = True,
    ):
        """Copies nothing yet.

        Args:
          dataset: Supplies the training samples, in C order; they may be memory-mapped.
          partition: Which sample belongs to which client.
          skeleton: ``build_skeleton`` of the two, on the mesh.
          key: PRNG key of the run's seed, ``FederationState.key``.
          clients_per_round: K; the method must draw its cohorts uniformly.
          mesh: Devices that share the cohort; None: one.
          prefetch: Prepare the next cohort while a round runs, or only when asked.
        """
        train = dataset.train
        self._arrays = jax.tree.map(np.ascontiguousarray, train.inputs)
        self._labels = train.labels.astype(np.int32)
        self._present = train.available
        if self._present is not None:
            self._present = np.asarray(self._present).astype(np.uint8)
        self._order, self._sizes = partition.order, partition.sizes
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._skeleton, self._mesh = skeleton, mesh
        self.capacity = int(np.sort(self._sizes)[-clients_per_round:].sum())
        arrays = (*jax.tree.leaves(self._arrays), self._labels)
        self.cohort_bytes = self.capacity * sum(x[:1].nbytes for x in arrays)

        def draw(round: Array) -> Array:
            # The key of FederatedAlgorithm.round.
            sampling = jax.random.fold_in(named_key(key, "sampling"), round)
            return uniform_cohort(sampling, skeleton, clients_per_round)[0]

        self._draw = jax.jit(draw)
        self._worker = ThreadPoolExecutor(1) if prefetch else None
        self._next: tuple[int, Future[tuple[Federation, float]]] | None = None
        self._rounds, self._prepared, self._waited = 0, 0.0, 0.0

    def federation(self, round: int) -> Federation:
        """The federation that round number ``round`` (rounds done before it) sees.

        Waits until its samples are on the device, then starts on the next round's.

        Args:
          round: ``FederationState.round``; going up by one each time is fast.

        Returns:
          A federation that has the samples of this round's cohort only.
        """
        if self._next is not None and self._next[0] == round:
            begun = time.perf_counter()
            federation, seconds = self._next[1].result()
        else:
            ids = self.cohort(round)
            begun = time.perf_counter()
            federation, seconds = self._prepare(ids)
        self._waited += time.perf_counter() - begun
        self._prepared += seconds
        self._rounds += 1
        if self._worker is not None:
            # Drawn here and not by the thread: on an accelerator the draw would queue
            # up behind the round.
            ids = self.cohort(round + 1)
            self._next = round + 1, self._worker.submit(self._prepare, ids)
        return federation

    def cohort(self, round: int) -> np.ndarray:
        """[K] ids of the clients that round number ``round`` trains."""
        return np.asarray(self._draw(np.int32(round)))

    def report(self) -> dict[str, Any]:
        """What was sent, how long it took, and how much of that the rounds hid.

        Returns:
          ``rounds``, ``cohort_bytes``, ``prepare_seconds`` (gathering and sending),
          ``wait_seconds`` (the part of them that no round ran in).
        """
        return {
            "rounds": self._rounds,
            "cohort_bytes": self.cohort_bytes,
            "prepare_seconds": self._prepared,
            "wait_seconds": self._waited,
        }

    def _prepare(self, ids: np.ndarray) -> tuple[Federation, float]:
        """A round's federation on the device, and the seconds that it took."""
        begun = time.perf_counter()
        sizes, starts = self._sizes[ids], self._starts[ids]
        ranges = [slice(s, s + n) for s, n in zip(starts, sizes, strict=True)]
        rows = np.concatenate([self._order[r] for r in ranges])

        def packed(x: np.ndarray) -> np.ndarray:
            # A new buffer each time: the device may still read, or be, the last one.
            buffer = _aligned_zeros((self.capacity, *x.shape[1:]), x.dtype)
            np.take(x, rows, axis=0, out=buffer[: len(rows)], mode="clip")
            return buffer

        offsets = np.zeros(len(self._sizes), np.int32)
        offsets[ids] = np.cumsum(sizes) - sizes
        arrays: dict[str, Any] = {
            "inputs": jax.tree.map(packed, self._arrays),
            "labels": packed(self._labels),
            "present": None if self._present is None else packed(self._present),
            "offsets": offsets,
        }
        if self._mesh is None:
            arrays = jax.device_put(arrays)
        else:
            arrays = replicate(arrays, self._mesh)
        federation = dataclasses.replace(self._skeleton, **arrays)
        jax.block_until_ready(federation)
        return federation, time.perf_counter() - begun


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that XLA:CPU uses as it is, where it would copy another."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def describe(report: dict[str, Any]) -> str:
    """A line on ``CohortStream.report``.

    Example:
      >>> describe({"rounds": 9, "cohort_bytes": 2_500_000,
      ...     "prepare_seconds": 2.0, "wait_seconds": 0.5})
      'streamed 9 cohorts of 2.5 MB in 2.00 s, 75 % of it while rounds ran'
    """
    seconds, waited = report["prepare_seconds"], report["wait_seconds"]
    hidden = max(0.0, 1 - waited / seconds) if seconds else 0.0
    return (
        f"streamed {report['rounds']} cohorts of {report['cohort_bytes'] / 1e6:.1f} MB "
        f"in {seconds:.2f} s, {100 * hidden:.0f} % of it while rounds ran"
    )
