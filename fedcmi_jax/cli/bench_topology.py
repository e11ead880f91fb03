"""``fedcmi bench --topology=...``: what a compiler says of TPUs that are not there."""

import dataclasses
import datetime
import functools
import importlib.metadata
import pathlib
from typing import Any

import jax

from fedcmi_jax import backend
from fedcmi_jax.bench import layer_cycles, topology
from fedcmi_jax.bench.workloads import WORKLOADS
from fedcmi_jax.cli.bench import asked
from fedcmi_jax.cli.commands import Bench
from fedcmi_jax.experiment.config_file import versions
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.outputs import check_file

MEASURING = ("against", "peers", "repeats", "launch")
"""Options of a run: where nothing runs, there is nothing for them to change."""


def plan_of(options: Bench) -> topology.Plan:
    """Reads the options, and refuses those that only a run could follow.

    Raises:
      ValueError: One line that names the option and the remedy.

    Example:
      >>> plan_of(Bench(topology="v5e:2x2", chunk_size="16,128")).chunk_sizes
      (16, 128)
    """
    spread = options.launch.spread_samples
    asks = dataclasses.replace(
        options, launch=dataclasses.replace(options.launch, spread_samples=False)
    )
    for name in MEASURING:
        if getattr(asks, name) != getattr(Bench(), name):
            flag = "devices" if name == "launch" else name
            raise ValueError(
                f"{flag}: does not go with --topology, which runs nothing; leave it out"
            )
    names, counts = asked(options)
    sizes = options.chunk_size.split(",")
    if not all(size.isdecimal() for size in sizes):
        raise ValueError(
            f"chunk_size: {options.chunk_size!r}; with --topology, which measures "
            "nothing, give counts, e.g. 16,128"
        )
    return topology.Plan(names, counts, tuple(int(size) for size in sizes), spread)


def run(options: Bench) -> int:
    """Compiles, prints a table, writes JSON.

    Args:
      options: The command's.

    Returns:
      The exit code.

    Raises:
      ValueError: An option is impossible, libtpu is not installed, or it does not know
        the topology.
    """
    plan = plan_of(options)
    name = f"bench-{options.workload}-{options.topology.replace(':', '-')}.json"
    path = pathlib.Path(options.output or name)
    check_file(path)
    if not backend.has_started():
        jax.config.update("jax_platforms", "cpu")  # JAX itself shall look for no TPU
    mesh = topology.topology_mesh(options.topology)
    log = functools.partial(print, flush=True)
    chip = mesh.devices.flat[0].device_kind
    libtpu = importlib.metadata.version("libtpu")
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "topology": options.topology,
        "chips": mesh.size,
        "chip": chip,
        "versions": versions() | {"libtpu": libtpu},
        "options": {"workload": options.workload} | plan._asdict(),
        "results": [],
    }
    log(
        f"the compiler's estimate for {mesh.size} x {chip} ({options.topology}); "
        f"nothing runs; jax {jax.__version__}, libtpu {libtpu}"
    )
    if options.workload == "layers":
        log(_LAYER_HEADER)
        for row in layer_cycles.rows(mesh):
            report["results"].append(row)
            log(_layer_line(row))
    else:
        chosen = list(WORKLOADS) if options.workload == "all" else [options.workload]
        log(_HEADER)
        for name in chosen:
            for row in topology.rows(name, plan, mesh):
                report["results"].append(row)
                log(_line(row))
    write_json(path, report)
    log(f"written: {path}")
    return 0


_HEADER = (
    "| workload | clients | entry | chunk | compile s | MB per chip: arguments "
    "| results, new | temporary | collectives (MB) |\n" + "|---" * 9 + "|"
)

_FORMS = ("in turn", *layer_cycles.FORMS)

_LAYER_HEADER = (
    f"| layer, {layer_cycles.CLIENTS} clients, thousand cycles | "
    + " | ".join(_FORMS)
    + " | fewest |\n"
    + "|---" * (len(_FORMS) + 2)
    + "|"
)


def _layer_line(row: dict[str, Any]) -> str:
    cycles = row["cycles"]
    numbers = [f"{cycles[form] / 1e3:,.0f}" for form in _FORMS]
    fewest = min(cycles, key=lambda form: cycles[form])
    return f"| {row['entry']} | " + " | ".join(numbers) + f" | {fewest} |"


def _line(row: dict[str, Any]) -> str:
    cells = [row["workload"], f"{row['clients']:,}", row["entry"]]
    cells.append(str(row["chunk_size"]))
    if "does_not_fit" in row:
        return "| " + " | ".join([*cells, row["does_not_fit"]]) + " | | | | |"
    new = row["output_bytes"] - row["alias_bytes"]
    cells.append(f"{row['compile_seconds']:.1f}")
    for size in (row["argument_bytes"], new, row["temp_bytes"]):
        cells.append(f"{size / 1e6:.1f}")
    found = [
        f"{c['count']} {kind} ({c['bytes'] / 1e6:.2g})"
        for kind, c in sorted(row["collectives"].items())
    ]
    cells.append(", ".join(found) or "none")
    return "| " + " | ".join(cells) + " |"
