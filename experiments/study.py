"""What the studies share: one protocol for seeds, tables, and files of results.

Protocol: a seed changes partition, modality allocation, validation split, initial
weights, cohorts and batches; all methods of a study see the same ones. Tables give
test accuracies at the last round in percent, mean +- sample standard deviation over
the seeds, paired differences to the first method, and the round at which a method's
mean validation accuracy is first within ``FLAT`` of its best: a baseline that gets
there near the last round was still learning.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedcmi_jax import backend
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import traffic
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.history import histories
from fedcmi_jax.experiment.initial import initial_state
from fedcmi_jax.experiment.loop import calls, records
from fedcmi_jax.experiment.seeds import alone
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.experiment.training import versions

RESULTS = pathlib.Path(__file__).parent / "results"

FLAT = 0.005
"""Half a point of accuracy: less than the seeds' deviation in most tables."""

HEADS_ONLY: dict[str, Any] = {"name": "fedcmi", "lam": 0.0}
"""FedCMI without distillation: the baseline that stands beside it everywhere."""

History = list[dict[str, float]]
"""Metrics of one seed at every evaluated round."""


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, later ones winning; a section that changes its name starts anew."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and "name" not in value:
                result[key] = result.get(key, {}) | value
            else:
                result[key] = value
    return result


def cell(values: Sequence[float], scale: float = 100.0) -> str:
    """Mean +- sample standard deviation, in percent unless scaled otherwise."""
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{scale * mean:.1f} ± {scale * deviation:.1f}"


def paired(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Mean +- sample standard deviation of the differences seed by seed, in points."""
    gaps = [a - b for a, b in zip(values, baseline, strict=True)]
    return f"{100 * statistics.mean(gaps):+.1f} ± {100 * statistics.stdev(gaps):.1f}"


def last(histories: list[History], name: str) -> list[float]:
    """A metric at the last round, seed by seed."""
    return [history[-1][name] for history in histories]


def flat_round(histories: list[History], name: str = "val_acc") -> int:
    """First evaluated round whose mean over the seeds is within FLAT of the best."""
    means = [
        statistics.mean(h[i][name] for h in histories)
        for i in range(_points(histories))
    ]
    first = next(i for i, mean in enumerate(means) if mean >= max(means) - FLAT)
    return int(histories[0][first]["round"])


def _points(histories: list[History]) -> int:
    return len(histories[0])


def compare(
    base: dict[str, Any],
    methods: dict[str, dict[str, Any]],
    columns: Sequence[str],
    *,
    num_seeds: int,
    every: int,
    print_row: Callable[..., None],
    label: Sequence[str] = (),
) -> dict[str, list[History]]:
    """One row a method: its columns, its difference to the first, its flat round.

    Args:
      base: Configuration as nested dicts; needs a validation split.
      methods: Name -> what the method changes: its section, or several sections.
      columns: Metrics at the last round; the first one is compared in pairs.
      num_seeds: Seeds 0, 1, ...
      every: Rounds between evaluations.
      print_row: Receives the cells of a row.
      label: Cells in front of every row.

    Returns:
      Method -> histories of its seeds.
    """
    runs: dict[str, list[History]] = {}
    for name, change in methods.items():
        change = {"method": change} if "name" in change else change
        config = configs.from_dict(merged(base, change))
        runs[name] = histories(config, range(num_seeds), every)
        first = next(iter(runs.values()))
        gap = paired(last(runs[name], columns[0]), last(first, columns[0]))
        print_row(
            *label,
            name,
            *(cell(last(runs[name], column)) for column in columns),
            "-" if runs[name] is first else gap,
            str(flat_round(runs[name])),
        )
        jax.clear_caches()
    return runs


def lines(config: configs.Config, num_seeds: int, every: int) -> list[History]:
    """The evaluated metrics lines of seeds 0, 1, ..., with what training reports.

    ``sent`` are the bytes that all clients sent since the line before.
    """
    found, shared = [], Shared()
    for seed in range(num_seeds):
        one = dataclasses.replace(
            alone(config, seed), eval_every=every, rounds_per_call=None
        )
        experiment = build(one, shared=shared)
        state, history = initial_state(experiment), []
        for call in calls(experiment, state):
            for record in records(experiment, call):
                count = call.round - call.before
                cohorts = np.concatenate(call.infos.cohort[:count])
                cohorts = cohorts[cohorts < experiment.federation.num_clients]
                _, sent = traffic.of_cohort(experiment.traffic(), cohorts)
                history.append(record | {"sent": sent})
        found.append(history)
    jax.clear_caches()
    return found


class Study:
    """Prints a table as it comes and writes it with everything behind it."""

    def __init__(self, name: str, command: str):
        """Sets the process up; nothing has run in it before."""
        backend.guard()
        self._programs = tempfile.TemporaryDirectory()
        jax.config.update("jax_compilation_cache_dir", self._programs.name)
        self.name, self.command = name, command
        self.rows: list[tuple[str, ...]] = []
        self.begun = time.perf_counter()

    def row(self, *cells: str) -> None:
        """Prints one row; the first is the header."""
        print("| " + " | ".join(cells) + " |", flush=True)
        if not self.rows:
            print("|" + "---|" * len(cells))
        self.rows.append(cells)

    def write(self, base: dict[str, Any], runs: dict[str, list[History]]) -> None:
        """Writes the table, every seed's last metrics and the validation curves."""
        RESULTS.mkdir(exist_ok=True)
        curves = {
            name: [[(h["round"], h["val_acc"]) for h in seed] for seed in histories]
            for name, histories in runs.items()
            if "val_acc" in histories[0][0]
        }
        record = {
            "command": self.command,
            "base": base,
            "seconds": round(time.perf_counter() - self.begun),
            "versions": versions(),
            "table": self.rows,
            "final": {k: [seed[-1] for seed in v] for k, v in runs.items()},
            "validation": curves,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {path}")
