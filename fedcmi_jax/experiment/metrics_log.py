"""The metrics log: a line for every evaluated round, on the disk when written.

The order that loses nothing: append the line of a round, then save its checkpoint with
a copy of the log; to go on, restore, then `MetricsLog.restore` that copy.
"""

import json
import os
from pathlib import Path
from typing import Any

from fedcmi_jax.experiment.files import (
    naming,
    plain,
    read_bytes,
    replace,
    set_aside,
    sync,
)


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
        line = plain(record, null_non_finite=True)
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
        with naming(self.path), open(self.path, "ab") as file:
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

    def evaluated(self) -> list[dict[str, Any]]:
        """The lines of evaluated rounds; others only name clients. See `read`."""
        return [record for record in self.read() if "acc" in record]

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
            replace(self.path, b"".join(content + b"\n" for _, content in kept))
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
        found = self._found()
        note = ""
        if not self._continues(found, copy, round):
            kept = f"; what was there is {self.set_aside()}" if found else ""
            note = (
                f"{self.path} was not as checkpoint {round} left it and was rebuilt "
                f"from the copy in the checkpoint{kept}"
            )
        if found != copy:
            replace(self.path, copy)
        self._keep(self._lines()[0])
        return note

    def set_aside(self) -> Path:
        """Moves the file away, see ``files.set_aside``, and begins an empty one.

        Returns:
          Where it is now.
        """
        self._keep([])
        return set_aside(self.path)

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
        return self._parse(self._found())

    def _found(self) -> bytes:
        """What is in the file; nothing where there is none."""
        return read_bytes(self.path) if os.path.lexists(self.path) else b""

    def _parse(self, text: bytes) -> tuple[list[tuple[int, bytes]], bool]:
        """The same of a file's content."""
        *contents, rest = text.split(b"\n")
        lines: list[tuple[int, bytes]] = []
        for place, content in enumerate(contents, 1):
            try:
                record = json.loads(content)
            except (ValueError, RecursionError):
                record = None
            number = _round(record)
            if number is None and place == len(contents) and not rest:
                return lines, False
            is_sound = number is not None and _has_numbers(record)
            if number is None or not is_sound or (lines and number <= lines[-1][0]):
                what = f"round {number} again" if is_sound else "corrupt"
                raise ValueError(
                    f"{self.path}, line {place}: {what}; `fedcmi resume` rebuilds it"
                )
            lines.append((number, content))
        return lines, not rest


NUMBERS = ("acc", "val_acc", "seconds")
"""Fields of a line that runs are continued and compared by."""


def _round(record: Any) -> int | None:
    """The record's round, None where it is no record."""
    number = record.get("round") if isinstance(record, dict) else None
    is_round = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return number if is_round else None


def _has_numbers(record: dict[str, Any]) -> bool:
    """Whether the fields in ``NUMBERS``, where there are any, are numbers or null."""
    found = (record.get(name) for name in NUMBERS)
    return all(
        x is None or (isinstance(x, int | float) and not isinstance(x, bool))
        for x in found
    )
