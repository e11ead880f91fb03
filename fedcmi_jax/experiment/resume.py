"""Going on with a run: its newest good checkpoint, and a metrics log to match.

No file of the user is ever erased: a log that is not the run's is moved aside.
"""

import os
import pathlib
from collections.abc import Callable

import jax

from fedcmi_jax.experiment import checkpoint, hosts
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.run_folder import BEST, CHECKPOINTS, METRICS, SUMMARY
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


def evaluations(config: Config, round: int) -> list[int]:
    """The rounds up to this one that are evaluated."""
    numbers = range(1, round + 1)
    return [r for r in numbers if is_due(config.eval_every, r, config.rounds)]


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
      ValueError: The checkpoints are of another configuration, or none can be used.
    """
    init = jax.jit(experiment.algorithm.init)
    checkpoints = folder / CHECKPOINTS
    found = bool(checkpoint.rounds(checkpoints)) if hosts.is_main() else False
    if not hosts.any_process(found):
        if hosts.is_main():
            _note_any(note, start_log(log, experiment.config))
        return init(experiment.key, experiment.federation)
    if experiment.mesh is None:
        like = jax.eval_shape(init, experiment.key, experiment.federation)
        restored = checkpoint.restore(checkpoints, like)
    else:
        # A checkpoint holds whole arrays, whatever devices they came from.
        n = experiment.federation.num_clients
        state = own_rows(hosts.fetch(init(experiment.key, experiment.federation)), n)
        restored = checkpoint.Restored(state, 0, ())
        if hosts.is_main():
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            restored = checkpoint.restore(checkpoints, like)
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
        is_ours = evaluated == evaluations(config, first)[: len(evaluated)]
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


def mend_log(folder: pathlib.Path, config: Config) -> str:
    """Rebuilds the log of a finished run if it is not what its last checkpoint holds.

    Where that checkpoint is gone or damaged, the log is compared with summary.json.

    Args:
      folder: A finished run's folder.
      config: Its configuration.

    Returns:
      A line for the user if the log was rebuilt, else "".

    Raises:
      ValueError: The log is not that of the run, and no checkpoint holds a copy.
    """
    summary = read_json(folder / SUMMARY)
    log, round = MetricsLog(folder / METRICS), summary.get("rounds", config.rounds)
    saved = checkpoint.newest_log(folder / CHECKPOINTS)
    if saved is not None and saved[0] == round:
        return log.restore(*saved)
    why = f"no usable checkpoint of round {round} holds a copy"
    _check_complete(log, config, round, why)
    evaluated = [r for r in log.read() if "acc" in r]
    if evaluated[-1:] != [summary.get("final")]:
        raise _unlike(log, f"does not end as {folder / SUMMARY} says", why)
    return ""


def _check_complete(log: MetricsLog, config: Config, round: int, why: str) -> None:
    """Raises unless the log has a line of each round evaluated up to this one.

    ``why`` is the reason that there is no copy of it.
    """
    try:
        found = [r["round"] for r in log.read() if "acc" in r and r["round"] <= round]
    except ValueError:
        raise _unlike(log, "has a damaged line", why) from None
    if found != (expected := evaluations(config, round)):
        odd = min(set(found) ^ set(expected))
        which = "no" if odd in expected else "an odd"
        raise _unlike(log, f"has {which} line of round {odd}", why)


def _unlike(log: MetricsLog, what: str, why: str) -> ValueError:
    """The refusal of a log that is not the run's and cannot be rebuilt."""
    return ValueError(
        f"{log.path}: {what}, and {why}; put the file back or start "
        "the run again in a new folder"
    )
