"""Runs below a folder, and how each stands; nothing in it is changed.

A folder that is no run of ours, or a damaged one, is a row like any other.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.progress import modality_accuracies
from fedcmi_jax.experiment.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    is_in_use,
)
from fedcmi_jax.experiment.run_name import method_of

SWEEP = "sweep.json"
"""What ``fedcmi sweep clients`` writes."""

PLAN = "plan.json"
"""What a sweep over cells begins with; its runs are below it."""

TUNING = "tuning"
"""Folder of a sweep with the runs that tuning has tried."""

INSIDE = (CHECKPOINTS, BEST, "tensorboard", "wandb")
"""Folders of a run in which no other is looked for; those of its seeds, too."""


class Row(NamedTuple):
    """What a list says of a run; "" or None where it is unknown.

    Attributes:
      folder: Its folder.
      preset: What its configuration started from.
      method: With the options that are not its defaults.
      seeds: The seeds: 3, or 0-4.
      rounds: Done / of the run.
      acc: Fused test accuracy at the last evaluated round, in [0, 1].
      weakest: The lowest accuracy of one modality alone there.
      state: finished, interrupted, running..., or what cannot be read.
    """

    folder: Path
    preset: str = ""
    method: str = ""
    seeds: str = ""
    rounds: str = ""
    acc: float | None = None
    weakest: float | None = None
    state: str = ""


def find_runs(root: Path) -> list[Row]:
    """The runs and sweeps in a folder and below it, by name.

    Args:
      root: A run, or a folder of some, at any depth.

    Returns:
      A row for each. Several seeds are one run. Links are not followed.

    Example:
      >>> find_runs(Path("no/such/folder"))
      []
    """
    return [_row(folder, reader) for folder, reader in _folders(root)]


def _folders(root: Path) -> Iterator[tuple[Path, Any]]:
    """Folders of runs, and what reads each."""
    if not root.exists():
        return
    closed: list[OSError] = []
    for path, names, files in os.walk(root, onerror=closed.append):
        folder = Path(path)
        if CONFIG in files:
            yield folder, _read_run
            names[:] = [n for n in names if not n.startswith("seed-")]
            names[:] = [n for n in names if n not in INSIDE]
        elif SWEEP in files:
            yield folder, _read_sweep
        elif PLAN in files:
            yield folder, _read_plan
            names[:] = [n for n in names if n != TUNING]
        names[:] = sorted(n for n in names if not n.startswith("."))
    for error in closed:
        yield Path(str(error.filename)), _refuse(error)


def _refuse(error: OSError) -> Any:
    def reader(folder: Path) -> Row:
        raise error

    return reader


def _row(folder: Path, reader: Any) -> Row:
    try:
        return reader(folder)
    except Exception as error:  # whatever is in a stranger's file, the list goes on
        what = error.strerror if isinstance(error, OSError) else str(error)
        what = f"lacks {what}" if isinstance(error, KeyError) else what
        kind = "unreadable" if isinstance(error, OSError | _Foreign) else "damaged"
        text = " ".join(f"{kind}: {what or type(error).__name__}".split())
        return Row(folder, state=text)


class _Foreign(ValueError):
    """A config.json that is not ours."""


def _read_run(folder: Path) -> Row:
    content = read_json(folder / CONFIG)
    values = content.get("config") if isinstance(content, dict) else None
    if not isinstance(values, dict) or not {"method", "rounds"} <= values.keys():
        raise _Foreign("its config.json is not that of a run")
    parts = dict(content.get("parts") or {})
    lines = MetricsLog(folder / METRICS).evaluated()
    rounds, done = int(values["rounds"]), lines[-1]["round"] if lines else 0
    last = lines[-1] if lines else {}
    summary = folder / SUMMARY
    if summary.exists():
        # Seeds that stop early do not all have the last line.
        last = read_json(summary)["final"]
    alone = modality_accuracies(last).values()
    first, count = int(values.get("seed", 0)), int(values.get("seeds", 1))
    return Row(
        folder,
        "(script)" if "dataset" in parts else str(values.get("preset") or "-"),
        str(parts.get("method") or method_of(values["method"])),
        str(first) if count == 1 else f"{first}-{first + count - 1}",
        f"{done}/{rounds}",
        None if last.get("acc") is None else float(last["acc"]),
        min(map(float, alone), default=None),
        _state(folder, values, summary.exists(), count),
    )


def _state(folder: Path, values: dict[str, Any], is_done: bool, seeds: int) -> str:
    """How a run stands."""
    if is_done:
        early = read_json(folder / SUMMARY).get("stopped_early")
        parts = ["stopped early" if early else "finished"]
    else:
        parts = ["running" if is_in_use(folder) else "interrupted"]
        if seeds > 1 and not values.get("map_seeds"):
            done = len(list(folder.glob(f"seed-*/{SUMMARY}")))
            parts.append(f"{done} of {seeds} seeds done")
    if values.get("fixed_partition") or values.get("map_seeds"):
        parts.append("partition of seed 0")
    return ", ".join(parts)


def _read_sweep(folder: Path) -> Row:
    rows = read_json(folder / SWEEP)["rows"]
    counts = ", ".join(f"{row['clients']:,}" for row in rows)
    last = rows[-1]
    return Row(
        folder,
        rounds=f"{last['rounds']}/{last['rounds']}",
        acc=float(last["acc"]),
        state=f"sweep over {counts} clients",
    )


def _read_plan(folder: Path) -> Row:
    plan = read_json(folder / PLAN)
    cells, seeds = [folder / cell["folder"] for cell in plan["cells"]], plan["seeds"]
    done = sum((cell / SUMMARY).exists() for cell in cells)
    is_running = any(map(is_in_use, cells))
    return Row(
        folder,
        seeds=str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}",
        state=f"sweep, {done} of {len(cells)} cells finished"
        + (", running" if is_running else ""),
    )
