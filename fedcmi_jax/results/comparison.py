"""Which entry is compared with which, and how much they differ over the seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedcmi_jax.results.collect import Entry, Results, last
from fedcmi_jax.results.curves import modalities
from fedcmi_jax.results.labels import text
from fedcmi_jax.results.statistics import Paired, holm, paired

MOST_TOGETHER = 8
"""Entries in one figure: as many as the palette has colours."""


METHOD = "method"
"""The axis that a baseline is on, unless it is named otherwise."""


class Difference(NamedTuple):
    """An entry less its baseline.

    Attributes:
      entry: Label.
      baseline: Label.
      column: What is compared.
      seeds: The seeds that both have finished.
      paired: The differences, in the column's units; None without a common seed.
    """

    entry: str
    baseline: str
    column: str
    seeds: tuple[int, ...]
    paired: Paired | None


class Pairing(NamedTuple):
    """Who is compared with whom.

    Attributes:
      name: What the baselines have in common.
      axis: The axis along which entries are compared; None: all with one entry.
      of: Label -> the entry's baseline; None where it has none.
    """

    name: str
    axis: str | None
    of: dict[str, Entry | None]


def pairing(results: Results, baseline: str | None = None) -> Pairing:
    """Finds every entry's baseline.

    A label names an entry, a value such as ``fedavg`` the axis that it is on. With
    several axes an entry is compared with the one that has the same values on all other
    axes; a label stands for its method, or without such an axis for its value on the
    first.

    Args:
      results: The entries.
      baseline: Label or value; None: the plan's, or the first entry.

    Raises:
      ValueError: There is no such label or value; names those that there are.
    """
    entries = results.entries
    name = baseline or results.baseline or entries[0].label
    axis, value = _axis_of(results, name)
    shown = name
    if axis is not None and len(results.axes) > 1:
        shown = text(value) if axis == METHOD else f"{axis}={text(value)}"
    found: dict[str, Entry | None] = {}
    for entry in entries:
        if axis is None:
            found[entry.label] = next(e for e in entries if e.label == name)
        else:
            wanted = _keys(entry.values | {axis: value})
            matches = (e for e in entries if _keys(e.values) == wanted)
            found[entry.label] = next(matches, None)
    return Pairing(shown, axis, found)


def _axis_of(results: Results, name: str) -> tuple[str | None, Any]:
    """Axis and value that a baseline's name stands for; None: a single entry."""
    for entry in results.entries:
        if entry.label == name:
            if not results.axes:
                return None, None
            axis = METHOD if METHOD in results.axes else results.axes[0]
            return axis, entry.values.get(axis)
    for axis in results.axes:
        for entry in results.entries:
            if axis in entry.values and text(entry.values[axis]) == name:
                return axis, entry.values[axis]
    known = [entry.label for entry in results.entries]
    raise ValueError(f"baseline: there is no {name!r}; choose from {', '.join(known)}")


def _keys(values: dict[str, Any]) -> dict[str, str]:
    return {axis: text(value) for axis, value in values.items()}


def difference(entry: Entry, baseline: Entry, column: str) -> Difference:
    """Last values of an entry less those of its baseline, seed by seed.

    Seeds are paired by their number, also where they do not share a partition: data,
    initial parameters and cohorts follow from the seed. Those that either has not
    finished are not counted.

    Args:
      entry: The entry.
      baseline: What it is compared with.
      column: Of the metrics lines.
    """
    own, other = last(entry, column), last(baseline, column)
    ended = entry.summaries.keys() & baseline.summaries.keys()
    seeds = tuple(seed for seed in own if seed in other and seed in ended)
    found = None
    if seeds:
        found = paired([own[s] for s in seeds], [other[s] for s in seeds])
    return Difference(entry.label, baseline.label, column, seeds, found)


def differences(
    entries: Sequence[Entry], pairs: Pairing, column: str
) -> list[Difference]:
    """``difference`` of every entry that has another one as baseline."""
    return [
        difference(entry, other, column)
        for entry in entries
        if (other := pairs.of[entry.label]) is not None and other.label != entry.label
    ]


def adjusted(found: Sequence[Difference]) -> list[float | None]:
    """The p-values of differences, adjusted for their number (Holm)."""
    return holm([d.paired.p if d.paired else None for d in found])


class Group(NamedTuple):
    """Entries that are shown in one figure.

    Attributes:
      title: What they share and others do not; empty: they are all.
      entries: The entries.
    """

    title: str
    entries: tuple[Entry, ...]


def groups(results: Results, pairs: Pairing) -> list[Group]:
    """The entries in groups that a figure can show.

    One group if they are few, of the same modalities; else one for every combination of
    values on the axes other than that of the baseline, cut into pieces where even these
    are too many.
    """
    entries = results.entries
    kinds = {tuple(modalities([entry])) for entry in entries}
    if len(entries) <= MOST_TOGETHER and len(kinds) <= 1:
        return [Group("", entries)]
    others = [axis for axis in results.axes if axis != pairs.axis]
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        names = (f"{a}={text(entry.values[a])}" for a in others if a in entry.values)
        found.setdefault(", ".join(names), []).append(entry)
    return [
        Group(title, tuple(own[i : i + MOST_TOGETHER]))
        for title, own in found.items()
        for i in range(0, len(own), MOST_TOGETHER)
    ]
