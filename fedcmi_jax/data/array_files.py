"""Data of one's own: from a file or folder of arrays."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmi_jax.data.arrays import RESERVED, assembled
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.npy import read_npy, read_npz
from fedcmi_jax.samples import SPLITS, PathOption


def npz(*, path: PathOption | None = None, sequential: bool = False) -> Dataset:
    """Arrays of one's own, from an .npz file or a folder of .npy files.

    The file's arrays, or the folder's files with .npy behind their names:
      train/NAME, test/NAME: a modality's samples, floats or int32 token ids (of several
        arrays: NAME/PART each);
      train/labels, test/labels: class indices;
      train/clients, train/available, test/available, class_names: if there are any.
    Files of a folder are read as memory maps. Modalities are in the order of the names
    in the file; of a folder, of the alphabet. Nothing is unpickled.

    Args:
      path: The file, or the folder.
      sequential: Neighbouring rows of a client overlap, as sliding windows do; what is
        held out is then taken in runs.

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
        elif key != "class_names":
            raise ValueError(
                f"{place}: {key!r} is none of train/NAME, test/NAME and class_names; "
                "rename it, or take it out"
            )
    for split in SPLITS:
        if "labels" not in parts[split]:
            raise ValueError(
                f"{place}: has no {split}/labels; docs/new_data.md has the layout"
            )
    splits = {
        split: Split(
            nested({m: x for m, x in found.items() if m not in RESERVED}, str(place)),
            found["labels"],
            found.get("clients"),
            found.get("available"),
            sequential,
        )
        for split, found in parts.items()
    }
    names = None
    if "class_names" in arrays:
        names = tuple(map(str, np.atleast_1d(arrays["class_names"])))
    try:
        return assembled(place.stem, splits, names)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def nested(arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arrays by path as dicts of dicts, for modalities of several arrays.

    Args:
      arrays: Path, names with "/" between them -> array.
      where: Whose they are, for the message.

    Raises:
      ValueError: A name has an array and others below it.

    Example:
      >>> nested({"text/ids": 1, "text/mask": 2, "image": 3}, "mine")
      {'text': {'ids': 1, 'mask': 2}, 'image': 3}
    """
    tree: dict[str, Any] = {}
    for path, x in arrays.items():
        *groups, name = path.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ValueError(f"{where}: {group!r} is an array and has others below")
        if name in place:
            raise ValueError(f"{where}: {name!r} is an array and has others below")
        place[name] = x
    return tree


def _of_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {
        file.relative_to(folder).with_suffix("").as_posix(): read_npy(file)
        for file in sorted(folder.rglob("*.npy"))
    }
