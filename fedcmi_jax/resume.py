"""What a run folder must hold for training to go on; nothing in it is ever erased."""

import os
import pathlib

from fedcmi_jax import checkpoint
from fedcmi_jax.config import Config
from fedcmi_jax.run_folder import BEST, CHECKPOINTS, METRICS, MetricsLog


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


def restore_log(log: MetricsLog, config: Config, restored: checkpoint.Restored) -> str:
    """Makes the log what it was when the restored checkpoint was saved.

    Returns:
      A line for the user if it had to be rebuilt, else "".

    Raises:
      ValueError: It lacks lines, and the checkpoint (of version 0.1) holds no copy.
    """
    if restored.log is not None:
        return log.restore(restored.round, restored.log)
    found = [r["round"] for r in log.read() if "acc" in r]
    found = [r for r in found if r <= restored.round]
    if found != (expected := evaluations(config, restored.round)):
        odd = min(set(found) ^ set(expected))
        raise ValueError(
            f"{log.path}: has {'no' if odd in expected else 'an odd'} line of round "
            f"{odd}, and checkpoint {restored.round} holds no copy; put the file back "
            "or start the run again in a new folder"
        )
    log.truncate_after(restored.round)
    return ""


def mend_log(folder: pathlib.Path) -> str:
    """Rebuilds the log of a finished run if it is not what its last checkpoint holds.

    Args:
      folder: A run's folder.

    Returns:
      A line for the user if the log was rebuilt, else "".

    Example:
      >>> mend_log(pathlib.Path("no/such/folder"))
      ''
    """
    saved = checkpoint.newest_log(folder / CHECKPOINTS)
    return "" if saved is None else MetricsLog(folder / METRICS).restore(*saved)
