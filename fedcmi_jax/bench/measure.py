"""Everybody's rounds on one workload, timed in turns."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.bench import peers
from fedcmi_jax.bench.workloads import (
    REFERENCES,
    WORKLOADS,
    Entry,
    Workload,
    entries,
    padded_to_longest,
    padding_ratio,
)
from fedcmi_jax.experiment import autotune, timing
from fedcmi_jax.federation import Federation
from fedcmi_jax.placement import replicate


class Plan(NamedTuple):
    """What to measure.

    Attributes:
      methods: Names of methods.
      clients: Client counts; empty: the workload's own.
      chunk_size: Clients computed together; 0: the workload's own; auto: measured.
      against: Other software that does the same work; empty: nobody.
      peers: Folder of its scripts and environments.
      repeats: Timed rounds of every entry.
    """

    methods: tuple[str, ...]
    clients: tuple[int, ...]
    chunk_size: int | Literal["auto"]
    against: str
    peers: pathlib.Path
    repeats: int


def rows(name: str, plan: Plan, mesh: Mesh | None) -> Iterator[dict[str, Any]]:
    """Measures a workload at every client count.

    Args:
      name: The workload.
      plan: What to measure.
      mesh: Devices; None: one.

    Yields:
      A row per entry, with the names of the JSON that ``fedcmi bench`` writes.
    """
    workload = WORKLOADS[name]
    for clients in plan.clients or workload.clients:
        federation = workload.federation(clients)
        yield from _rows(name, workload, clients, federation, plan, mesh)


def _rows(
    name: str,
    workload: Workload,
    clients: int,
    federation: Federation,
    plan: Plan,
    mesh: Mesh | None,
) -> Iterator[dict[str, Any]]:
    """Everybody's rows for one workload and client count, measured in turns."""
    chosen = entries(plan.methods)
    extras: dict[str, dict[str, Any]] = {}
    rounds: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        for label, entry in chosen.items():
            for variant, fed, on in _variants(name, label, federation, mesh):
                build = builder(workload, entry, clients, on)
                placed, key = replicate(fed, on), jax.random.key(0)
                chunk = _chunk_size(plan, workload, build, placed, key, on)
                timed = timing.compile_round(build(chunk), placed, key)
                rounds[variant] = timed.round
                extras[variant] = {
                    "chunk_size": chunk,
                    "compile_seconds": timed.compile_seconds,
                    "temp_bytes": timed.temp_bytes,
                    "flops": timing.training_flops(
                        workload.model(entry.architecture), fed, workload.epochs
                    ),
                    "reference": None if label == variant else label,
                }
            if label in peers.methods_of(plan.against):
                started = _start_peers(stack, plan, workload, entry, federation)
                for form, peer in started.items():
                    variant = f"{label}, {plan.against} {form}"
                    rounds[variant] = peer.round
                    extras[variant] = {"reference": label, "peer": peer.ready}
        seconds = timing.interleaved(rounds, plan.repeats)
    for label in rounds:
        base = extras[label].pop("reference", None)
        row = {
            "workload": name,
            "clients": clients,
            "entry": label,
            "seconds_per_round": timing.spread(seconds[label]),
            "seconds_per_client": timing.spread(seconds[label])["median"] / clients,
            "padding_ratio": padding_ratio(workload.sizes(clients)),
            **extras[label],
        }
        if base:
            row["ratio_to"] = label
            row["ratio_of"] = base
            row["ratio"] = timing.ratio(seconds[base], seconds[label])
        elif label in chosen:
            fedavg = REFERENCES[chosen[label].architecture]
            if fedavg in rounds and fedavg != label:
                row["ratio_of"], row["ratio_to"] = label, fedavg
                row["ratio"] = timing.ratio(seconds[label], seconds[fedavg])
        yield row


def _variants(
    name: str, label: str, federation: Federation, mesh: Mesh | None
) -> Iterator[tuple[str, Federation, Mesh | None]]:
    """(label, federation, mesh) of an entry and what it is compared with."""
    yield label, federation, mesh
    if mesh is not None:
        yield f"{label}, one device", federation, None
    if name == "uneven":
        yield f"{label}, padded to the maximum", padded_to_longest(federation), mesh


def builder(
    workload: Workload, entry: Entry, clients: int, mesh: Mesh | None
) -> Callable[[int], FederatedAlgorithm]:
    """Chunk size -> an entry's algorithm, in which everybody takes part.

    Args:
      workload: What is trained, and how.
      entry: The method, on its architecture.
      clients: N.
      mesh: Devices; None: one.
    """

    def build(chunk_size: int) -> FederatedAlgorithm:
        return build_algorithm(
            entry.method,
            workload.model(entry.architecture),
            clients_per_round=clients,
            local=workload.local(),
            chunk_size=chunk_size,
            mesh=mesh,
        )

    return build


def _chunk_size(
    plan: Plan,
    workload: Workload,
    build: Callable[[int], FederatedAlgorithm],
    federation: Federation,
    key: jax.Array,
    mesh: Mesh | None,
) -> int:
    if plan.chunk_size == "auto":
        sizes = autotune.candidates(federation.num_clients, mesh)
        return autotune.measure(build, federation, key, sizes).chunk_size
    return plan.chunk_size or workload.chunk_size


def _start_peers(
    stack: contextlib.ExitStack,
    plan: Plan,
    workload: Workload,
    entry: Entry,
    federation: Federation,
) -> dict[str, peers.Peer]:
    """Form -> running peer."""
    started = {}
    build = builder(workload, entry, federation.num_clients, None)
    state = build(1).init(jax.random.key(0), federation)
    for form in peers.PEERS[plan.against]["forms"]:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spec = peers.write_problem(folder, workload, entry, federation, state, form)
        started[form] = stack.enter_context(peers.Peer(plan.against, spec, plan.peers))
    return started
