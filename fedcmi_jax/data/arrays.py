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


MOST_CLASSES = 100_000
"""A larger label is more likely a mistake than a class that nobody named."""


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
            {m: numeric(f"{which}, modality {m!r}", split.inputs[m]) for m in train},
            _integers(split.labels),
            None if split.clients is None else _numbers(split.clients),
            None
            if split.available is None
            else table_of(split.available, (len(split.labels), len(train))),
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
        largest = int(max(known, default=0))
        if largest > MOST_CLASSES:
            raise ValueError(f"labels: {largest} is no class index; give class_names")
        class_names = tuple(map(str, range(largest + 1)))
    names = tuple(class_names)
    return Dataset(name, tuple(train), names, typed["train"], typed["test"])


def numeric(where: str, values: Any) -> np.ndarray:
    """As float32 or int32, without a copy where it is already.

    Args:
      where: Whose they are, for the message.
      values: [n, ...] floats, or integers for token ids.

    Raises:
      ValueError: They are of another kind; says what to give.

    Example:
      >>> numeric("mine", [[1, 2]]).dtype.name
      'int32'
    """
    try:
        x = values if isinstance(values, np.ndarray) else np.asarray(values)
    except ValueError:
        raise ValueError(f"{where}: its rows have different shapes") from None
    if x.ndim == 0:
        raise ValueError(f"{where}: is a single number; give an array [n, ...]")
    if np.issubdtype(x.dtype, np.floating):
        with np.errstate(over="ignore"):  # infinite, and refused with its row
            return x.astype(np.float32, copy=False)
    if x.dtype == np.uint8:
        raise ValueError(
            f"{where}: is of uint8; give images as floats (x / 255), token ids as int32"
        )
    if np.issubdtype(x.dtype, np.integer):
        # What does not fit int32 stays, and is refused with its row.
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        fits = x.size == 0 or (low <= x.min() and x.max() <= high)
        return x.astype(np.int32, copy=False) if fits else x
    raise ValueError(
        f"{where}: is of {x.dtype}; give floats, or integers for token ids"
    )


def _integers(labels: Any) -> np.ndarray:
    """Integers as int32; what is none, or larger, as it is: refused with its row."""
    x = np.asarray(labels)
    if x.ndim != 1:
        raise ValueError(f"labels: of shape {x.shape}; give one class index per sample")
    if not np.issubdtype(x.dtype, np.integer):
        return x
    small = x.astype(np.int32)
    return small if np.array_equal(small, x) else x


def table_of(available: Any, shape: tuple[int, int]) -> np.ndarray:
    """Which modalities samples have, as bool.

    Raises:
      ValueError: Another shape, or an entry that is neither 0 nor 1.

    Example:
      >>> table_of([[1, 0]], (1, 2)).tolist()
      [[True, False]]
    """
    table = np.asarray(available)
    if table.shape != shape:
        raise ValueError(
            f"available: shape {table.shape}; samples x modalities are {shape}"
        )
    numeric = table.dtype == bool or np.issubdtype(table.dtype, np.number)
    if not numeric or not np.isin(table, (0, 1)).all():
        raise ValueError("available: holds what is neither 0 nor 1")
    return table.astype(bool)


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
        raise ValueError(
            f"path: there is no {place.absolute()}; give an .npz file or a folder"
        )
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
    names = None
    if "class_names" in arrays:
        names = tuple(map(str, np.atleast_1d(arrays["class_names"])))
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
    except Exception as error:  # zlib's and tokenize's own among them
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
