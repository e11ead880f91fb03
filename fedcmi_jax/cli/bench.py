"""``fedcmi bench``: checks its options, prints a table, writes JSON."""

import datetime
import functools
import os
import pathlib
import platform
from typing import Any

import jax

from fedcmi_jax import methods
from fedcmi_jax.bench import layers, measure, peers
from fedcmi_jax.bench.workloads import WORKLOADS
from fedcmi_jax.cli import launch
from fedcmi_jax.cli.commands import Bench
from fedcmi_jax.experiment import timing
from fedcmi_jax.experiment.config import lookup
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.outputs import check_file
from fedcmi_jax.experiment.training import versions


def asked(options: Bench) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of methods and client counts.

    Raises:
      ValueError: One is unknown or impossible, or the workload is.

    Example:
      >>> asked(Bench(method="fedavg", clients="10,100"))
      (('fedavg',), (10, 100))
    """
    lookup("workload", options.workload, [*WORKLOADS, "layers", "all"])
    everything = options.method == "all"
    names = list(methods.REGISTRY) if everything else options.method.split(",")
    # all is a method only on its own.
    known = [*methods.REGISTRY, *(["all"] if len(names) == 1 else [])]
    names = [lookup("method", name, known) for name in names]
    counts = [count for count in options.clients.split(",") if count]
    for count in counts:
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"clients: {count!r} is no count; give e.g. 100,1000")
    return tuple(names), tuple(map(int, counts))


def plan_of(options: Bench) -> measure.Plan:
    """Reads the options, and refuses what cannot be measured, before any work.

    Raises:
      ValueError: One line that names option, value and remedy.

    Example:
      >>> plan_of(Bench(clients="10,100")).clients
      (10, 100)
    """
    names, counts = asked(options)
    chunk_size = options.chunk_size
    if chunk_size != "auto" and not chunk_size.isdecimal():
        raise ValueError(f"chunk_size: {chunk_size!r}; give a count or auto")
    if options.launch.spread_samples:
        raise ValueError(
            "spread_samples: bench has all samples on every device; leave it out, or "
            "use fedcmi sweep clients"
        )
    if options.repeats < 1:
        raise ValueError(f"repeats: {options.repeats} is below 1; give at least 1")
    folder = options.peers or peers.FOLDER
    if options.against:
        lookup("against", options.against, peers.PEERS)
        for name in _workloads(options):
            peers.check_encoder(options.against, WORKLOADS[name].encoder)
        peers.python_of(options.against, folder)
    return measure.Plan(
        methods=names,
        clients=counts,
        chunk_size="auto" if chunk_size == "auto" else int(chunk_size),
        against=options.against,
        peers=folder,
        repeats=options.repeats,
    )


def run(options: Bench) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: An option is impossible.
    """
    plan = plan_of(options)
    path = pathlib.Path(options.output or f"bench-{options.workload}.json")
    check_file(path)
    alone = options.workload == "layers"
    if alone and hasattr(os, "sched_setaffinity"):
        # One core, before JAX counts them for its threads.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    mesh = launch.start(options.launch)
    log = functools.partial(print, flush=True)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are shown
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "devices": mesh.size if mesh else 1,
        "versions": versions(),
        "matmul_peak_flops": timing.matmul_peak(),
        "options": {k: v for k, v in vars(options).items() if k not in _PLACES},
        "results": [],
    }
    log(f"{report['machine']}, {report['devices']} device(s), jax {jax.__version__}")
    log(f"float32 matmul peak {report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s")
    if alone:
        log("| layer | ms (min-max) | GFLOP/s | share of one core's matmul peak |")
        log("|---|---|---|---|")
        for row in layers.rows(options.repeats):
            report["results"].append(row)
            log(_layer_line(row))
    else:
        log(_HEADER)
        log("|---|---|---|---|---|---|---|---|---|")
    for name in _workloads(options):
        for row in measure.rows(name, plan, mesh):
            report["results"].append(row)
            log(_line(row))
    report["peak_rss_bytes"] = timing.peak_rss()
    log(f"peak RSS {report['peak_rss_bytes'] / 1e6:.0f} MB")
    write_json(path, report)
    log(f"written: {path}")
    return 0


_HEADER = (
    "| workload | clients | entry | ms per round (min-max) | ms per client "
    "| compile s | temp MB | GFLOP/s | ratio |"
)

_PLACES = ("launch", "peers")
"""Options that log where to run: the report has the devices themselves."""


def _workloads(options: Bench) -> list[str]:
    """Names of the workloads whose rounds are timed; none for single layers."""
    if options.workload == "all":
        return list(WORKLOADS)
    return [name for name in WORKLOADS if name == options.workload]


def _machine() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _layer_line(row: dict[str, Any]) -> str:
    time, share = row["seconds"], row.get("share_of_peak")
    ms = [f"{1e3 * time[k]:.4g}" for k in ("median", "min", "max")]
    if share is None:
        return f"| {row['entry']} | {ms[0]} ({ms[1]}-{ms[2]}) | - | - |"
    shares = [f"{share[k]:.2f}" for k in ("median", "min", "max")]
    return (
        f"| {row['entry']} | {ms[0]} ({ms[1]}-{ms[2]}) "
        f"| {row['flops'] / time['median'] / 1e9:.1f} "
        f"| {shares[0]} ({shares[1]}-{shares[2]}) |"
    )


def _line(row: dict[str, Any]) -> str:
    time, clients = row["seconds_per_round"], row["clients"]
    ms = [f"{1e3 * time[k]:.4g}" for k in ("median", "min", "max")]
    cells = [
        row["workload"],
        f"{clients:,}",
        row["entry"],
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
