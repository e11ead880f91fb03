"""``fedcmi list``: presets, data sets, methods, partitions, encoders and runs."""

import pathlib
import sys
from collections.abc import Callable

import rich.console
import rich.table
from rich.markup import escape

from fedcmi_jax.cli.commands import List
from fedcmi_jax.cli.run_commands import RUNS
from fedcmi_jax.data.catalog import CATALOG
from fedcmi_jax.experiment import plugins
from fedcmi_jax.experiment.config import REGISTRIES
from fedcmi_jax.experiment.presets import PRESETS
from fedcmi_jax.experiment.progress import percent
from fedcmi_jax.experiment.run_list import find_runs

UNLIMITED_WIDTH = 1000
"""Columns of a table that goes to a file or a pipe."""


def run(options: List) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: A folder is given that is not there, or where none is listed.
    """
    folder = options.folder
    if folder is not None and options.what != "runs":
        raise ValueError(f"list: unknown '{folder}'; takes {List.takes}")
    if folder is not None and not folder.is_dir():
        raise ValueError(f"list runs: there is no folder {folder}")
    plugins.load(options.imports)
    # In a pipe there is no width to fit, and cut names are of no use to a script.
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    console = rich.console.Console(soft_wrap=True, width=width)
    if options.what != "all":
        console.print(LISTS[options.what](options.folder or RUNS))
        return 0
    for name, table in LISTS.items():
        console.print(f"[bold]{name}[/bold]")
        console.print(table(RUNS), "")
    return 0


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
    """Runs and sweeps in a folder and below it."""
    names = ("run", "preset", "method", "seeds", "rounds", "fused", "weakest", "state")
    table = rich.table.Table(*names, box=None, pad_edge=False)
    for row in find_runs(root):
        shares = (percent(row.acc), percent(row.weakest))
        texts = (row.preset, row.method, row.seeds, row.rounds, *shares, row.state)
        # Names are the user's: a bracket in one is no markup.
        table.add_row(*(escape(text) for text in (str(row.folder), *texts)))
    return table


LISTS: dict[str, Callable[[pathlib.Path], rich.table.Table]] = {
    "presets": lambda folder: list_presets(),
    "datasets": lambda folder: list_datasets(),
    "methods": lambda folder: list_registry("method"),
    "partitions": lambda folder: list_registry("partition"),
    "encoders": lambda folder: list_registry("encoder"),
    "aggregators": lambda folder: list_registry("aggregator"),
    "attacks": lambda folder: list_registry("attack"),
    "privacy": lambda folder: list_registry("privacy"),
    "compressions": lambda folder: list_registry("compression"),
    "systems": lambda folder: list_registry("systems"),
    "runs": list_runs,
}
"""Name -> its table, of a folder of runs."""
