"""Going on with a run: its newest good checkpoint, and a metrics log to match.

No file of the user is ever erased: a log that is not the run's is moved aside.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from fedcmi_jax.experiment import checkpoint, hosts
from fedcmi_jax.experiment.config import Config, to_dict
from fedcmi_jax.experiment.config_file import located
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.experiment.initial import initial_state
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
)
from fedcmi_jax.experiment.summary_file import REMEDY, read_summary
from fedcmi_jax.placement import own_rows, place_state
from fedcmi_jax.types import FederationState


def check_usable(folder: pathlib.Path) -> None:
    """Refuses a run folder in which training would fail; changes nothing.

    Args:
      folder: A run's folder.

    Raises:
      ValueError: A file stands where a folder must be or the reverse, or this user may
        not write.

    Example:
      >>> check_usable(pathlib.Path("no/such/folder"))
    """
    log, *others = paths = [folder / n for n in (METRICS, CHECKPOINTS, BEST)]
    for path in others:
        if os.path.lexists(path) and not path.is_dir():
            raise ValueError(f"{path}: is no folder; move it away to go on")
    if os.path.lexists(log) and not log.is_file():
        raise ValueError(f"{log}: is no file; move it away to go on")
    for path in (folder, *paths):
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path}: cannot be written; change its permissions")


def is_due(every: int, round: int, rounds: int) -> bool:
    """Whether something done every so many rounds, and at the last one, is due.

    Example:
      >>> [r for r in range(1, 9) if is_due(3, r, 8)]
      [3, 6, 8]
    """
    return round % every == 0 or round == rounds


def evaluations(every: int, round: int, last: int) -> list[int]:
    """The rounds up to this one that are evaluated, of a run that ends with ``last``.

    Example:
      >>> evaluations(3, 7, 7), evaluations(3, 7, 8)
      ([3, 6, 7], [3, 6])
    """
    return [r for r in range(1, round + 1) if is_due(every, r, last)]


FREE = ("checkpoint_every", "imports", "output", "preset", "rounds_per_call")
"""Fields of a configuration that may change while a run is interrupted: they say where
a run is kept, not what it computes.
"""


def check_unchanged(
    folder: pathlib.Path, config: Config, saved: dict[str, Any]
) -> None:
    """Refuses a configuration that is not the one its checkpoints were trained with.

    Args:
      folder: The run's folder, for the message.
      config: What its config.json says now.
      saved: ``to_dict`` of what it said when a checkpoint was saved.

    Raises:
      ValueError: A field differs that fixes results; names it. ``rounds`` may grow.
    """
    now = leaves(to_dict(located(config)))
    before = leaves(saved)
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) == now.get(name) or name.split(".")[0] in FREE:
            continue
        if name == "clients" and now.get(name) == 0:  # as many as the partition gave
            continue
        calibrated = before.get("privacy.target_epsilon") is not None
        if name == "rounds" and _grows(before.get(name), now[name]) and not calibrated:
            continue
        but = "; it may only grow" if name == "rounds" else ""
        if name == "rounds" and calibrated:
            but = ", for which privacy.target_epsilon set the noise"
        raise ValueError(
            f"{folder / CONFIG}: {name} is {now.get(name)}, but the run was trained "
            f"with {before.get(name)}{but}; put it back, or start a new run"
        )


def _grows(before: Any, now: int) -> bool:
    return isinstance(before, int) and now > before


def leaves(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Dotted name -> value of nested tables.

    Example:
      >>> leaves({"rounds": 3, "method": {"mu": None}})
      {'rounds': 3, 'method.mu': None}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def start(
    experiment: Experiment,
    folder: pathlib.Path,
    log: MetricsLog,
    note: Callable[[str], None],
) -> FederationState:
    """A fresh state, or that of the newest good checkpoint; the log is made to match.

    Args:
      experiment: The run's.
      folder: Its folder.
      log: Its metrics log.
      note: Receives what the user should read: damage, and what was done about it.

    Raises:
      ValueError: The checkpoints are of another configuration, or none can be used; or
        the run starts over and ``init_from`` has changed.
    """
    init = jax.jit(experiment.algorithm.init)
    check = functools.partial(check_unchanged, folder, experiment.config)
    checkpoints = folder / CHECKPOINTS
    found = bool(checkpoint.rounds(checkpoints)) if hosts.is_main() else False
    if not hosts.any_process(found):
        state = initial_state(experiment, folder if hosts.is_main() else None)
        if hosts.is_main():
            _note_any(note, start_log(log, experiment.config))
        return state
    if experiment.mesh is None:
        like = jax.eval_shape(init, experiment.key, experiment.federation)
        restored = checkpoint.restore(checkpoints, like, check=check)
    else:
        # A checkpoint holds whole arrays, whatever devices they came from.
        n = experiment.federation.num_clients
        state = own_rows(hosts.fetch(init(experiment.key, experiment.federation)), n)
        restored = checkpoint.Restored(state, 0, ())
        if hosts.is_main():
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            restored = checkpoint.restore(checkpoints, like, check=check)
        place = jax.jit(lambda s: place_state(s, experiment.mesh, n))
        restored = restored._replace(state=place(hosts.broadcast(restored.state)))
    for line in restored.skipped:
        note(line)
    if hosts.is_main():
        _note_any(note, log.restore(restored.round, restored.log))
    return restored.state


def _note_any(note: Callable[[str], None], line: str) -> None:
    if line:
        note(line)


def start_log(log: MetricsLog, config: Config) -> str:
    """Empties the log of a run without checkpoints.

    What a process killed before its first checkpoint leaves is dropped; what it cannot
    have left is moved aside.

    Returns:
      A line for the user if something was moved, else "".
    """
    first = min(config.checkpoint_every, config.rounds)
    try:
        records = log.read()
        evaluated = [r["round"] for r in records if "acc" in r]
        expected = evaluations(config.eval_every, first, config.rounds)
        is_ours = evaluated == expected[: len(evaluated)]
        is_ours = is_ours and (not records or records[-1]["round"] <= first)
    except ValueError:
        is_ours = False
    if is_ours:
        log.truncate_after(0)
        return ""
    return (
        f"{log.path} is none of a run without checkpoints: the run starts over; what "
        f"was there is {log.set_aside()}"
    )


def is_finished(folder: pathlib.Path, config: Config) -> bool:
    """Whether nothing of a run is left to train; its ``rounds`` may have grown since.

    Example:
      >>> is_finished(pathlib.Path("no/such/folder"), Config())
      False
    """
    if not (folder / SUMMARY).exists():
        return False
    summary = read_summary(folder)
    done = summary.get("rounds", config.rounds)
    return bool(summary.get("stopped_early")) or done >= config.rounds


def mend_log(folder: pathlib.Path, config: Config) -> str:
    """Rebuilds the log of a finished run if it is not what its last checkpoint holds.

    Where that checkpoint is gone or damaged, the log must be whole. Either way it must
    end as summary.json says.

    Args:
      folder: A finished run's folder.
      config: Its configuration.

    Returns:
      A line for the user if the log was rebuilt or the last model is lost, else "".

    Raises:
      ValueError: The log is not that of the run, and no checkpoint holds a copy; or the
        configuration or the summary is not the run's.
    """
    summary = read_summary(folder)
    log, round = MetricsLog(folder / METRICS), summary.get("rounds", config.rounds)
    check = functools.partial(check_unchanged, folder, config)
    saved = checkpoint.newest_log(folder / CHECKPOINTS, check)
    if saved is not None and saved[0] == round:
        note = log.restore(*saved)
        _check_summary(folder, summary, log)
        return note
    why = f"no usable checkpoint of round {round} holds a copy"
    _check_complete(log, config, round, why)
    evaluated = log.evaluated()
    if evaluated[-1:] != [summary.get("final")]:
        raise _unlike(log, f"does not end as {folder / SUMMARY} says", why)
    _check_summary(folder, summary, log)
    return (
        f"{folder / CHECKPOINTS} has lost round {round}, the last one; to have its "
        f"model again, remove {folder / SUMMARY} and resume"
    )


def _check_summary(
    folder: pathlib.Path, summary: dict[str, Any], log: MetricsLog
) -> None:
    """Raises unless the lines in the summary are those of the log."""
    lines = {r["round"]: r for r in log.read() if "acc" in r}
    for name in ("final", "best"):
        line = summary.get(name)
        if line is not None and lines.get(line.get("round")) != line:
            raise ValueError(
                f"{folder / SUMMARY}: {name!r} is no line of {log.path}; {REMEDY}"
            )


def _check_complete(log: MetricsLog, config: Config, round: int, why: str) -> None:
    """Raises unless the log has a line of each round evaluated up to this one.

    ``why`` is the reason that there is no copy of it.
    """
    try:
        found = [r["round"] for r in log.read() if "acc" in r and r["round"] <= round]
    except ValueError:
        raise _unlike(log, "has a damaged line", why) from None
    if found != (expected := evaluations(config.eval_every, round, round)):
        odd = min(set(found) ^ set(expected))
        which = "no" if odd in expected else "an odd"
        raise _unlike(log, f"has {which} line of round {odd}", why)


def _unlike(log: MetricsLog, what: str, why: str) -> ValueError:
    """The refusal of a log that is not the run's and cannot be rebuilt."""
    return ValueError(
        f"{log.path}: {what}, and {why}; put the file back or start "
        "the run again in a new folder"
    )
