"""The ``fedcmi bench`` command: options, the measurements, a table and JSON."""

import contextlib
import datetime
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from fedcmi_jax import methods
from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.bench import peers
from fedcmi_jax.bench.workloads import (
    REFERENCES,
    WORKLOADS,
    Contestant,
    Workload,
    contestants,
    padded_to_longest,
    padding_ratio,
)
from fedcmi_jax.clients import replicate
from fedcmi_jax.experiment import autotune, timing
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.training import versions
from fedcmi_jax.federation import Federation


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      workload: One of mlp, convnet, uneven, resnet18, or all.
      method: Methods, comma-separated, or all.
      clients: Client counts, comma-separated; empty: the workload's own.
      chunk_size: Clients computed together; 0: the workload's own; auto: measured.
      against: torch, pfl or flower: the same work there, interleaved; empty: nobody.
      repeats: Timed rounds of every contestant.
      output: JSON file to write; None: bench-WORKLOAD.json.
    """

    workload: str = "mlp"
    method: str = "fedavg,fedcmi"
    clients: str = ""
    chunk_size: str = "0"
    against: str = ""
    repeats: int = 7
    output: str | None = None


def check_options(options: Options) -> None:
    """Refuses what cannot be measured, before any work.

    Raises:
      ValueError: One line that names option, value and remedy.
    """
    for name, value, known in (
        ("workload", options.workload, [*WORKLOADS, "all"]),
        ("against", options.against, ["", *peers.PEERS]),
    ):
        if value not in known:
            raise ValueError(f"{name}: unknown {value!r}; choose from {known}")
    for method in _method_names(options):
        if method not in methods.REGISTRY:
            known = [*methods.REGISTRY, "all"]
            raise ValueError(f"method: unknown {method!r}; choose from {known}")
    for count in filter(None, options.clients.split(",")):
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"clients: {count!r} is no count; give e.g. 100,1000")
    if options.chunk_size != "auto" and not options.chunk_size.isdecimal():
        raise ValueError(f"chunk_size: {options.chunk_size!r}; give a count or auto")
    if options.repeats < 1:
        raise ValueError(f"repeats: {options.repeats} is below 1; give at least 1")
    if options.against:
        peers.python_of(options.against)


def _method_names(options: Options) -> tuple[str, ...]:
    if options.method == "all":
        return tuple(methods.REGISTRY)
    return tuple(options.method.split(","))


def run(
    options: Options, mesh: Mesh | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures; ``say`` hears every line of the table.

    Returns:
      The report, also written as JSON.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are shown
    chosen = list(WORKLOADS) if options.workload == "all" else [options.workload]
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "devices": mesh.size if mesh else 1,
        "versions": versions(),
        "matmul_peak_flops": timing.matmul_peak(),
        "options": vars(options),
        "results": [],
    }
    say(f"{report['machine']}, {report['devices']} device(s), jax {jax.__version__}")
    say(f"float32 matmul peak {report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s")
    say(
        "| workload | clients | contestant | ms per round (min-max) | ms per client "
        "| compile s | temp MB | GFLOP/s | ratio |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for name in chosen:
        for row in _workload_rows(name, options, mesh):
            report["results"].append(row)
            say(_line(row))
    report["peak_rss_bytes"] = timing.peak_rss()
    say(f"peak RSS {report['peak_rss_bytes'] / 1e6:.0f} MB")
    path = pathlib.Path(options.output or f"bench-{options.workload}.json")
    write_json(path, report)
    say(f"written: {path}")
    return report


def _workload_rows(
    name: str, options: Options, mesh: Mesh | None
) -> Iterator[dict[str, Any]]:
    workload = WORKLOADS[name]
    given = tuple(int(c) for c in options.clients.split(",") if c)
    for clients in given or workload.clients:
        federation = workload.federation(clients)
        yield from _rows(name, workload, clients, federation, options, mesh)


def _rows(
    name: str,
    workload: Workload,
    clients: int,
    federation: Federation,
    options: Options,
    mesh: Mesh | None,
) -> Iterator[dict[str, Any]]:
    """Everybody's rows for one workload and client count, measured in turns."""
    chosen = contestants(_method_names(options))
    extras: dict[str, dict[str, Any]] = {}
    rounds: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        for label, contestant in chosen.items():
            for variant, fed, on in _variants(name, label, federation, mesh):
                build = _builder(workload, contestant, clients, on)
                placed, key = replicate(fed, on), jax.random.key(0)
                chunk = _chunk_size(options, workload, build, placed, key, on)
                timed = timing.compile_round(build(chunk), placed, key)
                rounds[variant] = timed.round
                extras[variant] = {
                    "chunk_size": chunk,
                    "compile_seconds": timed.compile_seconds,
                    "temp_bytes": timed.temp_bytes,
                    "flops": timing.training_flops(
                        workload.model(contestant.architecture), fed, workload.epochs
                    ),
                    "reference": None if label == variant else label,
                }
            if label in peers.methods_of(options.against):
                started = _start_peers(
                    stack, options.against, workload, contestant, federation
                )
                for form, peer in started.items():
                    variant = f"{label}, {options.against} {form}"
                    rounds[variant] = peer.round
                    extras[variant] = {"reference": label, "peer": peer.ready}
        seconds = timing.interleaved(rounds, options.repeats)
    for label in rounds:
        base = extras[label].pop("reference", None)
        row = {
            "workload": name,
            "clients": clients,
            "contestant": label,
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
    """(label, federation, mesh) of a contestant and what it is compared with."""
    yield label, federation, mesh
    if mesh is not None:
        yield f"{label}, one device", federation, None
    if name == "uneven":
        yield f"{label}, padded to the maximum", padded_to_longest(federation), mesh


def _builder(
    workload: Workload, contestant: Contestant, clients: int, mesh: Mesh | None
) -> Callable[[int], FederatedAlgorithm]:
    def build(chunk_size: int) -> FederatedAlgorithm:
        return build_algorithm(
            contestant.method,
            workload.model(contestant.architecture),
            clients_per_round=clients,
            local=workload.local(),
            chunk_size=chunk_size,
            mesh=mesh,
        )

    return build


def _chunk_size(
    options: Options,
    workload: Workload,
    build: Callable[[int], FederatedAlgorithm],
    federation: Federation,
    key: jax.Array,
    mesh: Mesh | None,
) -> int:
    if options.chunk_size == "auto":
        devices = mesh.size if mesh else 1
        sizes = autotune.candidates(federation.num_clients, devices)
        return autotune.measure(build, federation, key, sizes).chunk_size
    return int(options.chunk_size) or workload.chunk_size


def _start_peers(
    stack: contextlib.ExitStack,
    name: str,
    workload: Workload,
    contestant: Contestant,
    federation: Federation,
) -> dict[str, peers.Peer]:
    """Form -> running peer."""
    started = {}
    build = _builder(workload, contestant, federation.num_clients, None)
    state = build(1).init(jax.random.key(0), federation)
    for form in peers.PEERS[name]["forms"]:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spec = peers.write_problem(
            folder, workload, contestant, federation, state, form
        )
        started[form] = stack.enter_context(peers.Peer(name, spec))
    return started


def _machine() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _line(row: dict[str, Any]) -> str:
    time, clients = row["seconds_per_round"], row["clients"]
    ms = [f"{1e3 * time[k]:.4g}" for k in ("median", "min", "max")]
    cells = [
        row["workload"],
        f"{clients:,}",
        row["contestant"],
        f"{ms[0]} ({ms[1]}-{ms[2]})",
        f"{1e3 * row['seconds_per_client']:.4g}",
    ]
    if "compile_seconds" in row:
        cells += [
            f"{row['compile_seconds']:.2f}",
            "-" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 1e6:.1f}",
            f"{row['flops'] / time['median'] / 1e9:.1f}",
        ]
    else:
        cells += ["-", "-", "-"]
    if "ratio" in row:
        r = row["ratio"]
        text = f"{r['median']:.3g} ({r['min']:.3g}-{r['max']:.3g})"
        cells.append(f"{row['ratio_of']} / {row['ratio_to']}: {text}")
    else:
        cells.append("")
    return "| " + " | ".join(cells) + " |"
