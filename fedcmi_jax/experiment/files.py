"""JSON files, replaced at once: a reader finds the old content or the new."""

import contextlib
import errno
import functools
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_bytes(path: str | Path) -> bytes:
    """The content of an ordinary file; never waits for a pipe or reads a device.

    Raises:
      ValueError: It is of another kind; names it.
      OSError: It is not there, or cannot be read.

    Example:
      >>> read_bytes(os.devnull)
      Traceback (most recent call last):
      ValueError: /dev/null: is no ordinary file; move it away
    """
    with open(path, "rb", opener=without_waiting) as file:
        return file.read()


def without_waiting(path: str, flags: int) -> int:
    """For ``open``: takes ordinary files only, as a pipe waits for its other end.

    Raises:
      ValueError: The file is of another kind; names it.
    """
    refusal = ValueError(f"{path}: is no ordinary file; move it away")
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a pipe's, a folder's
            raise refusal from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise refusal


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts the path into the operating system's refusals that name none.

    A full disk is noticed when something is written, by a call that knows no name.

    Example:
      >>> with naming("a/b"):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
      OSError: [Errno 28] No space left on device: 'a/b'
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


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
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Makes ``content`` the file's content, durably; a reader sees the old or the new.

    Args:
      path: Written to; its folder must exist.
      content: All of it.
      mode: Permissions, less those that the process's umask withholds.

    Raises:
      OSError: The disk refused; the old file stays.

    Example:
      >>> import tempfile
      >>> replace(Path(tempfile.mkdtemp()) / "a", b"new")
    """
    # The process id keeps two writers from mixing their bytes in one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        opener = functools.partial(os.open, mode=mode)
        with naming(path), open(temporary, "wb", opener=opener) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def set_aside(path: Path) -> Path:
    """Renames a file to the first free ``NAME.damaged-1``, ``-2``...

    Args:
      path: An existing file.

    Returns:
      Where it is now.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a"
      >>> replace(path, b"")
      >>> set_aside(path).name
      'a.damaged-1'
    """
    number = 1
    while os.path.lexists(f"{path}.damaged-{number}"):
        number += 1
    aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    sync(path.parent)
    return aside


def plain(value: Any, null_non_finite: bool) -> Any:
    """Turns NumPy and JAX values into Python ones, NaN and infinities into None.

    Example:
      >>> plain({"a": (float("nan"), 1)}, True)
      {'a': [None, 1]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {k: plain(v, null_non_finite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, null_non_finite) for v in value]
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
        text = json.dumps(plain(value, null_non_finite), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from None
    replace(path, text.encode() + b"\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Args:
      path: File to read.

    Returns:
      Its value.

    Raises:
      ValueError: The content is not JSON, or the file no ordinary one; names the file
        and the place.
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
    content = read_bytes(path)
    try:
        return json.loads(content)
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
    lines = (json.dumps(plain(r, True), allow_nan=False) + "\n" for r in records)
    content = "".join(lines).encode()
    path = Path(path)
    if path.is_file() and path.read_bytes() == content:
        return False
    replace(path, content)
    return True
