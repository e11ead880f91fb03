"""A run's folder: what is in it, where a new one goes, and the lock.

A run is a folder with ``config.json``, ``metrics.jsonl`` (one line per evaluated
round), ``checkpoints/`` and ``best/`` (see ``checkpoint``), ``summary.json`` and
``curve.svg`` (``curve``); some have ``clients.jsonl`` (``client_log``). A process may
be killed between any two instructions: a JSON file is then either the old or the new
one, and only the last line of the metrics log can be unfinished.
"""

import contextlib
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from fedcmi_jax.experiment.files import without_waiting
from fedcmi_jax.experiment.outputs import check_folder

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
CHECKPOINTS = "checkpoints"
BEST = "best"
SUMMARY = "summary.json"

_LOCK = ".lock"

PATIENCE = 0.1
"""Seconds that a run waits for its lock: whoever lists runs has it for an instant."""


def make_folder(folder: str | Path) -> None:
    """Makes the folder of a new run.

    Args:
      folder: Must be new or empty. What a process killed before it wrote the
        configuration leaves (hidden files) does not count.

    Raises:
      ValueError: The folder has content, is a file, or cannot be written
        (`outputs.check_folder`).

    Example:
      >>> import tempfile
      >>> make_folder(Path(tempfile.mkdtemp()) / "runs" / "first")
    """
    check_free(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)


def claim_folder(folder: str | Path) -> Path:
    """Makes a folder that was not there: this one, or the first free NAME-2, NAME-3...

    Of processes that ask for one name at a time, each gets a folder of its own.

    Args:
      folder: As `default_folder` named it.

    Returns:
      The folder that was made.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "run"
      >>> [claim_folder(folder).name for _ in range(3)]
      ['run', 'run-2', 'run-3']
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in _numbered(folder):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _numbered(first: Path) -> Iterator[Path]:
    """A path, then the same with -2, -3... behind its name."""
    yield first
    for copy in itertools.count(2):
        yield first.with_name(f"{first.name}-{copy}")


def check_free(folder: str | Path) -> None:
    """Refuses a folder that cannot become a new run's; makes nothing.

    Args:
      folder: As `make_folder`.

    Raises:
      ValueError: As `make_folder`.

    Example:
      >>> check_free("no/such/folder")
    """
    folder = Path(folder)
    if os.path.isfile(folder):
        raise ValueError(f"run folder {folder} is a file; choose another --output")
    check_folder(folder)
    if not folder.exists():
        return
    ours = re.compile(rf"{re.escape(_LOCK)}|\..*\.tmp")
    if any(not ours.fullmatch(entry.name) for entry in folder.iterdir()):
        raise ValueError(
            f"run folder {folder} exists; choose another --output or resume it with "
            f"`fedcmi resume {folder}`"
        )


def is_run(folder: str | Path) -> bool:
    """Tells whether a folder holds a run.

    Args:
      folder: Any path.

    Returns:
      Whether it has a ``config.json``.

    Example:
      >>> is_run("no/such/folder")
      False
    """
    return (Path(folder) / CONFIG).is_file()


def check_run(folder: str | Path) -> None:
    """Refuses a folder that is no run.

    Args:
      folder: Any path.

    Raises:
      ValueError: It does not exist or has no ``config.json``.

    Example:
      >>> check_run("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder is no run: there is no such folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no run: there is no such folder")
    if not is_run(folder):
        raise ValueError(
            f"{folder} is no run: it has no config.json; give a folder that "
            "`fedcmi train` wrote"
        )


@contextlib.contextmanager
def lock(folder: str | Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps a second process from training in the same run.

    The kernel holds the lock: it ends with the process, however that ends. The file
    stays, since removing it would let two processes lock two files of one name.

    Args:
      folder: An existing run folder.
      patience: Seconds to wait for another process.

    Yields:
      Nothing, with the lock held.

    Raises:
      ValueError: Another process holds it, or there is no such folder.

    Example:
      >>> import tempfile
      >>> with lock(tempfile.mkdtemp()):
      ...     pass
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"run folder {folder} does not exist; create it first")
    with open(folder / _LOCK, "ab", opener=without_waiting) as file:
        if not _locks(file, fcntl.LOCK_EX, patience):
            raise ValueError(
                f"run folder {folder} is in use by another process; wait until it "
                "ends or choose another --output"
            )
        yield


def is_in_use(folder: str | Path) -> bool:
    """Whether a process trains in a run's folder.

    Example:
      >>> is_in_use("no/such/folder")
      False
    """
    path = Path(folder) / _LOCK
    if not path.is_file():
        return False
    with open(path, "rb") as file:  # let go at once: `lock` is patient enough
        return not _locks(file, fcntl.LOCK_SH, 0.0)


def _locks(file: IO[bytes], kind: int, patience: float) -> bool:
    """Locks an open file; False: another process has it, for longer than that."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(PATIENCE / 10)


def default_folder(
    root: str | Path, name: str, seed: int, now: datetime | None = None
) -> Path:
    """Names the folder of a run.

    Args:
      root: Folder of all runs.
      name: What is trained, such as "noisy_digits fedcmi"; anything but letters,
        digits and dots becomes a dash.
      seed: Seed of the run.
      now: Time in the name; None: the local time.

    Returns:
      A path that does not exist yet; nothing is created.

    Raises:
      ValueError: The name has no letter or digit.

    Example:
      >>> now = datetime(2026, 11, 21, 14, 23)
      >>> str(default_folder("runs", "noisy_digits/fedcmi", 0, now))
      'runs/noisy-digits-fedcmi-s0-20261121-142300'
    """
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")
    if not slug:
        raise ValueError(f"name: {name!r} has no letter or digit to name a folder by")
    now = datetime.now() if now is None else now
    first = Path(root) / f"{slug}-s{seed}-{now:%Y%m%d-%H%M%S}"
    # lexists: a dangling link is taken, too.
    return next(path for path in _numbered(first) if not os.path.lexists(path))
