"""Tables of final accuracies, differences, and what it took to reach an accuracy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedcmi_jax.evaluation.glossary import is_share
from fedcmi_jax.results.blocks import Table
from fedcmi_jax.results.class_figures import class_recalls
from fedcmi_jax.results.collect import Entry, Results, is_number, last
from fedcmi_jax.results.comparison import Difference, adjusted
from fedcmi_jax.results.curves import modalities
from fedcmi_jax.results.labels import scale_of
from fedcmi_jax.results.statistics import moments
from fedcmi_jax.results.to_accuracy import Reached, reached, traffic

NONE = "-"
"""In a cell without a value."""


def mean_std(values: Sequence[float], factor: float = 100.0, digits: int = 1) -> str:
    """Mean +- sample deviation.

    Example:
      >>> mean_std([0.5, 0.7]), mean_std([0.5]), mean_std([])
      ('60.0 ± 14.1', '50.0', '-')
    """
    if not values:
        return NONE
    mean, std = moments([factor * value for value in values])
    text = f"{mean:,.{digits}f}"
    return text if std is None else f"{text} ± {std:,.{digits}f}"


def measures(entries: Sequence[Entry]) -> dict[str, str]:
    """Column -> head, of the measures that tables of final numbers have.

    Example:
      >>> measures([])["acc"]
      'fused'
    """
    found = {"acc": "fused"}
    found |= {f"acc_{m}_zero": f"{m} alone" for m in modalities(entries)}
    found |= {
        "macro_f1": "macro F1",
        "worst_class": "worst class",
        "client_mean": "clients' mean",
        "client_min": "lowest client",
        "personal_mean": "own models' mean",
        "client_test_mean": "own test samples",
        "holdout_acc": "new clients",
        "val_acc": "validation",
    }
    return found


def final(results: Results, extra: Sequence[str] = ()) -> Table:
    """Every entry at its last round, mean and deviation over its seeds.

    Args:
      results: The entries.
      extra: Further columns of the metrics lines.
    """
    entries = results.entries
    heads = measures(entries) | {name: name for name in extra}
    values = {c: [last(entry, c) for entry in entries] for c in heads}
    shown = [c for c in heads if any(values[c])]
    rows = []
    for i, entry in enumerate(entries):
        cells = [mean_std(list(values[c][i].values()), *scale_of(c)) for c in shown]
        rows.append([entry.label, state(entry), _rounds(entry), *cells])
    heads_shown = [f"{heads[c]} (%)" if is_share(c) else heads[c] for c in shown]
    return Table(
        "At the last round on the test split: mean ± sample deviation over the seeds.",
        ["", "seeds", "rounds", *heads_shown],
        rows,
    )


def state(entry: Entry) -> str:
    """How many seeds there are, and whether all have finished.

    Example:
      >>> state(Entry("", {}, {}, {0: [{"acc": 1.0}]}, {}, (0, 1)))
      '1 of 2, unfinished'
    """
    if entry.failure:
        return f"{len(entry.seeds)} of {len(entry.planned)}, failed"
    if entry.unfinished:
        return f"{len(entry.seeds)} of {len(entry.planned)}, unfinished"
    return str(len(entry.seeds))


def _rounds(entry: Entry) -> str:
    found = sorted({lines[-1]["round"] for lines in entry.seeds.values()})
    if not found:
        return NONE
    return f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"


def best(results: Results) -> Table | None:
    """The rounds chosen on validation; None where no seed has one."""
    rows = []
    for entry in results.entries:
        lines = (s.get("best") or {} for s in entry.summaries.values())
        found = [b for b in lines if is_number(b.get("val_acc"))]
        if found:
            cells = [mean_std([b[c] for b in found]) for c in ("val_acc", "acc")]
            rounds = mean_std([b["round"] for b in found if "round" in b], 1.0)
            rows.append([entry.label, str(len(found)), rounds, *cells])
    if not rows:
        return None
    return Table(
        "At the best round on validation: mean ± sample deviation over the seeds.",
        ["", "seeds", "round", "validation (%)", "fused, test (%)"],
        rows,
    )


def compared(found: Sequence[Difference], what: str) -> Table:
    """Differences to the baseline with their t intervals.

    Args:
      found: Of one measure.
      what: The measure.
    """
    rows = []
    for one, p in zip(found, adjusted(found), strict=True):
        rows.append([one.entry, one.baseline, *_difference(one, p)])
    unit = ", in points" if all(is_share(one.column) for one in found) else ""
    return Table(
        f"{what}: entry less baseline, seed by seed{unit}; n is the number of seeds "
        "that both have finished.",
        [
            *("", "baseline", "n", "mean difference", "deviation"),
            *("95 % t interval", "p", "p, Holm"),
        ],
        rows,
    )


def _difference(one: Difference, p: float | None) -> list[str]:
    found = one.paired
    if found is None:
        return ["0", *[NONE] * 5]
    mean = points(found.mean, one.column)
    if found.std is None or found.low is None or found.high is None:
        return [str(found.n), mean, *[NONE] * 4]
    low, high = (points(end, one.column) for end in (found.low, found.high))
    factor, digits = scale_of(one.column)
    own = [mean, f"{factor * found.std:,.{digits}f}", f"{low} to {high}"]
    return [str(found.n), *own, p_text(found.p), p_text(p)]


def points(value: float, column: str) -> str:
    """A difference, of shares in points, with the sign that it has before rounding.

    Example:
      >>> points(0.0123, "acc"), points(-0.0004, "acc"), points(-0.0123, "loss_task")
      ('+1.2', '-0.0', '-0.012')
    """
    factor, digits = scale_of(column)
    return f"{factor * value:+,.{digits}f}"


def p_text(p: float | None) -> str:
    """A p-value.

    Example:
      >>> p_text(0.0321), p_text(0.0001), p_text(None)
      ('0.032', '< 0.001', '-')
    """
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_accuracy(
    entries: Sequence[Entry], column: str, targets: Mapping[str, float]
) -> Table:
    """Rounds, seconds and bytes until a target.

    Args:
      entries: The entries.
      column: What has to reach it.
      targets: Label -> target, in [0, 1].
    """
    rows = []
    for entry in entries:
        if entry.label not in targets:
            continue
        target = targets[entry.label]
        found = reached(entry, column, target)
        got = [when for when in found.values() if when is not None]
        head = [entry.label, f"{100 * target:.1f}", f"{len(got)} of {len(found)}"]
        rows.append([*head, *_when(got)])
    return Table(
        "First evaluated round with at least the target: mean ± sample deviation over "
        "the seeds that reached it.",
        ["", "target (%)", "seeds", "rounds", "seconds", "MB, all clients"],
        rows,
    )


def _when(found: Sequence[Reached]) -> list[str]:
    if not found:
        return ["not reached"] * 3

    def cell(of: Callable[[Reached], float | None], factor: float, digits: int) -> str:
        values = [of(when) for when in found]
        known = [value for value in values if value is not None]
        return mean_std(known, factor, digits) if len(known) == len(values) else NONE

    return [
        cell(lambda when: when.round, 1.0, 1),
        cell(lambda when: when.seconds, 1.0, 1),
        cell(lambda when: when.bytes, 1e-6, 2),
    ]


def cost(entries: Sequence[Entry]) -> Table | None:
    """Size, traffic and time of the runs that have finished; None of none."""
    rows = []
    for entry in entries:
        own = list(entry.summaries.values())
        if not own:
            continue
        found = [traffic(summary) for summary in own]
        known = [way for way in found if way is not None]
        down, up = ([way[i] for way in known] for i in (0, 1))
        sizes = {s["parameters"] for s in own if is_number(s.get("parameters"))}
        rows.append(
            [
                entry.label,
                ", ".join(f"{size:,}" for size in sorted(sizes)) or NONE,
                mean_std(down, 1e-3),
                mean_std(up, 1e-3),
                mean_std(
                    [s["seconds"] for s in own if is_number(s.get("seconds"))], 1.0
                ),
            ]
        )
    if not rows:
        return None
    return Table(
        "Finished runs: mean ± sample deviation over the seeds; kilobytes that a "
        "client receives and sends in a round, the mean over clients.",
        ["", "parameters", "kB down", "kB up", "seconds in all"],
        rows,
    )


def per_class(entries: Sequence[Entry], class_names: Sequence[str]) -> Table:
    """Recall of every class, a row per class.

    Args:
      entries: With ``class_recalls``, of as many classes as there are names.
      class_names: C names.
    """
    tables = [class_recalls(entry) for entry in entries]
    rows = []
    for c, name in enumerate(class_names):
        columns = [[] if t is None else t[:, c].tolist() for t in tables]
        cells = [mean_std([x for x in values if np.isfinite(x)]) for values in columns]
        rows.append([name, *cells])
    heads = [entry.label for entry in entries]
    caption = (
        "Recall of every class in percent: mean ± sample deviation over the seeds."
    )
    return Table(caption, ["class", *heads], rows)


SPREAD = {
    "min": "lowest",
    "p10": "10th percentile",
    "median": "median",
    "mean": "mean",
    "max": "highest",
    "std": "deviation",
}
"""Ending of a column -> head."""


def clients(entries: Sequence[Entry], prefix: str) -> Table:
    """How accuracy spreads over clients at the last round.

    Args:
      entries: The entries.
      prefix: Of the columns.
    """
    rows = []
    for entry in entries:
        found = (last(entry, f"{prefix}_{ending}") for ending in SPREAD)
        rows.append([entry.label, *(mean_std(list(x.values())) for x in found)])
    return Table(
        "Over the clients, in percent: mean ± sample deviation over the seeds.",
        ["", *SPREAD.values()],
        rows,
    )


def long_rows(results: Results) -> list[list[Any]]:
    """All numbers of all evaluated lines: entry, axes, seed, round, column, value."""
    rows: list[list[Any]] = [
        [*("entry", *results.axes), "seed", "round", "column", "value"]
    ]
    for entry in results.entries:
        axes = [entry.values.get(axis, "") for axis in results.axes]
        for seed, lines in entry.seeds.items():
            for line in lines:
                rows += [
                    [entry.label, *axes, seed, line["round"], name, value]
                    for name, value in line.items()
                    if name != "round" and type(value) in (int, float)
                ]
    return rows
