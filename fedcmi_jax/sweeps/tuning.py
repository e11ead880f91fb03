"""Tuning a cell: every trial on the validation split, the best one is the cell's.

A trial is a run with some values in the place of the cell's and ``tune_seeds`` seeds.
Its figure is the validation accuracy at the last round, the mean over those seeds: the
round at which tables give test accuracies. The highest wins, of equal ones the first.
Test samples choose nothing. tuning.json records all figures.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from fedcmi_jax.experiment.config import Config, from_dict, to_dict
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.run_folder import lock
from fedcmi_jax.experiment.run_list import TUNING
from fedcmi_jax.experiment.summary_file import read_summary
from fedcmi_jax.experiment.training import DivergedError
from fedcmi_jax.sweeps.fields import changed, trial_name, trial_of, tried
from fedcmi_jax.sweeps.plan import Cell

RECORD = "tuning.json"
"""In a sweep's folder: cell -> its trials and the chosen values."""

CHOSEN_BY = "val_acc"
"""Column that decides."""

LONG = 60.0
"""Seconds to wait for another process that writes one of the sweep's own files."""


def tuned(
    folder: pathlib.Path,
    cell: Cell,
    tune_seeds: int,
    train: Callable[[Config, pathlib.Path], None],
    note: Callable[[str], None],
) -> Config:
    """The cell's configuration with the values that tuning chose, or chooses now.

    Args:
      folder: The sweep's.
      cell: The cell.
      tune_seeds: Seeds of every trial.
      train: ``Trainer.run``; finished trials are not trained again.
      note: Receives each trial's figure.

    Raises:
      DivergedError: Every trial did.
    """
    values = to_dict(cell.config)
    if not cell.tune:
        return cell.config
    record = recorded(folder).get(cell.name)
    if record is None:
        record = {"by": CHOSEN_BY, "seeds": tune_seeds, "trials": []}
        for point in tried(cell.tune):
            config = from_dict(trial_of(values, point, tune_seeds))
            where = f"{TUNING}/{cell.name}/{trial_name(point)}"
            trial: dict[str, Any] = {"values": point, "folder": where}
            try:
                train(config, folder / where)
                final = read_summary(folder / where)["final"]
                trial[CHOSEN_BY] = final.get(CHOSEN_BY)
            except DivergedError as error:
                trial |= {CHOSEN_BY: None, "failed": str(error)}
            record["trials"].append(trial)
            note(f"{trial_name(point)}: {CHOSEN_BY} {trial[CHOSEN_BY]}")
        record["chosen"] = best_of(record["trials"])
        with lock(folder, LONG):
            write_json(folder / RECORD, recorded(folder) | {cell.name: record})
    return from_dict(changed(values, record["chosen"]))


def best_of(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of the first trial with the highest figure.

    Raises:
      DivergedError: No trial has one.

    Example:
      >>> rates = ((0.1, None), (0.2, 0.5), (0.3, 0.5))
      >>> best_of([{"values": {"rate": r}, "val_acc": acc} for r, acc in rates])
      {'rate': 0.2}
    """
    known = [trial for trial in trials if trial[CHOSEN_BY] is not None]
    if not known:
        raise DivergedError(f"all {len(trials)} trials of the tuning diverged")
    return max(known, key=lambda trial: trial[CHOSEN_BY])["values"]


def recorded(folder: pathlib.Path) -> dict[str, Any]:
    """Cell -> what tuning.json says of it; empty without the file.

    Raises:
      ValueError: It is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    found = read_json(path)
    is_sound = isinstance(found, dict) and all(
        isinstance(record, dict) and isinstance(record.get("chosen"), dict)
        for record in found.values()
    )
    if not is_sound:
        raise ValueError(f"{path}: is no record of tuning; remove it to tune again")
    return found
