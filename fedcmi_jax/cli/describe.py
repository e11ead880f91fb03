"""``fedcmi data describe``: who holds what, as tables and as a picture."""

import functools
import io
import pathlib

import numpy as np
import rich.console
import rich.table

from fedcmi_jax.cli.commands import Describe
from fedcmi_jax.experiment.outputs import check_file
from fedcmi_jax.results.holdings import Holdings, holdings

MOST_ROWS = 30
"""Clients that are listed one by one; of more, the first ones."""


def run(options: Describe) -> int:
    """The command: prints the tables and, if asked, writes the picture.

    Args:
      options: Its options.

    Returns:
      The exit code 0.

    Raises:
      ValueError: The data set or the partition is impossible, or the picture's name
        does not end in .png.
      OSError: The picture cannot be written.
    """
    output, log = options.config.output, functools.partial(print, flush=True)
    path = pathlib.Path(output) if output else None
    if path is not None and path.suffix != ".png":
        raise ValueError(f"--output: {path} is no picture's name; end it in .png")
    if path is not None:
        check_file(path)
    found = holdings(options.config, log)
    log(text(found))
    if path is not None:
        # Imported for a picture only: tables do not wait for matplotlib.
        from fedcmi_jax.results import holdings_figure

        holdings_figure.draw(found, path)
        log(f"written: {path}")
    return 0


def text(found: Holdings) -> str:
    """Summary and list of clients, as lines."""
    sizes, num_clients = found.sizes, len(found.counts)
    lines = [
        f"{found.title}: {sizes.sum():,} training samples at {num_clients} clients, "
        f"{found.test_counts.sum():,} test samples, {len(found.class_names)} classes"
    ]
    for name, samples in found.held.items():
        lines.append(f"{samples.sum():,} more samples are the clients' {name} samples")
    if found.holdout:
        lines.append(
            f"{sum(found.holdout):,} more samples are for testing only; held-out "
            f"clients: {len(found.holdout)}"
        )
    if found.wrong_labels:
        lines.append(f"{found.wrong_labels:,} training labels are wrong: label noise")
    if found.network:
        lines.append(found.network)
    if found.unused:
        lines.append(f"{found.unused:,} training samples are held by no client")
    tables = (_summary(found), _modalities(found), _clients(found))
    parts = ["\n".join(lines), *map(_rendered, tables)]
    hidden = num_clients - MOST_ROWS
    if hidden > 0:
        parts[-1] += f"\n... and {hidden:,} more; --output=FILE.png shows all"
    return "\n\n".join(parts)


def _table(first: str, *numbers: str) -> rich.table.Table:
    table = rich.table.Table(first, box=None, pad_edge=False)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _summary(found: Holdings) -> rich.table.Table:
    table = _table("per client", "min", "median", "mean", "max")
    for what, values in (
        ("samples", found.sizes),
        *found.held.items(),
        ("classes", (found.counts > 0).sum(axis=1)),
        ("modalities", found.available.sum(axis=1)),
    ):
        numbers = (values.min(), np.median(values), values.mean(), values.max())
        table.add_row(what, *(f"{v:,.1f}".removesuffix(".0") for v in numbers))
    return table


def _modalities(found: Holdings) -> rich.table.Table:
    table = _table("modality", "clients", "only it", "missing", "samples")
    alone = found.available.sum(axis=1) == 1
    for m, name in enumerate(found.modalities):
        has = found.available[:, m]
        counts = (has, has & alone, ~has)
        numbers = [f"{c.sum():,}" for c in counts]
        table.add_row(name, *numbers, f"{found.present[:, m].sum():,}")
    if len(found.modalities) > 1:
        full = found.available.all(axis=1)
        numbers = [f"{full.sum():,}", "", f"{(~full).sum():,}"]
        samples = found.present.all(axis=1).sum()
        table.add_row("all of them", *numbers, f"{samples:,}")
    return table


def _clients(found: Holdings) -> rich.table.Table:
    table = _table("client", "samples", *found.held, "classes", "largest class")
    for name in found.modalities:
        table.add_column(name)
    for i, row in enumerate(found.counts[:MOST_ROWS]):
        largest = "-"
        if row.any():
            largest = f"{found.class_names[row.argmax()]} {row.max() / row.sum():4.0%}"
        has = ("yes" if a else "-" for a in found.available[i])
        held = (f"{samples[i]:,}" for samples in found.held.values())
        numbers = (f"{row.sum():,}", *held, str((row > 0).sum()))
        name = found.names[i] if found.names else str(i)
        table.add_row(name, *numbers, largest, *has)
    return table


def _rendered(table: rich.table.Table) -> str:
    console = rich.console.Console(file=io.StringIO(), width=1000)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
