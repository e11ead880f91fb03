"""Carrying a plan out: cell after cell, resumable at any moment.

A sweep's folder has plan.json, written once; cells/NAME, a run's folder each;
table.csv and table.md, written anew after every cell and determined by the finished
cells alone; failures.json, cell -> message, if some failed; timings.json, the only file
with times; with tuning, tuning.json and the trials' runs in tuning/.

A cell is locked while it is trained, so several processes may go on with one sweep: a
process passes over what another one works on.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from fedcmi_jax.experiment import environment, training
from fedcmi_jax.experiment.callbacks import Callback, CallbackError
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.resume import is_finished
from fedcmi_jax.experiment.run_folder import check_free, lock, make_folder
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.results.statistics import moments
from fedcmi_jax.sweeps import table
from fedcmi_jax.sweeps.fields import tried
from fedcmi_jax.sweeps.one_run import Trainer
from fedcmi_jax.sweeps.plan import (
    Cell,
    Plan,
    check_same,
    is_sweep,
    read_plan,
    write_plan,
)
from fedcmi_jax.sweeps.tuning import LONG, tuned

FAILURES, TIMINGS = "failures.json", "timings.json"

MINUTE, HOUR = 60, 3600
"""In seconds."""


class Outcome(NamedTuple):
    """How far a sweep came.

    Attributes:
      rows: The table.
      failures: Cell -> message.
      elsewhere: Cells that another process works on.
    """

    rows: list[table.Row]
    failures: dict[str, str]
    elsewhere: tuple[str, ...]


def begin(plan: Plan, folder: pathlib.Path) -> None:
    """Makes a sweep's folder, or finds the one of this very plan.

    Args:
      plan: The plan.
      folder: New, empty, or the folder of a sweep of the same plan.

    Raises:
      ValueError: It is something else.
    """
    if is_sweep(folder):
        check_same(folder, plan)
        return
    check_free(folder)
    make_folder(folder)
    with lock(folder, LONG):
        if is_sweep(folder):  # another process was faster
            check_same(folder, plan)
        else:
            write_plan(folder, plan)


def carry_on(
    folder: pathlib.Path,
    mesh: Mesh | None = None,
    *,
    spread: bool = False,
    callbacks: Sequence[Callback] = (),
    log: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    shared: Shared | None = None,
) -> Outcome:
    """Trains every cell that is not finished; one that fails is recorded.

    Cells that failed in an earlier process are tried again.

    Args:
      folder: The sweep's, with its plan.json.
      mesh: Devices; ``experiment.build``.
      spread: ``experiment.build``.
      callbacks: What follows the runs, one after the other.
      log: Receives a line per cell, with the time left.
      note: Receives what else the user should read.
      shared: ``experiment.build``.

    Raises:
      ValueError: The folder is no sweep, or damaged.
      training.Interrupted: SIGINT or SIGTERM; what was trained is saved.
    """
    plan = read_plan(folder)
    failed_before, elsewhere = _read(folder / FAILURES), []
    with training.stop_requests(note) as stop:
        own = (shared or Shared(), mesh, spread, callbacks, once(note), stop)
        trainer = Trainer(*own)
        for i, cell in enumerate(plan.cells, 1):
            where = folder / cell.folder
            if is_finished(where, cell.config):
                continue
            if cell.name in _read(folder / FAILURES).keys() - failed_before.keys():
                continue  # another process has just tried
            where.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(lock(where))
                except ValueError:
                    elsewhere.append(cell.name)
                    continue
                message = _train(trainer, plan, folder, cell, note)
            found = _write_tables(plan, folder)
            row = next(row for row in found if row.cell == cell.name)
            line = f"cell {i} of {len(plan.cells)}, {_told(plan, row, message)}"
            left = _left(plan, folder, found)
            log(f"{line}; about {left} left" if left else line)
            if stop:
                raise training.Interrupted(stop[0], cell.config.rounds)
    found = _write_tables(plan, folder)
    return Outcome(found, _read(folder / FAILURES), tuple(elsewhere))


def once(note: Callable[[str], None]) -> Callable[[str], None]:
    """Passes every text on only once: runs that are alike say the same.

    Example:
      >>> say = once(print)
      >>> say("note"), say("note")
      note
      (None, None)
    """
    return functools.cache(note)


def _train(
    trainer: Trainer,
    plan: Plan,
    folder: pathlib.Path,
    cell: Cell,
    note: Callable[[str], None],
) -> str | None:
    """Trains a cell, its tuning first; the message if it failed, which is recorded."""
    begun, message = time.perf_counter(), None

    def told(text: str) -> None:
        note(f"{cell.name}, {text}")

    try:
        config = tuned(folder, cell, plan.tune_seeds, trainer.run, told)
        trainer.run(config, folder / cell.folder)
    except (OSError, training.Interrupted):
        raise
    except Exception as error:  # whatever one cell cannot do, the others go on
        named = isinstance(error, ValueError | training.DivergedError | CallbackError)
        message = str(error) if named else f"{type(error).__name__}: {error}"
        message = " ".join(message.split())
    finally:
        _record_time(folder, cell, time.perf_counter() - begun)
    with lock(folder, LONG):
        failures = {k: v for k, v in _read(folder / FAILURES).items() if k != cell.name}
        if message is not None:
            failures[cell.name] = message
        _write_failures(folder, failures)
    return message


def _write_failures(folder: pathlib.Path, failures: dict[str, str]) -> None:
    if failures:
        write_json(folder / FAILURES, failures)
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def _write_tables(plan: Plan, folder: pathlib.Path) -> list[table.Row]:
    """Writes the tables; a failure of a cell that has finished since is dropped."""
    with lock(folder, LONG):
        failures = _read(folder / FAILURES)
        found = table.rows(plan, folder, list(failures))
        failed = [row.cell for row in found if row.state == "failed"]
        if len(failed) < len(failures):
            _write_failures(folder, {name: failures[name] for name in failed})
        table.write(plan, folder, found)
    return found


def _record_time(folder: pathlib.Path, cell: Cell, seconds: float) -> None:
    """Adds to a cell's seconds: it may be gone on with several times."""
    with lock(folder, LONG):
        times = _read(folder / TIMINGS) or {
            "hardware": environment.hardware(),
            "versions": training.versions(),
            "seconds": {},
        }
        before = times["seconds"].get(cell.name, 0.0)
        times["seconds"][cell.name] = before + seconds
        write_json(folder / TIMINGS, times)


def _told(plan: Plan, row: table.Row, message: str | None) -> str:
    """A cell's line of progress."""
    if message is not None:
        return f"{row.cell}: failed: {message}"
    values = row.metrics.get(plan.measure)
    if not values:
        return f"{row.cell}: finished, without {plan.measure}"
    return f"{row.cell}: {plan.measure} {table.spread(*moments(values))}"


def _left(plan: Plan, folder: pathlib.Path, found: Sequence[table.Row]) -> str:
    """The time that waiting cells will take at the pace so far; "" if none wait."""
    waiting = {row.cell for row in found if row.state == "waiting"}
    seconds = _read(folder / TIMINGS)["seconds"]
    done = {cell.name: rounds_of(plan, cell) for cell in plan.cells}
    known = [name for name in done if name in seconds and name not in waiting]
    if not waiting or not known:
        return ""
    pace = sum(seconds[name] for name in known) / sum(done[name] for name in known)
    return duration(pace * sum(done[name] for name in waiting))


def unfinished(plan: Plan, folder: pathlib.Path) -> Plan:
    """The plan with the cells only that are not finished in a sweep's folder."""
    cells = [c for c in plan.cells if not is_finished(folder / c.folder, c.config)]
    return plan._replace(cells=tuple(cells))


def rounds_of(plan: Plan, cell: Cell) -> int:
    """Rounds of a cell over all seeds, those of its tuning included."""
    trials = sum(1 for point in tried(cell.tune) if point)
    return cell.config.rounds * (cell.config.seeds + trials * plan.tune_seeds)


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    Example:
      >>> duration(8.4), duration(100), duration(5000)
      ('8 s', '2 min', '1.4 h')
    """
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A file of the sweep; empty where there is none.

    Raises:
      ValueError: It is damaged.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:  # or another process has just removed it
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is no table of cells; remove it")
    return found
