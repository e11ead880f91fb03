"""Data of one's own: from arrays, or from a file or folder of arrays."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmi_jax.data.base import Dataset, Split, check_dataset

SPLITS = ("train", "test")
RESERVED = ("labels", "clients", "available")
"""Names that no modality can have: what a file holds beside the inputs."""


def from_arrays(
    train: Mapping[str, Any],
    labels: Any,
    test: Mapping[str, Any],
    test_labels: Any,
    *,
    class_names: tuple[str, ...] | None = None,
    clients: Any = None,
    available: Any = None,
    test_available: Any = None,
    name: str = "arrays",
) -> Dataset:
    """A data set of arrays, checked.

    Args:
      train: Modality -> [n, ...], of floats, or of integers for token ids. Their order
        is that of every table of modalities. Floats become float32, integers int32.
      labels: [n] integers in [0, C).
      test: Modality -> [t, ...].
      test_labels: [t].
      class_names: C names; None: 0 to the largest label.
      clients: [n] ids of natural clients, numbers or strings; None: there are none.
      available: [n, M], which modalities a training sample has; None: all.
      test_available: [t, M]; None: all.
      name: What it is called.

    Returns:
      The data set.

    Raises:
      ValueError: In one line: lengths disagree, a type is of neither kind, a value is
        not finite, a label is none; names split, modality and row.

    Example:
      >>> x, y = np.zeros((4, 3)), np.array([0, 1, 0, 1])
      >>> data = from_arrays({"a": x, "b": x}, y, {"a": x, "b": x}, y)
      >>> data.modalities, data.class_names, data.train.inputs["a"].dtype.name
      (('a', 'b'), ('0', '1'), 'float32')
    """
    splits = {"train": Split(dict(train), labels, clients, available)}
    splits["test"] = Split(dict(test), test_labels, None, test_available)
    return check_dataset(_assembled(name, splits, class_names))


def _assembled(
    name: str, splits: dict[str, Split], class_names: tuple[str, ...] | None
) -> Dataset:
    """The data set, its arrays of the types that it needs; values are not looked at."""
    train, test = splits["train"].inputs, splits["test"].inputs
    if not train:
        raise ValueError("train: has no modality; give {name: array}")
    for modality in train:
        if not isinstance(modality, str) or modality in RESERVED or "/" in modality:
            raise ValueError(
                f"train: {modality!r} is no name of a modality; give a string without "
                f"'/' that is none of {', '.join(RESERVED)}"
            )
    if set(test) != set(train):
        raise ValueError(
            f"test: has modalities {sorted(test)}, train has {sorted(train)}; give "
            "both the same"
        )
    typed = {
        which: Split(
            {m: _numeric(f"{which}, modality {m!r}", split.inputs[m]) for m in train},
            _integers(split.labels),
            None if split.clients is None else _numbers(split.clients),
            None if split.available is None else np.asarray(split.available, bool),
        )
        for which, split in splits.items()
    }
    for m, x in typed["train"].inputs.items():
        other = typed["test"].inputs[m].shape[1:]
        if x.shape[1:] != other:
            raise ValueError(
                f"test: a sample of {m!r} has shape {other}, in train {x.shape[1:]}"
            )
    if class_names is None:
        labels = [split.labels for split in typed.values() if split.size]
        known = [y.max() for y in labels if np.issubdtype(y.dtype, np.integer)]
        class_names = tuple(map(str, range(int(max(known, default=0)) + 1)))
    names = tuple(class_names)
    return Dataset(name, tuple(train), names, typed["train"], typed["test"])


def _numeric(where: str, values: Any) -> np.ndarray:
    """As float32 or int32, without a copy where it is already."""
    x = values if isinstance(values, np.ndarray) else np.asarray(values)
    if x.ndim == 0:
        raise ValueError(f"{where}: is a single number; give an array [n, ...]")
    if np.issubdtype(x.dtype, np.floating):
        return x.astype(np.float32, copy=False)
    if x.dtype == np.uint8:
        raise ValueError(
            f"{where}: is of uint8; give images as floats (x / 255), token ids as int32"
        )
    if np.issubdtype(x.dtype, np.integer):
        # What does not fit int32 stays, and is refused with its row.
        fits = x.size == 0 or np.abs(x).max() <= np.iinfo(np.int32).max
        return x.astype(np.int32, copy=False) if fits else x
    raise ValueError(
        f"{where}: is of {x.dtype}; give floats, or integers for token ids"
    )


def _integers(labels: Any) -> np.ndarray:
    """Integers as int32; anything else as it is, to be refused with its row."""
    x = np.asarray(labels)
    return x.astype(np.int32) if np.issubdtype(x.dtype, np.integer) else x


def _numbers(clients: Any) -> np.ndarray:
    """Ids as numbers from 0, in sorted order of the ids."""
    ids = np.asarray(clients)
    if ids.dtype == object:
        ids = ids.astype(str)
    return np.unique(ids, return_inverse=True)[1].reshape(-1).astype(np.int32)


def npz(*, path: str | None = None) -> Dataset:
    """Arrays of one's own, from an .npz file or a folder of .npy files.

    The file's arrays, or the folder's files with .npy behind their names:
      train/NAME, test/NAME: a modality's samples, floats or int32 token ids;
      train/labels, test/labels: class indices;
      train/clients, train/available, test/available, class_names: if there are any.
    Files of a folder are read as memory maps. Modalities are in the order of the names
    in the file; of a folder, of the alphabet. Nothing is unpickled.

    Args:
      path: The file, or the folder.

    Returns:
      The data set, see ``from_arrays``.

    Raises:
      ValueError: Something is missing, damaged, or refused by ``from_arrays``.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/own.npz"
      >>> x, y = np.zeros((4, 3)), np.array([0, 1, 0, 1])
      >>> arrays = {"train/a": x, "train/labels": y, "test/a": x, "test/labels": y}
      >>> np.savez(path, **arrays)
      >>> npz(path=path).modalities
      ('a',)
    """
    if path is None:
        raise ValueError("path: of the arrays is missing; give --dataset.path=FILE.npz")
    place = pathlib.Path(path)
    if not place.exists():
        raise ValueError(f"path: there is no {place}; give an .npz file or a folder")
    arrays = _of_folder(place) if place.is_dir() else read_npz(place)
    parts: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for key, x in arrays.items():
        split, _, name = key.partition("/")
        if split in parts and name:
            parts[split][name] = x
    for split in SPLITS:
        if "labels" not in parts[split]:
            raise ValueError(
                f"{place}: has no {split}/labels; docs/new_data.md has the layout"
            )
    splits = {
        split: Split(
            {m: x for m, x in found.items() if m not in RESERVED},
            found["labels"],
            found.get("clients"),
            found.get("available"),
        )
        for split, found in parts.items()
    }
    named = "class_names" in arrays
    names = tuple(map(str, arrays["class_names"])) if named else None
    try:
        return _assembled(place.stem, splits, names)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing is unpickled.

    Raises:
      ValueError: The file is damaged or none, or an array is; names file and array.
    """
    with path.open("rb") as opened:
        try:
            file = np.load(opened, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            file = None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(
                f"{path}: is no .npz file, or damaged; write it with np.savez"
            )
        return {key: _read(f"{path}, {key}", file, key) for key in file.files}


def _read(where: str, file: Any, key: str) -> np.ndarray:
    try:
        return file[key]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{where}: {_why(error)}") from None


def _of_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.rglob("*.npy")):
        key = file.relative_to(folder).with_suffix("").as_posix()
        try:
            found[key] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file}: {_why(error)}") from None
    return found


def _why(error: Exception) -> str:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return "is an array of objects, which only a pickle holds; give numbers"
    return f"cannot be read ({error}); write it again with np.save"
