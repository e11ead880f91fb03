"""Whether what a command will write can be written, asked before it does any work."""

import os
import pathlib
import tempfile

ROOM = 256
"""Bytes of a path that files below a run's folder need; checkpoints' need most."""


def check_folder(path: str | os.PathLike[str], flag: str = "--output") -> None:
    """Refuses a folder in which nothing can be written; leaves nothing.

    Args:
      path: The folder; it may not exist yet, nor may those above it.
      flag: Where the path comes from, for messages.

    Raises:
      ValueError: It is under a file, a link to nothing, too long, no UTF-8 text, or
        this user may not write there; names it.

    Example:
      >>> check_folder("no/such/folder")
      >>> check_folder("/dev/null/run")
      Traceback (most recent call last):
      ValueError: --output: /dev/null/run: Not a directory; choose another
    """
    path = pathlib.Path(path)
    _check_name(path, flag)
    whole = path.absolute()
    above = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not os.path.exists(above):
        raise ValueError(f"{flag}: {above} is a link to nothing; choose another")
    try:
        # Folders of the same names in one of our own: other processes see none of it.
        with tempfile.TemporaryDirectory(dir=above, prefix=".", suffix=".tmp") as own:
            (pathlib.Path(own) / whole.relative_to(above)).mkdir(
                parents=True, exist_ok=True
            )
    except OSError as error:
        raise ValueError(f"{flag}: {path}: {error.strerror}; choose another") from None


def check_file(path: str | os.PathLike[str], flag: str = "--output") -> None:
    """Refuses a file that cannot be written; leaves nothing.

    Args:
      path: The file; an existing one would be replaced. Its folder must exist.
      flag: Where the path comes from, for messages.

    Raises:
      ValueError: As `check_folder`; or it is there, but no ordinary file.

    Example:
      >>> check_file("/dev/null")
      Traceback (most recent call last):
      ValueError: --output: /dev/null is no ordinary file; choose another
    """
    path = pathlib.Path(path)
    _check_name(path, flag)
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise ValueError(f"{flag}: no folder {path.parent}; create it first")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise ValueError(f"{flag}: {path} is no ordinary file; choose another")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as own:
            (pathlib.Path(own) / path.name).touch()
    except OSError as error:
        raise ValueError(f"{flag}: {path}: {error.strerror}; choose another") from None


def _check_name(path: pathlib.Path, flag: str) -> None:
    """Refuses what is no name of a file anywhere."""
    try:
        size = len(str(path.absolute()).encode())
    except UnicodeEncodeError:
        raise ValueError(
            f"{flag}: {str(path)!r} is no UTF-8 text; choose another"
        ) from None
    if "\0" in str(path):
        raise ValueError(f"{flag}: {str(path)!r} has a zero byte; choose another")
    longest = os.pathconf("/", "PC_PATH_MAX") - ROOM
    if size > longest:
        raise ValueError(
            f"{flag}: {str(path)[:60]}... has {size} bytes, more than {longest}; "
            "choose another"
        )
