"""Prepares a TFDS data set once, whoever else does and whatever interrupts it.

TFDS builds into a folder of its own and renames it at the end, so a prepared set is
whole. Around that: a lock, so that of two processes one builds and the other waits;
and the removal of what a killed process left.
"""

import contextlib
import errno
import fcntl
import importlib
import io
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

BUILDERS = {
    "mnist": "Mnist",
    "av_mnist": "AvMnist",
    "cg_mnist": "CgMnist",
    "hapt": "Hapt",
}
"""Name, also of the module in this package -> builder class."""

DATA_ROOT = "FEDCMI_DATA_ROOT"
"""Environment variable with the folder of all prepared data."""

_DOWNLOADS, _MANUAL = "downloads", "manual"  # folders below the data root


def data_root(data_dir: str | None = None) -> pathlib.Path:
    """The folder of all prepared data.

    Args:
      data_dir: That folder; None: $FEDCMI_DATA_ROOT, else ``fedcmi_jax/data`` in the
        user's cache folder ($XDG_CACHE_HOME or ~/.cache), beside the compiled programs.

    Returns:
      An absolute path, which need not exist.

    Example:
      >>> str(data_root("/data/fedcmi"))
      '/data/fedcmi'
    """
    given = data_dir or os.environ.get(DATA_ROOT)
    if given:
        return pathlib.Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "fedcmi_jax" / "data"


def prepare(
    name: str, *, data_dir: str | None = None, manual_dir: str | None = None
) -> Any:
    """Downloads and builds a data set unless that is done; progress on standard error.

    Args:
      name: Key of BUILDERS.
      data_dir: Folder of all prepared data; None: see `data_root`.
      manual_dir: Folder with raw files got by hand, or with folders of them; what it
        lacks is downloaded if it can be. None: ``manual`` in the data root.

    Returns:
      The TFDS builder, ready for ``as_data_source``.

    Raises:
      ValueError: A folder cannot be used, a file cannot be had, has a wrong checksum or
        is damaged; one line that names it. Nothing half-made is left.
      OSError: The disk is full or refuses otherwise; nothing half-made either.
    """
    module = importlib.import_module(f"fedcmi_jax.data.tfds.{name}")
    make = getattr(module, BUILDERS[name])
    root = data_root(data_dir)
    manual = _manual_folder(root, manual_dir)
    with _usable_folder(root, data_dir):
        builder = make(data_dir=root, file_format="array_record")
        if builder.data_path.exists():
            return builder
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / f".{name}.lock", "ab")
    with lock:
        # The second of two processes waits here, then finds the set prepared.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers(root, name)
        builder = make(data_dir=root, file_format="array_record")
        _build(builder, root, manual)
    return builder


def _build(builder: Any, root: pathlib.Path, manual: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    failure: Exception
    # TFDS prints a line with no sizes in it; its bars go to standard error.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=root / _DOWNLOADS, download_config=config
            )
        return
    except ValueError as error:
        failure = ValueError(str(error))
    except RuntimeError as error:  # how the writer of records says: disk full
        reason = " ".join(str(error).split())
        message = f"{reason}; make room, or give another data_dir"
        failure = OSError(errno.EIO, message, str(root))
    # Not from within: the errors above keep TFDS's bars alive, which would draw over
    # the message when they end.
    raise failure


def _manual_folder(root: pathlib.Path, manual_dir: str | None) -> pathlib.Path:
    if manual_dir is None:
        return root / _MANUAL
    folder = pathlib.Path(manual_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(
            f"manual_dir={manual_dir!r}: no such folder; give the one that holds the "
            "raw files, or leave it out to have them downloaded"
        )
    return folder


@contextlib.contextmanager
def _usable_folder(root: pathlib.Path, data_dir: str | None) -> Iterator[None]:
    """Names the data root if it cannot be used."""
    try:
        yield
    except OSError as error:
        source = "data_dir" if data_dir else f"${DATA_ROOT} or the cache folder"
        raise ValueError(
            f"{source}: {root} cannot hold data ({error.strerror}); give another "
            "folder as data_dir"
        ) from None


def _remove_leftovers(root: pathlib.Path, name: str) -> None:
    """Removes what a killed process left; the caller holds the lock."""
    unfinished = [
        *(root / name).glob("incomplete.*"),
        *(root / _DOWNLOADS / name).glob("**/*.tmp.*"),
    ]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
