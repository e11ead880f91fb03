"""Prepared arrays on disk: decoded once, by several processes, read as memory maps.

A data set too large for memory becomes one folder of .npy files in the cache, named by
a hash of everything that decides its content: names, sizes and times of the source
files, the loader's options and the version of its code. The folder appears at once and
complete, or not at all. Deleting it costs nothing but the time to make it again.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np

from fedcmi_jax.data.places import expanded
from fedcmi_jax.data.raw.decoding import Decode, Item, Log, decoded
from fedcmi_jax.data.tfds.prepare import data_root

VERSION = 1
"""Part of the key; to be raised whenever the same files would give other arrays."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How the system says that there is no room: on the disk, for the user, for a file."""

_DTYPE = np.dtype(np.float32)


def cache_root(cache_dir: str | None) -> pathlib.Path:
    """Folder of all prepared arrays.

    Args:
      cache_dir: The folder; None: ``media`` in the root of all prepared data.

    Returns:
      An absolute path, which need not exist.

    Example:
      >>> str(cache_root("/data/prepared"))
      '/data/prepared'
    """
    if cache_dir is None:
        return data_root() / "media"
    return expanded(cache_dir).absolute()


def prepared(
    name: str,
    splits: Mapping[str, Sequence[Item]],
    decode: Decode,
    shapes: dict[str, tuple[int, ...]],
    *,
    root: pathlib.Path,
    cache_dir: str | None,
    workers: int,
    log: Log,
) -> dict[str, dict[str, np.ndarray]]:
    """The decoded samples of every split as memory maps, made on first use.

    All sources are looked for before the first is decoded. Two processes that want the
    same arrays do not make them twice: the second waits.

    Args:
      name: Data set, for the folders' names and messages.
      splits: Split -> its n samples, in order.
      decode: Item -> {modality: array}; a module's function or a partial of one, so
        that other processes can be given it. Its arguments are part of the key.
      shapes: Modality -> shape of one sample.
      root: Folder of the sources; their names below it are part of the key.
      cache_dir: Folder of all prepared arrays; None: see `cache_root`.
      workers: Processes that decode; 1: this one.
      log: Receives progress.

    Returns:
      Split -> modality -> [n, ...] float32, read-only.

    Raises:
      ValueError: A source is missing or cannot be decoded (names file and row), the
        folder cannot be written, or workers is below 1. Nothing half-written stays.
      OSError: The disk is full, or too small; nothing half-written either.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1; 1 decodes in-process")
    folders = {
        split: cache_root(cache_dir)
        / f"{name}-{split}-{_key(items, decode, shapes, root)}"
        for split, items in splits.items()
    }
    for split, folder in folders.items():
        if not folder.is_dir():
            with _in_one_line(folder), _locked(folder, log):
                if not folder.is_dir():
                    _prepare(folder, splits[split], decode, shapes, workers, log)
    return {
        split: {m: _opened(folder, m, (len(splits[split]), *shapes[m])) for m in shapes}
        for split, folder in folders.items()
    }


def _key(
    items: Sequence[Item],
    decode: Decode,
    shapes: dict[str, tuple[int, ...]],
    root: pathlib.Path,
) -> str:
    """Hash of everything that decides the arrays; finds missing files on the way."""
    partial = decode if isinstance(decode, functools.partial) else None
    options = (partial.args, sorted(partial.keywords.items())) if partial else ()
    function = partial.func if partial else decode
    code = (VERSION, function.__module__, function.__qualname__)
    about: list = [*code, repr(options), sorted(shapes.items())]
    digest = hashlib.sha256(json.dumps(about).encode())
    for item in items:
        for source in item.sources:
            try:
                found = source.stat()
            except OSError as error:
                raise ValueError(
                    f"{item.where}: {source}: {error.strerror}; restore the file or "
                    "remove the row"
                ) from None
            about = [os.path.relpath(source, root), found.st_size, found.st_mtime_ns]
            digest.update(json.dumps(about).encode())
        digest.update(json.dumps(item.values).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _in_one_line(folder: pathlib.Path) -> Iterator[None]:
    """The disk's refusals, with the remedy; a full disk is no user's mistake."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; free some space or give another cache_dir"
        if error.errno in FULL:
            raise OSError(error.errno, reason, str(folder.parent)) from None
        raise ValueError(f"cache_dir={str(folder.parent)!r}: {reason}") from None


@contextlib.contextmanager
def _locked(folder: pathlib.Path, log: Log) -> Iterator[None]:
    """One process at a time prepares a folder; the kernel ends the lock with it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # It stays: removing it would let two processes lock two files of one name.
    with open(folder.parent / f".{folder.name}.lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{folder.name}: waiting for another process that prepares it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(
    folder: pathlib.Path,
    items: Sequence[Item],
    decode: Decode,
    shapes: dict[str, tuple[int, ...]],
    workers: int,
    log: Log,
) -> None:
    """Makes the folder, under the lock."""
    values = sum(math.prod(shape) for shape in shapes.values())
    size = len(items) * values * _DTYPE.itemsize
    log(
        f"{folder.name}: preparing {len(items):,} samples, {_amount(size)}, in "
        f"{folder.parent}, workers={workers}"
    )
    if size > shutil.disk_usage(folder.parent).free:
        raise OSError(errno.ENOSPC, f"needs {_amount(size)}, which are not free")
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            files = {
                m: stack.enter_context(open(unfinished / f"{m}.npy", "xb"))
                for m in shapes
            }
            for m, file in files.items():
                _write_header(file, (len(items), *shapes[m]))
            rows = stack.enter_context(
                contextlib.closing(decoded(folder.name, items, decode, workers, log))
            )
            for row in rows:
                for m, file in files.items():
                    if row[m].shape != shapes[m]:
                        raise RuntimeError(f"{m}: {row[m].shape} is not {shapes[m]}")
                    file.write(row[m].astype(_DTYPE, order="C", copy=False).data)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        os.rename(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(_DTYPE)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _opened(folder: pathlib.Path, modality: str, shape: tuple[int, ...]) -> np.ndarray:
    path = folder / f"{modality}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        values = None
    if values is None or values.shape != shape or values.dtype != _DTYPE:
        raise ValueError(f"{path}: damaged; delete {folder} and run again")
    return values
