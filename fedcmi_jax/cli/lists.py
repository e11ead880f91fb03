"""``fedcmi list``: presets, data sets, methods, partitions, encoders and runs."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import rich.console
import rich.table

from fedcmi_jax.cli.commands import RUNS, List
from fedcmi_jax.data.catalog import CATALOG
from fedcmi_jax.experiment import plugins
from fedcmi_jax.experiment.config import REGISTRIES
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.presets import PRESETS
from fedcmi_jax.experiment.run_folder import (
    CONFIG,
    METRICS,
    SUMMARY,
)

UNLIMITED_WIDTH = 1000
"""Columns of a table that goes to a file or a pipe."""


def run(options: List) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.
    """
    plugins.load(options.imports)
    # In a pipe there is no width to fit, and cut names are of no use to a script.
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    console = rich.console.Console(soft_wrap=True, width=width)
    if options.what != "all":
        console.print(LISTS[options.what]())
        return 0
    for name, table in LISTS.items():
        console.print(f"[bold]{name}[/bold]")
        console.print(table(), "")
    return 0


def percent(value: float | None) -> str:
    """A share as a person reads it."""
    return "-" if value is None else f"{100 * value:.1f} %"


def list_registry(kind: str) -> rich.table.Table:
    """Names and first docstring lines of a registry."""
    table = rich.table.Table("name", "what", box=None, pad_edge=False)
    for name, factory in sorted(REGISTRIES[kind].items()):
        table.add_row(name, (factory.__doc__ or "").strip().splitlines()[0])
    return table


def list_datasets() -> rich.table.Table:
    """The catalogue of the data sets."""
    table = rich.table.Table(
        "name",
        "modalities",
        "classes",
        "train",
        "test",
        "natural clients",
        "how to get it",
        "licence",
        box=None,
        pad_edge=False,
    )
    for name, entry in CATALOG.items():
        counts = (entry.classes, entry.train, entry.test)
        table.add_row(
            name,
            ", ".join(entry.modalities),
            *("any" if count is None else f"{count:,}" for count in counts),
            entry.clients or "-",
            entry.get,
            entry.licence,
        )
    for name in sorted(REGISTRIES["dataset"].keys() - CATALOG.keys()):
        table.add_row(name, *"-----", f"registered by {_package(name)}", "-")
    return table


def _package(dataset: str) -> str:
    return REGISTRIES["dataset"][dataset].__module__


def list_presets() -> rich.table.Table:
    """Names and descriptions of the presets."""
    table = rich.table.Table("preset", "what", box=None, pad_edge=False)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    return table


def list_runs(root: pathlib.Path) -> rich.table.Table:
    """Runs below a folder: status, rounds and accuracy; several seeds are one run."""
    table = rich.table.Table(
        "run", "method", "rounds", "accuracy", "status", box=None, pad_edge=False
    )
    for config in sorted(root.glob(f"*/{CONFIG}")):
        folder = config.parent
        try:
            values = read_json(config)["config"]
            records = [r for r in MetricsLog(folder / METRICS).read() if "acc" in r]
            rounds, method = values["rounds"], values["method"]["name"]
            accuracy = records[-1]["acc"] if records else None
            is_finished = (folder / SUMMARY).exists()
            if is_finished:
                # Seeds that stop early do not all have the last line.
                accuracy = read_json(folder / SUMMARY)["final"]["acc"]
            status = _status(folder, values, is_finished)
        except (ValueError, KeyError, TypeError) as error:
            table.add_row(str(folder), "", "", "", f"damaged: {error}")
            continue
        done = records[-1]["round"] if records else 0
        row = (method, f"{done}/{rounds}", percent(accuracy), status)
        table.add_row(str(folder), *row)
    return table


def _status(folder: pathlib.Path, values: dict[str, Any], is_finished: bool) -> str:
    """What `list_runs` says of a run with these values in its config.json."""
    parts = ["finished" if is_finished else "resumable"]
    if (seeds := values.get("seeds", 1)) > 1:
        parts.append(f"{seeds} seeds")
        if not is_finished and not values.get("map_seeds"):
            done = len(list(folder.glob(f"seed-*/{SUMMARY}")))
            parts.append(f"{done} of them done")
    if values.get("fixed_partition") or values.get("map_seeds"):
        parts.append("partition of seed 0")
    return ", ".join(parts)


LISTS: dict[str, Callable[[], rich.table.Table]] = {
    "presets": list_presets,
    "datasets": list_datasets,
    "methods": lambda: list_registry("method"),
    "partitions": lambda: list_registry("partition"),
    "encoders": lambda: list_registry("encoder"),
    "runs": lambda: list_runs(RUNS),
}
"""Name -> its table."""
