"""Prepares a TFDS data set once, whoever else does and whatever interrupts it.

TFDS builds into a folder of its own and renames it at the end, so a prepared set is
whole. Around that: a lock, so that of two processes one builds and the other waits;
and the removal of what a killed process left.
"""

import contextlib
import contextvars
import errno
import fcntl
import importlib
import io
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from fedcmi_jax.data.places import cache_home, expanded

BUILDERS = {
    "mnist": "Mnist",
    "av_mnist": "AvMnist",
    "cg_mnist": "CgMnist",
    "hapt": "Hapt",
}
"""Name, also of the module in this package -> builder class."""

REASON = 120
"""Characters of TFDS's message that are shown."""

DATA_ROOT = "FEDCMI_DATA_ROOT"
"""Environment variable with the folder of all prepared data."""

_BUILDS = contextvars.ContextVar("_BUILDS", default=True)
"""Whether ``prepare`` may download and build; see ``as_prepared``."""

_DOWNLOADS, _MANUAL = "downloads", "manual"  # folders below the data root


def data_root(data_dir: str | None = None) -> pathlib.Path:
    """The folder of all prepared data.

    Args:
      data_dir: That folder; None: $FEDCMI_DATA_ROOT, else ``fedcmi_jax/data`` in the
        user's cache folder ($XDG_CACHE_HOME or ~/.cache), beside the compiled programs.

    Returns:
      An absolute path, which need not exist.

    Raises:
      ValueError: It is not given and there is no home folder; or $XDG_CACHE_HOME is
        relative.

    Example:
      >>> str(data_root("/data/fedcmi"))
      '/data/fedcmi'
    """
    given = data_dir or os.environ.get(DATA_ROOT)
    if given:
        return expanded(given).absolute()
    cache = cache_home()
    if cache is None:
        raise ValueError(
            f"{DATA_ROOT}: is not set, and this user has no home folder to prepare "
            "data in; set it, or give data_dir"
        )
    return cache / "fedcmi_jax" / "data"


@contextlib.contextmanager
def as_prepared() -> Iterator[None]:
    """Inside, ``prepare`` refuses what is not prepared: no download, no waiting.

    It holds for this thread, and for TFDS builders: data sets of the user's own media
    files are decoded as always.

    Example:
      >>> with as_prepared():
      ...     prepare("hapt", data_dir="/nowhere")
      Traceback (most recent call last):
      ValueError: hapt: not prepared in /nowhere; run fedcmi data prepare hapt
    """
    before = _BUILDS.set(False)
    try:
        yield
    finally:
        _BUILDS.reset(before)


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
        is damaged; one line that names it. Nothing half-made is left. Or the set is not
        prepared, inside ``as_prepared``.
      OSError: The disk is full or refuses otherwise; nothing half-made either.
    """
    root = data_root(data_dir)
    manual = _manual_folder(root, manual_dir)
    with _usable_folder(root, data_dir):
        builder = _builder(name, root)
        if builder.data_path.exists():
            return builder
    if not _BUILDS.get():
        raise ValueError(
            f"{name}: not prepared in {root}; run fedcmi data prepare {name}"
        )
    # The second of two processes waits here, then finds the set prepared.
    with _locked(root, name, data_dir):
        _remove_leftovers(root, name)
        try:
            builder = _builder(name, root)
            _build(builder, root, manual)
        except BaseException:
            _remove_leftovers(root, name)
            raise
    return builder


def _builder(name: str, root: pathlib.Path) -> Any:
    """The TFDS builder of a data set, prepared or not."""
    module = importlib.import_module(f"fedcmi_jax.data.tfds.{name}")
    make = getattr(module, BUILDERS[name])
    with damage_named(root / name):
        return make(data_dir=root, file_format="array_record")


@contextlib.contextmanager
def damage_named(folder: pathlib.Path) -> Iterator[None]:
    """One line where TFDS stumbles over the JSON files of a prepared data set.

    Args:
      folder: The data set's.

    Raises:
      ValueError: They are damaged; names the folder.
    """
    from google.protobuf import json_format  # TFDS brings it along

    damages = (ValueError, KeyError, TypeError, AttributeError, json_format.Error)
    try:
        yield
    except damages as error:
        reason = " ".join(str(error).split())[:REASON]
        raise ValueError(
            f"{folder}: damaged ({reason}); delete the folder and prepare the data "
            "set again"
        ) from None


@contextlib.contextmanager
def _locked(root: pathlib.Path, name: str, data_dir: str | None) -> Iterator[None]:
    """One process at a time; leaves nothing where nothing else was made."""
    path = root / f".{name}.lock"
    made = [p for p in (root, *root.parents) if not p.exists()]
    while True:
        with _usable_folder(root, data_dir):
            root.mkdir(parents=True, exist_ok=True)
            lock = open(path, "ab")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            break
        lock.close()  # its last holder has removed it
    with lock:
        try:
            yield
        finally:
            if not (root / name).exists():
                path.unlink()
                for folder in made:
                    with contextlib.suppress(OSError):  # not empty
                        folder.rmdir()


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
    except OSError as error:
        named = error.filename or str(root)
        failure = OSError(error.errno or errno.EIO, error.strerror or str(error), named)
    # Not from within: the errors above keep TFDS's bars alive, which would draw over
    # the message when they end.
    raise failure


def _manual_folder(root: pathlib.Path, manual_dir: str | None) -> pathlib.Path:
    if manual_dir is None:
        return root / _MANUAL
    folder = expanded(manual_dir).absolute()
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
    """Removes what a process left that was killed, or refused; under the lock."""
    unfinished = [
        *(root / name).glob("incomplete.*"),
        *(root / _DOWNLOADS / name).glob("**/*.tmp.*"),
    ]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
    downloads = root / _DOWNLOADS
    inner = sorted((downloads / name).rglob("*"), reverse=True)
    own = (*inner, downloads / name, downloads / "extracted", downloads)
    for folder in (*own, root / name):
        with contextlib.suppress(OSError):  # a file, not empty, or never made
            folder.rmdir()
