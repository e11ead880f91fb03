"""Checkpoints of a federation: written through Orbax, verified, never unpickled.

``folder/<round>/`` holds ``state/``, the leaves of the `FederationState` as an Orbax
tree of arrays numbered in tree order, and ``metadata.json``: the round, the format
version, the leaves' names, dtypes and shapes, a SHA-256 digest over all of it, and
one for each file of ``state/``. ``metrics.jsonl.gz`` is the run's metrics log as it was
when the checkpoint was saved, with a digest of its own.

A checkpoint is written beside its place as ``<round>.tmp``, read back, flushed to the
disk and renamed; so whatever has a bare number for a name was once complete. One
process at a time may save into a folder (`folder.lock`).
"""

import contextlib
import glob
import gzip
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedcmi_jax.experiment.run_folder import read_json, sync, write_json
from fedcmi_jax.types import FederationState

_FORMAT = 1
_LOG = "metrics.jsonl.gz"
_LEFTOVER = re.compile(r"\d+\.(tmp|removed|replaced|orbax-checkpoint-tmp.*)")


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
      state: The newest state that is intact, bit for bit as it was saved.
      round: Its round.
      skipped: One line for each damaged newer checkpoint, to be shown to the user.
      log: The metrics log that was saved with it; None: it was saved without one.
    """

    state: FederationState
    round: int
    skipped: tuple[str, ...]
    log: bytes | None = None


class _Leaf(NamedTuple):
    """Name, dtype, shape, and implementation of a PRNG key ("" for other arrays)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    key_impl: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


def rounds(folder: str | Path) -> list[int]:
    """Lists the checkpoints of a folder.

    Args:
      folder: Where `save` wrote; need not exist.

    Returns:
      Their rounds, increasing. Damaged ones are among them; unfinished ones are not.

    Example:
      >>> rounds("no/such/folder")
      []
    """
    return sorted(_committed(Path(folder)))


def save(
    folder: str | Path,
    state: FederationState,
    *,
    keep: int = 3,
    log: bytes | None = None,
) -> None:
    """Writes ``folder/<round>``; on return it is complete and on the disk.

    A checkpoint of this round is replaced. Checkpoints of later rounds are removed:
    they are what a fallback skipped, and this run will write them again.

    Args:
      folder: Folder of the run's checkpoints, made if need be.
      state: Every leaf an array; PRNG keys are fine. Leaves must be addressable by
        this process.
      keep: How many of the newest checkpoints stay, at least 1.
      log: The metrics log up to this round (`MetricsLog.content`), which makes the
        checkpoint everything that is needed to go on.

    Raises:
      ValueError: ``keep`` is below 1, ``state.round`` is no scalar or negative, or a
        leaf is no array.
      OSError: The disk refused, or what was written does not read back the same. The
        checkpoints before it stay.

    Example:
      >>> import tempfile
      >>> state = FederationState(
      ...     {}, {}, (), (), {}, (), jax.numpy.int32(5), jax.random.key(0)
      ... )
      >>> folder = tempfile.mkdtemp()
      >>> save(folder, state)
      >>> rounds(folder)
      [5]
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} checkpoints cannot be kept; give 1 or more")
    if np.shape(state.round) != () or int(state.round) < 0:
        raise ValueError(f"state.round: {state.round} is no round; save one state")
    number = int(state.round)
    folder = Path(folder).absolute()  # Orbax takes no other
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)

    leaves, arrays = _to_host(state)
    digest = _digest(leaves, arrays)
    temporary = folder / f"{number}.tmp"
    _write_arrays(temporary / "state", arrays)
    _check_reads_back(temporary / "state", arrays, leaves, digest)
    content = {
        "format": _FORMAT,
        "round": number,
        "leaves": leaves,
        "digest": digest,
        "files": _file_digests(temporary / "state"),
    }
    if log is not None:
        packed = gzip.compress(log, mtime=0)
        (temporary / _LOG).write_bytes(packed)
        content["log"] = hashlib.sha256(packed).hexdigest()
    metadata = {**content, "checksum": _checksum(content)}
    write_json(temporary / "metadata.json", metadata)
    for path in temporary.rglob("*"):
        sync(path)
    sync(temporary)

    final, replaced = folder / str(number), folder / f"{number}.replaced"
    if final.exists():
        final.rename(replaced)  # counts as the round's checkpoint until the next line
    temporary.rename(final)
    sync(folder)
    older = [n for n in rounds(folder) if n < number]
    superseded = [n for n in rounds(folder) if n > number]
    for n in older[: max(len(older) - keep + 1, 0)] + superseded:
        # A half-removed folder must not have a number for a name.
        _committed(folder)[n].rename(folder / f"{n}.removed")
    _clean(folder)


def restore(folder: str | Path, like: FederationState) -> Restored:
    """Reads the newest intact checkpoint; changes nothing in the folder.

    Args:
      folder: Where `save` wrote.
      like: A state of the same tree structure, dtypes and shapes, of arrays or of
        `jax.ShapeDtypeStruct` (``jax.eval_shape`` of the function that makes the
        first state). Where its leaves have a sharding, the restored ones get it;
        others go to the default device, uncommitted. Weak types become strong.

    Returns:
      The state, its round, and a line for each damaged checkpoint passed over.

    Raises:
      ValueError: No checkpoint is intact; or an intact one holds other leaves than
        ``like``, or a format that this version does not know.
      PermissionError: A file may not be read; that is no damage to fall back from.

    Example:
      >>> import tempfile
      >>> state = FederationState(
      ...     {}, {}, (), (), {}, (), jax.numpy.int32(5), jax.random.key(0)
      ... )
      >>> folder = tempfile.mkdtemp()
      >>> save(folder, state)
      >>> restore(folder, jax.eval_shape(lambda: state)).round
      5
    """
    folder = Path(folder).absolute()
    skipped: list[str] = []
    for number, path in sorted(_committed(folder).items(), reverse=True):
        try:
            metadata = _read_metadata(path, number)
            leaves = _check_fits(path, metadata, like)
            _check_files(path / "state", metadata["files"])
            arrays = _read_arrays(path / "state", _expected(like))
            if _digest(leaves, arrays) != metadata["digest"]:
                raise _DamagedError("its digest does not match its content")
            log = _read_log(path, metadata)
        except _DamagedError as damage:
            skipped.append(f"checkpoint {path} is damaged and was skipped: {damage}")
            continue
        return Restored(_to_state(leaves, arrays, like), number, tuple(skipped), log)
    why = f" ({len(skipped)} damaged; {skipped[0]})" if skipped else ""
    raise ValueError(
        f"no usable checkpoint in {folder}{why}; start the run again in a new folder"
    )


def newest_log(folder: str | Path) -> tuple[int, bytes] | None:
    """The metrics log that the newest checkpoint was saved with.

    Args:
      folder: Where `save` wrote; need not exist.

    Returns:
      The checkpoint's round and the log's content; None if there is no checkpoint, or
      it is damaged or was saved without a log.

    Example:
      >>> newest_log("no/such/folder")
    """
    found = _committed(Path(folder))
    if not found:
        return None
    number = max(found)
    try:
        log = _read_log(found[number], _read_metadata(found[number], number))
    except _DamagedError:
        return None
    return None if log is None else (number, log)


class _DamagedError(Exception):
    """This checkpoint cannot be used, but an older one can."""


def _committed(folder: Path) -> dict[int, Path]:
    """Round -> its folder; one moved aside counts while its successor is missing."""
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        stem = path.name.removesuffix(".replaced")
        if stem.isdecimal() and stem == str(int(stem)) and path.is_dir():
            if path.name == stem or int(stem) not in found:
                found[int(stem)] = path
    return found


def _clean(folder: Path) -> None:
    """Removes what killed processes and `save` itself left behind."""
    for number, path in _committed(folder).items():
        if path.name != str(number):  # its successor never came
            path.rename(folder / str(number))
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            # What cannot be removed now (a network disk) is tried again next time.
            shutil.rmtree(path, ignore_errors=True)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Names and leaves in tree order."""
    named = [
        (jax.tree_util.keystr(path).lstrip("."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for name, leaf in named:
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"{name}: {leaf!r} is no array; make it one to save it")
    return named


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(state: FederationState) -> tuple[list[_Leaf], list[np.ndarray]]:
    """Describes the leaves and copies them to the host, PRNG keys as their data."""
    named = _leaves(state)
    leaves = [
        _Leaf(
            name,
            str(leaf.dtype),
            tuple(leaf.shape),
            str(jax.random.key_impl(leaf)) if _is_key(leaf) else "",
        )
        for name, leaf in named
    ]
    data = [jax.random.key_data(x) if _is_key(x) else x for _, x in named]
    return leaves, [np.asarray(x) for x in jax.device_get(data)]


def _expected(like: FederationState) -> list[Any]:
    """Dtype and shape of what `_to_host` yields for such a state."""
    return [
        jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for _, leaf in _leaves(like)
    ]


def _to_state(
    leaves: list[_Leaf], arrays: list[np.ndarray], like: FederationState
) -> FederationState:
    """Puts host arrays where the leaves of ``like`` are, as a tree like it."""
    targets, structure = jax.tree.flatten(like)
    values = []
    for leaf, array, target in zip(leaves, arrays, targets, strict=True):
        value = array
        if leaf.key_impl:
            value = jax.random.wrap_key_data(jnp.asarray(array), impl=leaf.key_impl)
        # An uncommitted array may follow others to their device; a committed one may
        # not, so restoring must not commit what was free.
        is_free = not getattr(target, "committed", True)
        sharding = None if is_free else getattr(target, "sharding", None)
        values.append(jax.device_put(value, sharding))
    return jax.tree.unflatten(structure, values)


def _digest(leaves: list[_Leaf], arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf."""
    digest = hashlib.sha256()
    for leaf, array in zip(leaves, arrays, strict=True):
        digest.update(json.dumps(leaf).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 over metadata, so that damage to it does not look like another run."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_metadata(path: Path, number: int) -> dict[str, Any]:
    """Reads a checkpoint's metadata; raises `_DamagedError` unless it is intact."""
    try:
        metadata = read_json(path / "metadata.json")
        content = {k: v for k, v in metadata.items() if k != "checksum"}
        is_intact = metadata["checksum"] == _checksum(content)
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise _DamagedError(f"metadata.json: {_brief(error)}") from error
    if not is_intact:
        raise _DamagedError("metadata.json does not match its checksum")
    if metadata["format"] != _FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {metadata['format']}, this version reads "
            f"{_FORMAT}; resume with the version of fedcmi_jax that wrote it"
        )
    if metadata["round"] != number:
        raise _DamagedError(f"it holds round {metadata['round']}")
    return metadata


def _read_log(path: Path, metadata: dict[str, Any]) -> bytes | None:
    """The log's copy, None if there is none; raises `_DamagedError` if it changed."""
    if "log" not in metadata:
        return None
    try:
        packed = (path / _LOG).read_bytes()
    except PermissionError:
        raise
    except OSError as error:
        raise _DamagedError(f"{_LOG}: {_brief(error)}") from error
    if hashlib.sha256(packed).hexdigest() != metadata["log"]:
        raise _DamagedError(f"{_LOG} has changed")
    return gzip.decompress(packed)


def _file_digests(path: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder."""
    digests = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        digests[file.relative_to(path).as_posix()] = digest
    return digests


def _check_files(path: Path, wanted: dict[str, str]) -> None:
    """Raises `_DamagedError` unless the files are those that `save` wrote.

    Orbax never sees damaged files: its error would be right, but reads still under
    way would go on to write warnings about a closed event loop.
    """
    try:
        found = _file_digests(path)
    except PermissionError:
        raise
    except OSError as error:
        raise _DamagedError(_brief(error)) from error
    for name, digest in wanted.items():
        if found.get(name) != digest:
            what = "has changed" if name in found else "is missing"
            raise _DamagedError(f"{path.name}/{name} {what}")


def _check_fits(
    path: Path, metadata: dict[str, Any], like: FederationState
) -> list[_Leaf]:
    """Returns the checkpoint's leaves; raises ValueError if ``like`` has others."""
    found = [_Leaf(n, d, tuple(s), k) for n, d, s, k in metadata["leaves"]]
    wanted = [_Leaf(n, str(x.dtype), tuple(x.shape)) for n, x in _leaves(like)]
    theirs = {leaf.name: str(leaf) for leaf in found}
    ours = {leaf.name: str(leaf) for leaf in wanted}
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"checkpoint {path} is of another configuration: it has "
                f"{theirs.get(name, f'no {name}')}, this run has "
                f"{ours.get(name, f'no {name}')}; resume with the run's config.json"
            )
    return found


def _write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    # OCDBT merges all leaves into few files, but Orbax finds the parts with an
    # unescaped glob and silently merges nothing under a folder such as "run[1]".
    use_ocdbt = glob.escape(str(path)) == str(path)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=use_ocdbt, use_zarr3=False, multiprocessing_options=_alone()
    )
    tree = {f"{i:05d}": _raw(x) for i, x in enumerate(arrays) if x.size}
    with _quiet(), _checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def _alone() -> ocp.options.MultiprocessingOptions:
    """One process writes and reads; Orbax must not wait for others."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix="fedcmi" if jax.process_count() > 1 else None,
    )


def _checkpointer(handler: ocp.PyTreeCheckpointHandler) -> ocp.Checkpointer:
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def _check_reads_back(
    path: Path, arrays: list[np.ndarray], leaves: list[_Leaf], digest: str
) -> None:
    """Raises OSError unless the files hold these arrays.

    Orbax only logs some failures to write, and only what can be restored may make an
    older checkpoint go.
    """
    reason = "another digest"
    try:
        if _digest(leaves, _read_arrays(path, arrays)) == digest:
            return
    except _DamagedError as damage:
        reason = str(damage)
    raise OSError(f"{path}: the checkpoint does not read back as written: {reason}")


def _read_arrays(path: Path, expected: Sequence[Any]) -> list[np.ndarray]:
    """Reads arrays of the expected dtypes and shapes; else raises `_DamagedError`."""
    # Orbax writes no empty arrays: they are made here.
    arrays = [np.empty(x.shape, x.dtype) for x in expected]
    empty = {f"{i:05d}": _raw(x) for i, x in enumerate(arrays) if x.size}
    how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in empty}
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
        with _quiet(), _checkpointer(handler) as checkpointer:
            tree = checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(item=empty, restore_args=how)
            )
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # Orbax and TensorStore promise no narrower set
        raise _DamagedError(_brief(error)) from error
    for i, array in enumerate(arrays):
        if array.size:
            found = np.asarray(tree[f"{i:05d}"])
            wanted = _raw(array)
            if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
                raise _DamagedError(f"array {i} is {found.dtype}{list(found.shape)}")
            arrays[i] = found.view(array.dtype)
    return arrays


def _raw(array: np.ndarray) -> np.ndarray:
    """The same bits in a dtype that NumPy has: Orbax lacks some of ml_dtypes."""
    is_builtin = array.dtype.isbuiltin == 1
    return array if is_builtin else array.view(f"u{array.dtype.itemsize}")


def _brief(error: Exception) -> str:
    """One short line; TensorStore's messages fill a screen."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:117]}{'...' if text[117:] else ''}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back Orbax's own log lines; errors arrive as exceptions as well."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    try:
        yield
    finally:
        logger.removeFilter(is_foreign)
