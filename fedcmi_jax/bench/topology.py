"""Rounds compiled for TPU pods that are not there: what the compiler says of them.

Nothing runs and no array is made: shapes stand for data, and libtpu's compiler, which
needs no TPU, gives memory per chip and collectives. Times of a round it does not give:
its loops end where the data say.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedcmi_jax import exchange
from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.bench import hlo
from fedcmi_jax.bench.measure import builder
from fedcmi_jax.bench.workloads import WORKLOADS, entries
from fedcmi_jax.federation import Federation
from fedcmi_jax.placement import AXIS, ROWS, rows_on
from fedcmi_jax.types import FederationState, PyTree

EXAMPLES = "v4:2x2x1, v5e:2x2, v5e:16x16, v5p:2x2x1, v6e:2x2"
"""Names that libtpu knows: generation, chips along every axis."""

NOWHERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
"""Environment in which libtpu asks no cloud machine who it is, for this may be none,
and lets other processes compile too. No effect on what is compiled."""


def topology_mesh(name: str) -> Mesh:
    """A mesh of TPU devices that are not there, along which clients are dealt.

    Args:
      name: Generation and chips along every axis, such as ``v5e:8x8``.

    Returns:
      A mesh like ``placement.client_mesh``, for compiling only.

    Raises:
      ValueError: libtpu is not installed, or knows no such name.
    """
    if find_spec("libtpu") is None:
        raise ValueError(
            f"topology: {name!r} needs libtpu; pip install 'fedcmi_jax[tpu]'"
        )
    for key, value in NOWHERE.items():
        os.environ.setdefault(key, value)
    try:
        devices = topologies.get_topology_desc(name, platform="tpu").devices
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"topology: libtpu cannot make {name!r} ({reason}); give e.g. {EXAMPLES}"
        ) from None
    return Mesh(np.array(devices), (AXIS,))


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles without JAX's cache of programs, which keeps these but cannot read them.

    Args:
      lowered: A program for devices that are not there.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it asks only once whether it is used
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


class Compiled(NamedTuple):
    """What the compiler says of a program; bytes are per chip.

    Attributes:
      seconds: Tracing, lowering and compiling.
      argument_bytes: State and federation.
      output_bytes: The new state and what the round reports.
      alias_bytes: Of these, what lies where the old state was.
      temp_bytes: While it runs.
      collectives: How the chips exchange data.
      text: The compiled program.
    """

    seconds: float
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    collectives: list[hlo.Collective]
    text: str


def compile_round(
    algorithm: FederatedAlgorithm, federation: Federation, mesh: Mesh
) -> Compiled:
    """Compiles the loop over rounds, ``FederatedAlgorithm.run``, for the mesh.

    Args:
      algorithm: Built with that mesh.
      federation: Its arrays or their shapes.
      mesh: ``topology_mesh``, or a part of it.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(algorithm.init, key, federation)
    placed = (
        _placed_state(state, mesh, federation.num_clients),
        _placed_federation(federation, mesh),
        _placed(jax.ShapeDtypeStruct((), np.int32), mesh),
    )
    begun = time.perf_counter()
    program = compiled(algorithm.run.lower(*placed))  # type: ignore[attr-defined]
    seconds = time.perf_counter() - begun
    memory: Any = program.memory_analysis()
    text = program.as_text() or ""
    return Compiled(
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        hlo.collectives(text),
        text,
    )


def _placed(tree: PyTree, mesh: Mesh, spec: P = P()) -> PyTree:  # noqa: B008
    """The tree's shapes, laid out on the mesh by ``spec`` (default: replicated)."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _placed_state(state: FederationState, mesh: Mesh, clients: int) -> FederationState:
    """As ``placement.place_state`` does with arrays."""
    rest = _placed(state._replace(memory=(), personal={}, residual=()), mesh)
    own = {name: getattr(state, name) for name in ROWS}
    own = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows_on(mesh, clients), *x.shape[1:]), x.dtype),
        own,
    )
    return rest._replace(**_placed(own, mesh, P(AXIS)))


def spread(federation: Federation, mesh: Mesh) -> Federation:
    """The shapes of a federation whose samples are spread, as ``build_federation``'s.

    Args:
      federation: Shapes.
      mesh: Over its devices.
    """

    def padded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows_on(mesh, len(x)), *x.shape[1:]), x.dtype)

    samples = jax.tree.map(padded, exchange.split(federation)[1])
    return dataclasses.replace(federation, **samples._asdict(), shards=mesh.size)


def _placed_federation(federation: Federation, mesh: Mesh) -> Federation:
    """Laid out as it says: samples on every chip, or spread."""
    if federation.shards == 1:
        return _placed(federation, mesh)
    tables, samples = exchange.split(federation)
    samples = _placed(samples, mesh, P(AXIS))
    return dataclasses.replace(_placed(tables, mesh), **samples._asdict())


class Plan(NamedTuple):
    """What to compile.

    Attributes:
      methods: Names of methods.
      clients: Client counts; empty: the workload's own.
      chunk_sizes: Clients computed together; 0: the workload's own.
      spread: Whether samples are spread over the chips.
    """

    methods: tuple[str, ...]
    clients: tuple[int, ...]
    chunk_sizes: tuple[int, ...]
    spread: bool = False


def rows(name: str, plan: Plan, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Compiles a workload at every client count and chunk size.

    Args:
      name: The workload.
      plan: What to compile.
      mesh: ``topology_mesh``.

    Yields:
      A row per entry, with the names of the JSON that ``fedcmi bench`` writes; of what
      does not fit a chip only the compiler's message.
    """
    workload = WORKLOADS[name]
    for clients in plan.clients or workload.clients:
        federation = workload.shapes_of(clients)
        if plan.spread:
            federation = spread(federation, mesh)
        for label, entry in entries(plan.methods).items():
            build = builder(workload, entry, clients, mesh)
            for size in plan.chunk_sizes:
                chunk_size = size or workload.chunk_size
                algorithm = build(chunk_size)
                row = {
                    "workload": name,
                    "clients": clients,
                    "entry": label,
                    "chunk_size": chunk_size,
                }
                yield row | _said(algorithm, federation, mesh)


def _said(
    algorithm: FederatedAlgorithm, federation: Federation, mesh: Mesh
) -> dict[str, Any]:
    try:
        found = compile_round(algorithm, federation, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"does_not_fit": str(error).splitlines()[0]}
    said = {k: v for k, v in found._asdict().items() if k != "text"}
    said["compile_seconds"] = said.pop("seconds")
    said["collectives"] = hlo.by_kind(found.collectives)
    return said
