"""A sweep's results: a row per cell, table.csv and table.md; no times in them."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcmi_jax.experiment.files import replace
from fedcmi_jax.experiment.resume import is_finished
from fedcmi_jax.experiment.summary_file import read_summary
from fedcmi_jax.results.statistics import Paired, moments, paired
from fedcmi_jax.sweeps.plan import METHOD, Cell, Plan

TABLE_CSV, TABLE_MD = "table.csv", "table.md"

NO_RESULT = ("seconds", "round", "seeds")
"""Numbers of a metrics line that are no result."""


class Row(NamedTuple):
    """A cell's figures.

    Attributes:
      cell: Its name.
      values: Axis -> value.
      state: finished, failed or waiting.
      metrics: Column -> its value of every seed at the last round; empty unless
        finished.
      difference: Of the sweep's measure to the baseline's cell with the same values on
        all other axes, in pairs of seeds; None: there is none, or not yet.
    """

    cell: str
    values: dict[str, Any]
    state: str
    metrics: dict[str, list[float]] = {}  # noqa: RUF012 (nobody writes into it)
    difference: Paired | None = None


def rows(plan: Plan, folder: pathlib.Path, failed: Sequence[str] = ()) -> list[Row]:
    """The rows of a sweep as far as it is.

    Args:
      plan: Its plan.
      folder: Its folder.
      failed: Names of cells that failed.

    Raises:
      ValueError: A finished cell's summary.json is damaged.
    """
    found = {}
    for cell in plan.cells:
        metrics = _metrics(cell, folder)
        state = "failed" if cell.name in failed else "waiting"
        state = "finished" if metrics else state
        found[cell.name] = Row(cell.name, cell.values, state, metrics)
    for cell in plan.cells:
        other = _baseline_of(plan, cell)
        if other is None:
            continue
        ours, theirs = (
            found[name].metrics.get(plan.measure) for name in (cell.name, other.name)
        )
        if ours and theirs:
            difference = paired(ours, theirs)
            found[cell.name] = found[cell.name]._replace(difference=difference)
    return list(found.values())


def write(plan: Plan, folder: pathlib.Path, found: Sequence[Row]) -> None:
    """Writes table.csv and table.md."""
    replace(folder / TABLE_CSV, as_csv(plan, found).encode())
    replace(folder / TABLE_MD, as_markdown(plan, found).encode())


def as_csv(plan: Plan, found: Sequence[Row]) -> str:
    """All numbers in full; a column per axis, and two per metric."""
    metrics = dict.fromkeys([plan.measure])
    metrics |= dict.fromkeys(name for row in found for name in row.metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pair = ("difference", *(f"difference_{x}" for x in ("std", "low", "high", "p")))
    own = [column for name in metrics for column in (name, f"{name}_std")]
    writer.writerow(["cell", *plan.axes, "state", "seeds", *own, *pair])
    for row in found:
        numbers: list[float | None] = []
        for name in metrics:
            values = row.metrics.get(name)
            numbers += moments(values) if values else (None, None)
        d = row.difference
        numbers += [d.mean, d.std, d.low, d.high, d.p] if d else [None] * len(pair)
        writer.writerow(
            [
                row.cell,
                *(row.values.get(axis, "") for axis in plan.axes),
                row.state,
                len(plan.seeds),
                *("" if x is None else repr(x) for x in numbers),
            ]
        )
    return text.getvalue()


def as_markdown(plan: Plan, found: Sequence[Row]) -> str:
    """The measure, mean +- sample deviation over the seeds, and the differences."""
    measure, n = plan.measure, len(plan.seeds)
    columns = [*plan.axes, f"{measure}, n = {n}"]
    if plan.baseline is not None:
        columns.append(f"difference to {plan.baseline} [95 % interval]")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in found:
        values = row.metrics.get(measure)
        texts = [str(row.values.get(axis, "")) for axis in plan.axes]
        texts.append(spread(*moments(values)) if values else row.state)
        if plan.baseline is not None:
            texts.append(_shown(row.difference))
        lines.append(_line(texts))
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def spread(mean: float, deviation: float | None) -> str:
    """Mean and deviation as tables show them.

    Example:
      >>> spread(0.5, 0.01), spread(0.5, None)
      ('0.5000 ± 0.0100', '0.5000')
    """
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _shown(difference: Paired | None) -> str:
    if difference is None:
        return ""
    if difference.low is None:
        return f"{difference.mean:+.4f}"
    low, high = difference.low, difference.high
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _metrics(cell: Cell, folder: pathlib.Path) -> dict[str, list[float]]:
    """Column -> value of every seed, of those that all seeds have."""
    where = folder / cell.folder
    if not is_finished(where, cell.config):
        return {}
    final = read_summary(where)["final"]
    columns = final.get("per_seed") or {name: [x] for name, x in final.items()}
    return {
        name: [float(x) for x in values]
        for name, values in columns.items()
        if name not in NO_RESULT and all(map(_is_number, values))
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _baseline_of(plan: Plan, cell: Cell) -> Cell | None:
    """The baseline's cell with the same values on all other axes."""
    if plan.baseline is None or cell.values.get(METHOD) == plan.baseline:
        return None
    wanted = cell.values | {METHOD: plan.baseline}
    return next((other for other in plan.cells if other.values == wanted), None)
