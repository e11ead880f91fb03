"""Checkpoints of a federation: verified by one digest, never unpickled.

``folder/<round>/`` holds ``state/``, the `FederationState` as Orbax arrays (`arrays`);
``metrics.jsonl.gz``, the metrics log of that moment; and ``metadata.json``, names,
dtypes and shapes of the leaves and the digest (`sealed`). It is written as
``<round>.tmp``, flushed to the disk and renamed: whatever has a bare number for a name
was once complete. One process at a time may save into a folder (`run_folder.lock`).

Orbax's CheckpointManager does not keep the folder: it refuses a round that exists, so
that a damaged one would have to be deleted first; it keeps the newest rounds even where
they are damaged and an older one is not; and it commits a round before a digest of its
files can be added.
"""

import gzip
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcmi_jax import guard
from fedcmi_jax.experiment import arrays
from fedcmi_jax.experiment.files import naming, sync
from fedcmi_jax.experiment.sealed import check_keys, seal, unseal
from fedcmi_jax.types import FederationState

_LOG, _STATE = "metrics.jsonl.gz", "state"
_LEFTOVER = re.compile(r"\d+\.(tmp|removed|replaced|orbax-checkpoint-tmp.*)")


LONGEST_LOG = 1 << 30
"""Bytes of an unpacked metrics log: a million rounds of a thousand bytes each."""


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
      state: The newest state that is intact, bit for bit as it was saved.
      round: Its round.
      skipped: One line for each damaged newer checkpoint, to be shown to the user.
      log: The metrics log that was saved with it.
    """

    state: FederationState
    round: int
    skipped: tuple[str, ...] = ()
    log: bytes = b""


def rounds(folder: str | Path) -> list[int]:
    """The rounds with a checkpoint, increasing; damaged ones are among them.

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
    log: bytes = b"",
    config: dict[str, Any] | None = None,
) -> None:
    """Writes ``folder/<round>``; on return it is complete and on the disk.

    A checkpoint of this round is replaced. Those of later rounds are removed: a
    fallback skipped them, and this run will write them again.

    Args:
      folder: Folder of the run's checkpoints, made if need be.
      state: Its leaves are arrays or PRNG keys, addressable by this process.
      keep: How many of the newest checkpoints stay, at least 1.
      log: The metrics log up to this round (`MetricsLog.content`).
      config: The run's configuration (``config.to_dict``), for ``restore`` to check.

    Raises:
      ValueError: ``keep`` is below 1, ``state.round`` is no round, or a leaf no array.
      OSError: The disk refused, or what was written does not read back the same. The
        checkpoints before it stay.

    Example:
      >>> import jax, tempfile
      >>> key = jax.random.key(0)
      >>> state = FederationState({}, {}, (), (), {}, (), jax.numpy.int32(5), key)
      >>> folder = tempfile.mkdtemp()
      >>> save(folder, state)
      >>> restore(folder, jax.eval_shape(lambda: state)).round
      5
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} checkpoints cannot be kept; give 1 or more")
    if np.shape(state.round) != () or int(state.round) < 0:
        raise ValueError(f"state.round: {state.round} is no round; save one state")
    leaves, number = arrays.describe(state), int(state.round)
    folder = Path(folder).absolute()  # Orbax takes no other
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    temporary, final = folder / f"{number}.tmp", folder / str(number)
    arrays.write(temporary / _STATE, state)
    with naming(temporary / _LOG):
        (temporary / _LOG).write_bytes(gzip.compress(log, mtime=0))
    seal(temporary, {"round": number, "leaves": leaves, "config": config})
    if final.exists():  # it counts as the round's checkpoint until the next line
        final.rename(folder / f"{number}.replaced")
    temporary.rename(final)
    sync(folder)
    kept = [n for n in rounds(folder) if n <= number][-keep:]
    for n in set(rounds(folder)).difference(kept):
        # A half-removed folder must not have a number for a name.
        (folder / str(n)).rename(folder / f"{n}.removed")
    _clean(folder)


def restore(
    folder: str | Path,
    like: FederationState,
    round: int | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Restored:
    """Reads the newest intact checkpoint; changes nothing in the folder.

    Args:
      folder: Where `save` wrote.
      like: A state of the same structure, dtypes and shapes; see `arrays.read`. A
        checkpoint of a run that was begun before there was a guard is read without one,
        and goes on to the same bits: the guard is off and its ring empty.
      round: Read that of this round and no other; None: the newest.
      check: Called with the configuration that was saved, if one was, before arrays are
        read; what it raises goes through.

    Raises:
      ValueError: None is intact, or the newest has other leaves or another format; or
        there is none of this round.
      PermissionError: A file may not be read; that is no damage to fall back from.
    """
    folder = Path(folder).absolute()
    skipped: list[str] = []
    found = _committed(folder)
    if round is not None and round not in found:
        raise ValueError(
            f"round: {round} is not in {folder}, which has {rounds(folder)}"
        )
    chosen = found if round is None else {round: found[round]}
    for number, path in sorted(chosen.items(), reverse=True):
        try:
            content, log = _intact(path, number)
            if check is not None and content.get("config") is not None:
                check(content["config"])
            wanted = _wanted(content, like)
            _check_fits(path, content, arrays.describe(wanted))
            state = arrays.read(path / _STATE, wanted)
            if wanted is not like:
                state = state._replace(guard=guard.absent(like.guard))
            return Restored(state, number, tuple(skipped), log)
        except PermissionError:
            raise
        except OSError as damage:
            skipped.append(f"checkpoint {path} is damaged and was skipped: {damage}")
    why = f" ({len(skipped)} damaged; {skipped[0]})" if skipped else ""
    raise ValueError(
        f"no usable checkpoint in {folder}{why}; start the run again in a new folder"
    )


def newest_log(
    folder: str | Path, check: Callable[[dict[str, Any]], None] | None = None
) -> tuple[int, bytes] | None:
    """Round and metrics log of the newest checkpoint; None: none, or it is damaged.

    Args:
      folder: Where `save` wrote.
      check: As that of `restore`.

    Example:
      >>> newest_log("no/such/folder")
    """
    for number, path in sorted(_committed(Path(folder)).items())[-1:]:
        try:
            content, log = _intact(path, number)
        except PermissionError:
            raise
        except (OSError, ValueError):
            break
        if check is not None and content.get("config") is not None:
            check(content["config"])
        return number, log
    return None


def _committed(folder: Path) -> dict[int, Path]:
    """Round -> its folder; one moved aside counts while its successor is missing."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        stem = path.name.removesuffix(".replaced")
        if stem.isdecimal() and stem == str(int(stem)) and path.is_dir():
            found[int(stem)] = path  # "7" comes after "7.replaced"
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


def _intact(path: Path, number: int) -> tuple[dict[str, Any], bytes]:
    """Metadata and log of a checkpoint; raises OSError if any of it is damaged."""
    content = unseal(path)
    check_keys(content, round=int, leaves=dict)
    if content["round"] != number:
        raise OSError(f"it holds round {content['round']}")
    if content.get("config") is not None:
        check_keys(content, config=dict)
    return content, _log_of(path)


def _log_of(path: Path) -> bytes:
    """The metrics log in a checkpoint."""
    try:
        with gzip.open(path / _LOG) as file:
            log = file.read(LONGEST_LOG + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{_LOG} is damaged: {error}") from None
    if len(log) > LONGEST_LOG:
        raise OSError(f"{_LOG} unpacks to more than {LONGEST_LOG} bytes")
    return log


def _wanted(content: dict[str, Any], like: FederationState) -> FederationState:
    """What to read: runs begun before there was a guard have no leaves of one."""
    is_old = not any(name.startswith("guard") for name in content["leaves"])
    return like._replace(guard=()) if is_old and like.guard else like


def _check_fits(path: Path, content: dict[str, Any], ours: dict[str, str]) -> None:
    """Raises ValueError unless the checkpoint has the leaves of this run."""
    both = theirs, ours = content["leaves"], ours
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            has = [f"{name} {x[name]}" if name in x else f"no {name}" for x in both]
            raise ValueError(
                f"checkpoint {path} is of another configuration: it has {has[0]}, this "
                f"run has {has[1]}; resume with the run's config.json and fedcmi_jax "
                f"{content['version']}, which wrote it"
            )
