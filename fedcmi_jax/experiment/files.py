"""JSON files, replaced at once: a reader finds the old content or the new."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


def replace(path: Path, content: bytes) -> None:
    """Makes ``content`` the file's content, durably; a reader sees the old or the new.

    Raises:
      OSError: The disk refused; the old file stays.

    Example:
      >>> import tempfile
      >>> replace(Path(tempfile.mkdtemp()) / "a", b"new")
    """
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
    lines = (json.dumps(plain(r, True), allow_nan=False) + "\n" for r in records)
    content = "".join(lines).encode()
    path = Path(path)
    if path.is_file() and path.read_bytes() == content:
        return False
    replace(path, content)
    return True
