"""Folders of runs and sweeps as one list of entries; nothing in them is changed."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.run_folder import CONFIG, METRICS, SUMMARY
from fedcmi_jax.experiment.seed_axis import split_summary
from fedcmi_jax.experiment.seeds import folder_of
from fedcmi_jax.experiment.summary_file import read_summary
from fedcmi_jax.results.labels import labelled, same_but_seeds

PLAN, FAILURES = "plan.json", "failures.json"
"""Files of a sweep's folder."""

PLAN_FORMAT = 1
"""The version of plan.json that is read."""

MEASURE = "acc"
"""What is compared where no plan says otherwise."""


class Entry(NamedTuple):
    """One configuration with its seeds: a line of tables and figures.

    Attributes:
      label: What it is called; unique among the entries.
      values: Axis -> its value: what tells it from the other entries.
      config: Its configuration, nested, as in config.json.
      seeds: Seed -> its metrics lines of evaluated rounds, in order; seeds without an
        evaluated round are absent.
      summaries: Seed -> its summary, of the seeds that have finished.
      planned: The seeds that it is to have.
      record: What config.json has beside the configuration: versions, hardware...
      folders: Where it was read from.
      failure: Why a sweep could not train it; empty: it could.
    """

    label: str
    values: dict[str, Any]
    config: dict[str, Any]
    seeds: dict[int, list[dict[str, Any]]]
    summaries: dict[int, dict[str, Any]]
    planned: tuple[int, ...]
    record: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    folders: tuple[pathlib.Path, ...] = ()
    failure: str = ""

    @property
    def unfinished(self) -> tuple[int, ...]:
        """The planned seeds that have no summary."""
        return tuple(s for s in self.planned if s not in self.summaries)


class Results(NamedTuple):
    """Everything that a report is made of.

    Attributes:
      entries: In the order of the plan, or of the folders given.
      axes: Names of what the entries differ in.
      baseline: Label, or value on an axis, to compare with; None: the first entry.
      measure: Column of the metrics lines that is compared.
      sources: What a sweep's plan says it was made from.
    """

    entries: tuple[Entry, ...]
    axes: tuple[str, ...]
    baseline: str | None = None
    measure: str = MEASURE
    sources: tuple[str, ...] = ()


def collect(folders: Sequence[str | pathlib.Path]) -> Results:
    """Reads runs, runs of several seeds and sweeps, side by side.

    One sweep alone keeps its plan's names and axes. Otherwise entries are called by
    what differs between their configurations, and runs that differ in their seeds only
    become one entry.

    Args:
      folders: What ``fedcmi train``, ``compare`` or ``sweep`` wrote.

    Returns:
      The entries; unfinished runs with what they have.

    Raises:
      ValueError: A folder is no run or sweep, is given twice, or a file in it is
        damaged; names it.

    Example:
      >>> collect(["no/such/folder"])
      Traceback (most recent call last):
      ValueError: no/such/folder: there is no such folder; give one that `fedcmi \
train` or `fedcmi sweep` wrote
    """
    paths = [pathlib.Path(folder) for folder in folders]
    if not paths:
        raise ValueError("folders: is empty; give runs or a sweep")
    real = [path.resolve() for path in paths]
    for i, path in enumerate(paths):
        if real[i] in real[:i]:
            raise ValueError(f"{path}: is given twice; leave one out")
    sweeps = [read_plan(path) if (path / PLAN).is_file() else None for path in paths]
    if len(paths) == 1 and (plan := sweeps[0]) is not None:
        cells = tuple(_cells(paths[0], plan))
        baseline, measure = plan.get("baseline"), plan.get("measure", MEASURE)
        axes, entries = tuple(plan["axes"]), cells
    else:
        found: list[Entry] = []
        for path, one in zip(paths, sweeps, strict=True):
            found += [read_run(path)] if one is None else _cells(path, one)
        baseline, measure = None, MEASURE
        axes, entries = _side_by_side(found)
    texts = tuple(str(one["source"]) for one in sweeps if one and one.get("source"))
    return Results(entries, axes, baseline, measure, texts)


def read_run(folder: pathlib.Path) -> Entry:
    """A run's folder, of one seed or several, as an entry without a label.

    Args:
      folder: The run's; its configuration need not be one that this version can train.

    Raises:
      ValueError: It is no run, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: there is no such folder; give one that `fedcmi train` or "
            "`fedcmi sweep` wrote"
        )
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder}: is no run and no sweep, it has no {CONFIG} or {PLAN}; give a "
            "folder that `fedcmi train` or `fedcmi sweep` wrote"
        )
    content = read_json(folder / CONFIG)
    config = content.get("config") if isinstance(content, dict) else None
    if not _is_config(config):
        raise ValueError(
            f"{folder / CONFIG}: is not that of a run; give another folder"
        )
    record = {name: value for name, value in content.items() if name != "config"}
    seeds, summaries = _read_seeds(folder, config)
    planned = _planned(config)
    return Entry("", {}, config, seeds, summaries, planned, record, (folder,))


def _is_config(config: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the fields are there that a report cannot do without."""
    if not isinstance(config, dict):
        return False
    numbers = ((config.get("seed", 0), 0), (config.get("seeds", 1), 1))
    sections = (config.get(name) for name in ("dataset", "partition", "method"))
    return (
        all(type(n) is int and n >= least for n, least in numbers)
        and type(config.get("rounds")) is int
        and all(
            isinstance(s, dict) and isinstance(s.get("name"), str) for s in sections
        )
    )


def _planned(config: Mapping[str, Any]) -> tuple[int, ...]:
    first, count = config.get("seed", 0), config.get("seeds", 1)
    return tuple(range(first, first + count))


def _read_seeds(
    folder: pathlib.Path, config: Mapping[str, Any]
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, dict[str, Any]]]:
    """Lines and summaries of every seed that has any."""
    planned = _planned(config)
    if config.get("map_seeds"):
        lines, summaries = _read_mapped(folder, planned)
    else:
        own = {planned[0]: folder}
        if len(planned) > 1:
            own = {seed: folder_of(folder, seed) for seed in planned}
        lines = {s: MetricsLog(p / METRICS).evaluated() for s, p in own.items()}
        ended = {s: p for s, p in own.items() if (p / SUMMARY).is_file()}
        summaries = {s: read_summary(p) for s, p in ended.items()}
    return {s: found for s, found in lines.items() if found}, summaries


def _read_mapped(
    folder: pathlib.Path, planned: Sequence[int]
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, dict[str, Any]]]:
    """The same of seeds that were trained in one program."""
    path = folder / METRICS
    try:
        pooled = MetricsLog(path).evaluated()
        lines = {
            s: [_of_seed(line, i) for line in pooled] for i, s in enumerate(planned)
        }
        path = folder / SUMMARY
        summaries = split_summary(read_summary(folder)) if path.is_file() else {}
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(
            f"{path}: lacks the values of its seeds (per_seed); restore the file"
        ) from None
    return lines, summaries


def _of_seed(line: Mapping[str, Any], i: int) -> dict[str, Any]:
    """A line of mapped seeds as that of the i-th."""
    shared = {name: line[name] for name in ("round", "seconds") if name in line}
    return shared | {name: column[i] for name, column in line["per_seed"].items()}


def read_plan(folder: pathlib.Path) -> dict[str, Any]:
    """A sweep's plan.json, checked as far as it is read here.

    Raises:
      ValueError: It is damaged, or of another version; names the field.
    """
    path = folder / PLAN
    plan = read_json(path)
    if not isinstance(plan, dict) or plan.get("format") != PLAN_FORMAT:
        raise ValueError(
            f"{path}: is no plan of format {PLAN_FORMAT}; give a folder that this "
            "version's `fedcmi sweep` wrote"
        )
    cells = plan.get("cells")
    baseline = plan.get("baseline")
    valid = {
        "axes": _are_texts(plan.get("axes")),
        "measure": isinstance(plan.get("measure", MEASURE), str),
        "baseline": baseline is None or isinstance(baseline, str),
        "cells": isinstance(cells, list) and cells and all(map(_is_cell, cells)),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"{path}: has no valid {name!r}; restore the file")
    return plan


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _is_cell(cell: Any) -> bool:
    return (
        isinstance(cell, dict)
        and all(isinstance(cell.get(name), str) for name in ("name", "folder"))
        and isinstance(cell.get("values"), dict)
        and _is_config(cell.get("config"))
    )


def _cells(folder: pathlib.Path, plan: Mapping[str, Any]) -> Iterator[Entry]:
    """The cells of a sweep, in the plan's order, also those not begun yet."""
    failures: Any = {}
    with contextlib.suppress(FileNotFoundError):
        failures = read_json(folder / FAILURES)
    if not isinstance(failures, dict):
        raise ValueError(f"{folder / FAILURES}: is no table; restore the file")
    for cell in plan["cells"]:
        path = folder / cell["folder"]
        if (path / CONFIG).is_file():
            entry = read_run(path)
        else:
            entry = Entry("", {}, cell["config"], {}, {}, _planned(cell["config"]))
        yield entry._replace(
            label=cell["name"],
            values=dict(cell["values"]),
            folders=(path,),
            failure=str(failures.get(cell["name"], "")),
        )


def _side_by_side(found: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[Entry, ...]]:
    """Entries labelled by what differs; those that differ in seeds only are one."""
    merged: list[Entry] = []
    for entry in found:
        for i, other in enumerate(merged):
            is_same = same_but_seeds(_named(entry), _named(other))
            if is_same and not set(entry.planned) & set(other.planned):
                merged[i] = _pooled(other, entry)
                break
        else:
            merged.append(entry)
    hints = [str(entry.folders[0]) for entry in merged]
    axes, names, values = labelled([_named(entry) for entry in merged], hints)
    return axes, tuple(
        entry._replace(label=name, values=own)
        for entry, name, own in zip(merged, names, values, strict=True)
    )


def _named(entry: Entry) -> dict[str, Any]:
    """The configuration, with the names of what a script put in its place.

    Own metrics are left out: they change no model.
    """
    parts = entry.record.get("parts")
    own = parts if isinstance(parts, dict) else {}
    changed = {k: {"name": str(x)} for k, x in own.items() if k != "metrics"}
    return entry.config | changed


def _pooled(one: Entry, other: Entry) -> Entry:
    return one._replace(
        seeds=_sorted(one.seeds | other.seeds),
        summaries=_sorted(one.summaries | other.summaries),
        planned=tuple(sorted(one.planned + other.planned)),
        folders=one.folders + other.folders,
    )


def _sorted(values: Mapping[int, Any]) -> dict[int, Any]:
    return dict(sorted(values.items()))


def last(entry: Entry, column: str) -> dict[int, float]:
    """Seed -> its last evaluated value of a column, of the seeds that have one."""
    ends = {seed: lines[-1].get(column) for seed, lines in entry.seeds.items()}
    return {seed: float(x) for seed, x in ends.items() if is_number(x)}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of a metrics line is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def columns_of(entries: Iterable[Entry]) -> list[str]:
    """Names of numbers in any line of the entries, in the order of the lines."""
    found: dict[str, None] = {}
    for entry in entries:
        for lines in entry.seeds.values():
            for line in lines:
                found |= {name: None for name, x in line.items() if is_number(x)}
    return list(found)
