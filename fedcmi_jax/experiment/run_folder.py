"""The plain files of a run folder: JSON, the metrics log, the lock, the name.

A run is a folder with ``config.json``, ``metrics.jsonl`` (one line per evaluated
round), ``checkpoints/`` and ``best/`` (see ``checkpoint``) and
``summary.json``. A process may be killed between any two instructions here: a JSON file
is then either the old or the new one, and only the last line of the metrics log can be
unfinished.

The order that loses nothing: append the metric line of a round, then save its
checkpoint with a copy of the log; to go on, restore, then `MetricsLog.restore` that
copy.
"""

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BEST = "best"
SUMMARY = "summary.json"

_LOCK = ".lock"


def sync(path: Path) -> None:
    """Asks the kernel to put a file, or the names in a folder, on the disk.

    Args:
      path: An existing file or folder.

    Raises:
      OSError: The disk refused.

    Example:
      >>> import tempfile
      >>> sync(Path(tempfile.mkdtemp()))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Makes ``content`` the file's content; a reader sees the old or the new one."""
    # The process id keeps two writers from mixing their bytes in one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _plain(value: Any, null_non_finite: bool) -> Any:
    """Turns NumPy and JAX values into Python ones, and NaN and Inf into None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {k: _plain(v, null_non_finite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, null_non_finite) for v in value]
    if null_non_finite and isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, value: Any, *, null_non_finite: bool = False) -> None:
    """Writes a JSON file atomically and durably.

    Args:
      path: Written to; its folder must exist.
      value: Dicts, lists, strings, numbers, NumPy or JAX scalars and arrays.
      null_non_finite: Write NaN and infinities, which JSON lacks, as null. Off by
        default: a null in a configuration would come back as another value.

    Raises:
      ValueError: JSON cannot express the value; names the file. The old file stays.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> write_json(path, {"rounds": 50})
      >>> read_json(path)
      {'rounds': 50}
    """
    path = Path(path)
    try:
        text = json.dumps(_plain(value, null_non_finite), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from None
    _replace(path, text.encode() + b"\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Args:
      path: File to read.

    Returns:
      Its value.

    Raises:
      ValueError: The content is not JSON; names the file and the place.
      FileNotFoundError: There is no such file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> path.write_text('{"rounds": 50')
      13
      >>> read_json(path)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: ...config.json: not valid JSON: Expecting ',' delimiter: line 1 ...
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid JSON: {reason}") from None


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> bool:
    """Writes a file of one JSON object per line, atomically, if it is not that already.

    Args:
      path: Written to; its folder must exist.
      records: The lines; NaN and infinities become null.

    Returns:
      Whether the file was written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> write_lines(path, [{"round": 5}]), write_lines(path, [{"round": 5}])
      (True, False)
    """
    lines = (json.dumps(_plain(r, True), allow_nan=False) + "\n" for r in records)
    content = "".join(lines).encode()
    path = Path(path)
    if path.is_file() and path.read_bytes() == content:
        return False
    _replace(path, content)
    return True


class MetricsLog:
    """A file with one JSON object per line, each with an int ``round``, increasing.

    Only the last line can be unfinished (a killed process); it is no record.

    Args:
      path: The file; it need not exist yet.

    Example:
      >>> import tempfile
      >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
      >>> for round in (5, 10, 15):
      ...     log.append({"round": round, "accuracy": float("nan")})
      >>> log.truncate_after(10)
      >>> log.read()[-1]
      {'round': 10, 'accuracy': None}
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._last = -1  # round of the last line
        self._content: bytearray | None = None  # of the file; None: not yet read

    @property
    def content(self) -> bytes:
        """The finished lines as they were read or written by this object."""
        if self._content is None:
            self._keep(self._lines()[0])
        return bytes(self._content or b"")

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line; on return it is on the disk.

        Args:
          record: Has an int "round" above that of the last line. NaN and infinities
            become null.

        Raises:
          ValueError: The record has no such round or is not JSON, or the file ends in
            an unfinished line (see `truncate_after`).
        """
        line = _plain(record, null_non_finite=True)
        number = _round(line)
        if number is None:
            raise ValueError(f"{self.path}: a metric line needs an int 'round': {line}")
        if self._content is None:
            lines, complete = self._lines()
            if not complete:
                raise ValueError(
                    f"{self.path}: the last line is unfinished; call truncate_after "
                    "with the restored round before appending"
                )
            self._keep(lines)
        if number <= self._last:
            raise ValueError(
                f"{self.path}: round {number} after round {self._last}; call "
                "truncate_after with the restored round before appending"
            )
        try:
            text = json.dumps(line, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: cannot be written: {error}") from None
        is_new = not self.path.exists()
        with open(self.path, "ab") as file:
            size = file.tell()
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # A full disk: leave no half line to a caller who carries on.
                os.ftruncate(file.fileno(), size)
                raise
        if is_new:
            sync(self.path.parent)
        self._last = number
        if self._content is not None:
            self._content += text

    def read(self) -> list[dict[str, Any]]:
        """Reads the finished lines.

        Returns:
          The records; ``[]`` where there is no file.

        Raises:
          ValueError: A line before the last one is corrupt or out of order; names the
            file and the line.
        """
        return [json.loads(content) for _, content in self._lines()[0]]

    def truncate_after(self, round: int) -> None:
        """Drops, atomically, all lines after a round, and an unfinished last line.

        Args:
          round: The last round to keep: that of the restored checkpoint.

        Raises:
          ValueError: A line before the last one is corrupt or out of order; names the
            file and the line. The file stays as it is.
        """
        lines, complete = self._lines()
        kept = [line for line in lines if line[0] <= round]
        if len(kept) < len(lines) or not complete:
            _replace(self.path, b"".join(content + b"\n" for _, content in kept))
        self._keep(kept)

    def restore(self, round: int, copy: bytes) -> str:
        """Makes the log what it was when a checkpoint was saved, and loses nothing.

        A log that starts with the copy is cut behind it: the lines of later rounds are
        a killed process's, and will be written again. Any other is moved aside
        (`set_aside`) and written anew.

        Args:
          round: The restored checkpoint's.
          copy: The ``content`` that was saved with it.

        Returns:
          A line for the user if the log had to be rebuilt, else "".
        """
        found = self.path.read_bytes() if self.path.exists() else b""
        note = ""
        if not self._continues(found, copy, round):
            kept = f"; what was there is {self.set_aside()}" if found else ""
            note = (
                f"{self.path} was not as checkpoint {round} left it and was rebuilt "
                f"from the copy in the checkpoint{kept}"
            )
        if found != copy:
            _replace(self.path, copy)
        self._keep(self._lines()[0])
        return note

    def set_aside(self) -> Path:
        """Renames the file to the first free ``NAME.damaged-1``, ``-2``...

        Returns:
          Where it is now.
        """
        number = 1
        while os.path.lexists(f"{self.path}.damaged-{number}"):
            number += 1
        aside = self.path.with_name(f"{self.path.name}.damaged-{number}")
        self.path.rename(aside)
        sync(self.path.parent)
        self._keep([])
        return aside

    def _continues(self, found: bytes, copy: bytes, round: int) -> bool:
        """Whether a file holds a checkpoint's log, and at most later rounds' lines."""
        if not found.startswith(copy):
            return False
        try:
            later, _ = self._parse(found[len(copy) :])
        except ValueError:
            return False
        return not later or later[0][0] > round

    def _keep(self, lines: list[tuple[int, bytes]]) -> None:
        self._last = lines[-1][0] if lines else -1
        self._content = bytearray(b"".join(content + b"\n" for _, content in lines))

    def _lines(self) -> tuple[list[tuple[int, bytes]], bool]:
        """Finished lines with their rounds, and whether there is nothing else."""
        return self._parse(self.path.read_bytes() if self.path.exists() else b"")

    def _parse(self, text: bytes) -> tuple[list[tuple[int, bytes]], bool]:
        """The same of a file's content."""
        *contents, rest = text.split(b"\n")
        lines: list[tuple[int, bytes]] = []
        for place, content in enumerate(contents, 1):
            try:
                number = _round(json.loads(content))
            except (ValueError, RecursionError):
                number = None
            if number is None and place == len(contents) and not rest:
                return lines, False
            if number is None or (lines and number <= lines[-1][0]):
                what = "corrupt" if number is None else f"round {number} again"
                raise ValueError(
                    f"{self.path}, line {place}: {what}; `fedcmi resume` rebuilds it"
                )
            lines.append((number, content))
        return lines, not rest


def _round(record: Any) -> int | None:
    """The record's round, None where it is no record."""
    number = record.get("round") if isinstance(record, dict) else None
    is_round = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return number if is_round else None


def create(folder: str | Path) -> None:
    """Makes the folder of a new run.

    Args:
      folder: Must be new or empty. What a process killed before it wrote the
        configuration leaves (hidden files) does not count.

    Raises:
      ValueError: The folder has content, or is a file.

    Example:
      >>> import tempfile
      >>> create(Path(tempfile.mkdtemp()) / "runs" / "first")
    """
    check_free(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)


def check_free(folder: str | Path) -> None:
    """Refuses a folder that cannot become a new run's; makes nothing.

    Args:
      folder: As `create`.

    Raises:
      ValueError: As `create`.

    Example:
      >>> check_free("no/such/folder")
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"run folder {folder} is a file; choose another --output")
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
    return (Path(folder) / "config.json").is_file()


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
def lock(folder: str | Path) -> Iterator[None]:
    """Keeps a second process from training in the same run.

    The kernel holds the lock: it ends with the process, however that ends. The file
    stays, since removing it would let two processes lock two files of one name.

    Args:
      folder: An existing run folder.

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
    with open(folder / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"run folder {folder} is in use by another process; wait until it "
                "ends or choose another --output"
            ) from None
        yield


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
    path, copy = first, 1
    # lexists: a dangling link is taken, too.
    while os.path.lexists(path):
        copy += 1
        path = first.with_name(f"{first.name}-{copy}")
    return path
