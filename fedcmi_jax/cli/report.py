"""What a person sees: progress, the final block, lists."""

import pathlib
import sys
from typing import Any

import rich.console
import rich.progress
import rich.table

from fedcmi_jax.data.catalog import CATALOG
from fedcmi_jax.evaluation.glossary import explain
from fedcmi_jax.experiment.config import REGISTRIES
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.presets import PRESETS
from fedcmi_jax.experiment.training import CONFIG, METRICS, SUMMARY, Observer, Summary

MOST_PLAIN_LINES = 20
"""Lines of progress of a run whose output is not a terminal."""


def modality_accuracies(record: dict[str, Any]) -> dict[str, float]:
    """Modality -> fused accuracy with the other modalities zero."""
    return {
        name.removeprefix("acc_").removesuffix("_zero"): value
        for name, value in record.items()
        if name.startswith("acc_") and name.endswith("_zero")
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _line(record: dict[str, Any]) -> str:
    parts = [f"accuracy {_percent(record['acc'])}"]
    parts += [f"{m} {_percent(a)}" for m, a in modality_accuracies(record).items()]
    return "  ".join(parts)


class PlainProgress(Observer):
    """One line per evaluated round, at most about twenty a run."""

    def started(self, round: int, rounds: int) -> None:
        """Says where training starts."""
        self.rounds = rounds
        self.next = 0
        print(f"training from round {round} to {rounds}", flush=True)

    def evaluated(self, record: dict[str, Any]) -> None:
        """Prints the round if its turn has come."""
        round = record["round"]
        if round >= self.next or round == self.rounds:
            print(f"round {round}/{self.rounds}  {_line(record)}", flush=True)
            self.next = round + self.rounds / MOST_PLAIN_LINES

    def note(self, text: str) -> None:
        """Prints a note on standard error."""
        print(f"fedcmi: {text}", file=sys.stderr, flush=True)


class BarProgress(Observer):
    """A progress bar with round, accuracies and the time left."""

    def __init__(self) -> None:
        """Sets the bar up; it shows from ``started`` on."""
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[line]}"),
        )
        self.task: rich.progress.TaskID | None = None

    def __enter__(self) -> "BarProgress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def started(self, round: int, rounds: int) -> None:
        """Shows the bar."""
        self.task = self.bar.add_task(
            "train", total=rounds, completed=round, line="compiling"
        )
        self.bar.start()

    def evaluated(self, record: dict[str, Any]) -> None:
        """Moves the bar."""
        if self.task is not None:
            self.bar.update(self.task, completed=record["round"], line=_line(record))

    def note(self, text: str) -> None:
        """Prints a note above the bar."""
        self.bar.console.print(f"fedcmi: {text}", highlight=False, soft_wrap=True)


def final_block(summary: Summary) -> str:
    """The run's result in a few lines, and below it a line on every name in it."""
    r = summary.final
    named: dict[str, str] = {}

    def part(column: str, value: str) -> str:
        term = explain(column)
        named[term.shown] = term.meaning
        return f"{term.shown} {value}"

    def spread(name: str) -> str:
        mean, lowest = (_percent(r.get(f"{name}_{what}")) for what in ("mean", "min"))
        return f"{mean} mean, {lowest} lowest"

    lines = [part("acc", f"{_percent(r['acc'])} after {r['round']} rounds")]
    for m in modality_accuracies(r):
        views = [f"acc_{m}_{kind}" for kind in ("zero", "infiltration", "head")]
        parts = [part(view, _percent(r[view])) for view in views if view in r]
        lines.append(f"  {m} {'  '.join(parts)}")
    parts = [
        part("macro_f1", f"{r['macro_f1']:.3f}"),
        part("worst_class", _percent(r["worst_class"])),
        part("client_mean", spread("client")),
    ]
    lines.append(f"  {'  '.join(parts)}")
    if "personal_mean" in r:
        lines.append(f"  {part('personal_mean', spread('personal'))}")
    if "val_acc" in r:
        lines.append(f"  {part('val_acc', _percent(r['val_acc']))}")
    if summary.best is not None:
        lines.append(
            f"  best round on validation {summary.best['round']}: "
            f"validation {_percent(summary.best['val_acc'])}, "
            f"test {_percent(summary.best['acc'])}"
        )
    if summary.stopped_early is not None:
        lines.append(
            f"  stopped early at round {summary.stopped_early}: validation had not "
            "improved for early_stop_rounds"
        )
    for name in ("client_test", "holdout"):
        if f"{name}_acc" in r:
            value = f"{_percent(r[f'{name}_acc'])}, by client {spread(name)}"
            lines.append(f"  {part(f'{name}_acc', value)}")
    if summary.fixed_partition:
        lines.append("  on the partition of seed 0 (fixed_partition)")
    lines.append(f"run folder {summary.folder}")
    meanings = (f"  {shown}: {meaning}" for shown, meaning in named.items())
    return "\n".join([*lines, "where", *meanings])


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
    return table


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
        row = (method, f"{done}/{rounds}", _percent(accuracy), status)
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
