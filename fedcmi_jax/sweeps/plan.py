"""What a sweep is to do: its cells, each a run's configuration; plan.json."""

import pathlib
from typing import Any, NamedTuple

from fedcmi_jax.experiment.config import Config, as_json, from_dict, to_dict
from fedcmi_jax.experiment.config_file import located
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.run_list import PLAN

FORMAT = 1
"""Of plan.json."""

METHOD = "method"
"""The axis whose values are the variants."""


class Cell(NamedTuple):
    """One run of a sweep: a configuration, with all seeds.

    Attributes:
      name: Tells it from the others; also names its folder.
      values: Axis -> its value; an axis of other blocks only is not there.
      config: The configuration, before tuning.
      tune: Dotted field -> the values that tuning tries; empty: nothing is tuned.
    """

    name: str
    values: dict[str, Any]
    config: Config
    tune: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012 (nobody writes into it)

    @property
    def folder(self) -> str:
        """Where it is in the sweep's folder."""
        return f"cells/{self.name}"


class Plan(NamedTuple):
    """Everything that fixes a sweep's results.

    Attributes:
      source: Text of the file or the command that it was made from.
      measure: Column of the metrics that is compared.
      baseline: The variant that the others are compared with; None: there is none.
      axes: Names of what differs between cells, the slowest first.
      cells: The cells, in the order in which they are trained.
      tune_seeds: Seeds of every tuning trial.
    """

    source: str
    measure: str
    baseline: str | None
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    tune_seeds: int = 1

    @property
    def seeds(self) -> list[int]:
        """The seeds, the same in every cell."""
        config = self.cells[0].config
        return list(range(config.seed, config.seed + config.seeds))


def described(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values, with absolute paths."""
    found = {
        "format": FORMAT,
        "source": plan.source,
        "measure": plan.measure,
        "baseline": plan.baseline,
        "axes": list(plan.axes),
        "seeds": plan.seeds,
        "tune_seeds": plan.tune_seeds,
        "cells": [
            {
                "name": cell.name,
                "values": cell.values,
                "folder": cell.folder,
                "tune": {field: list(values) for field, values in cell.tune.items()},
                "config": to_dict(located(cell.config)),
            }
            for cell in plan.cells
        ],
    }
    return as_json(found)


def is_sweep(folder: str | pathlib.Path) -> bool:
    """Whether a folder is that of a sweep.

    Example:
      >>> is_sweep("no/such/folder")
      False
    """
    return (pathlib.Path(folder) / PLAN).is_file()


def write_plan(folder: pathlib.Path, plan: Plan) -> None:
    """Writes plan.json."""
    write_json(folder / PLAN, described(plan))


def read_plan(folder: pathlib.Path) -> Plan:
    """Reads plan.json.

    Raises:
      ValueError: It is damaged, or of another version's making; names the file.
    """
    path = folder / PLAN
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{path}: is no plan of format {FORMAT}; restore the file")
    try:
        cells = tuple(
            Cell(
                cell["name"],
                dict(cell["values"]),
                from_dict(cell["config"]),
                {field: tuple(tried) for field, tried in cell["tune"].items()},
            )
            for cell in values["cells"]
        )
        axes, tune_seeds = tuple(values["axes"]), int(values["tune_seeds"])
        given = (values["source"], values["measure"], values["baseline"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {what}; restore the file") from None
    if not cells:
        raise ValueError(f"{path}: has no cells; restore the file")
    return Plan(*given, axes, cells, tune_seeds)


def check_same(folder: pathlib.Path, plan: Plan) -> None:
    """Refuses a folder of another sweep.

    Raises:
      ValueError: Its plan differs in more than the text that it was made from.
    """
    before, now = (described(p) | {"source": ""} for p in (read_plan(folder), plan))
    if before == now:
        return
    what = next(name for name in now if before.get(name) != now[name])
    if what == "cells":
        names = {c["name"]: c for c in before[what]}
        odd = [c["name"] for c in now[what] if names.get(c["name"]) != c]
        what = f"cell {odd[0]!r}" if odd else "the cells"
    raise ValueError(
        f"{folder} is a sweep of another plan ({what} differs); go on with it by "
        f"`fedcmi sweep {folder}`, or choose another --output"
    )
