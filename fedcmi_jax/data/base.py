"""The one record every data set becomes."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_CHECKED_BYTES = 1 << 24
"""Bytes of an array looked at together: no copy of a large memory map, little Python
per sample. 16 MiB stay in a processor's cache or near it."""


class Split(NamedTuple):
    """Samples of one split, on the host.

    Attributes:
      inputs: Modality name -> [n, ...] float32, or int32 for token ids; images are
        [n, height, width, channel]. An array may be a memory map of a file.
      labels: [n] int32 in [0, C).
      clients: [n] int32 natural client ids (speaker, volunteer...), or None.
      available: [n, M] bool, which modalities a sample has, in the data set's order;
        what it lacks may hold any finite number. None: all of them.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    clients: np.ndarray | None = None
    available: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of samples n."""
        return len(self.labels)


class Dataset(NamedTuple):
    """A multimodal classification data set.

    Attributes:
      name: Registry name.
      modalities: Modality names; the order of every [.., M] array.
      class_names: C names.
      train: Training split.
      test: Test split.
      notes: What whoever shows the data set should say: samples that its loader
        dropped, counted, and why.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    train: Split
    test: Split
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one sample."""
        return {m: self.train.inputs[m].shape[1:] for m in self.modalities}


def check_dataset(dataset: Dataset) -> Dataset:
    """Returns the data set if it is sound.

    Raises:
      ValueError: A modality is missing from a split, lengths disagree, a split is
        empty, a label is out of range or an input is not finite; names split, modality
        and the first bad row.
    """
    for split_name, split in (("train", dataset.train), ("test", dataset.test)):
        where = f"dataset {dataset.name!r}, {split_name} split"
        if split.size == 0:
            raise ValueError(f"{where}: no samples; check the source files")
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= dataset.num_classes))
        if bad.size:
            raise ValueError(
                f"{where}, row {bad[0]}: label {split.labels[bad[0]]} is outside "
                f"[0, {dataset.num_classes}); fix the label or class_names"
            )
        if set(split.inputs) != set(dataset.modalities):
            raise ValueError(
                f"{where}: has modalities {sorted(split.inputs)}, expected "
                f"{sorted(dataset.modalities)}"
            )
        for modality, values in split.inputs.items():
            if len(values) != split.size:
                raise ValueError(
                    f"{where}, modality {modality!r}: {len(values)} samples for "
                    f"{split.size} labels"
                )
            row = _first_not_finite(values)
            if row is not None:
                raise ValueError(
                    f"{where}, modality {modality!r}, row {row}: value is not finite; "
                    "clean or drop the row"
                )
        if split.clients is not None and len(split.clients) != split.size:
            raise ValueError(
                f"{where}: {len(split.clients)} client ids for {split.size} labels"
            )
        if split.available is not None:
            table = np.asarray(split.available)
            if table.shape != (split.size, len(dataset.modalities)):
                raise ValueError(
                    f"{where}: availability table of shape {table.shape}, expected "
                    f"{(split.size, len(dataset.modalities))}: samples x modalities"
                )
            empty = np.flatnonzero(~table.astype(bool).any(axis=1))
            if empty.size:
                raise ValueError(
                    f"{where}, row {empty[0]}: the sample has no modality; drop it"
                )
    return dataset


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a value that an option of a data set does not have.

    Args:
      option: Name of the option, for the message.
      value: What was given.
      choices: What there is.

    Raises:
      ValueError: value is none of the choices.

    Example:
      >>> check_choice("normalize", "window", ("window", "none"))
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{option}={value!r}: choose from {', '.join(choices)}")


def _first_not_finite(values: np.ndarray) -> int | None:
    """First row of [n, ...] with a NaN or an infinity, read a few rows at a time."""
    if not np.issubdtype(values.dtype, np.inexact):
        return None
    rows = max(1, _CHECKED_BYTES * len(values) // max(1, values.nbytes))
    for start in range(0, len(values), rows):
        finite = np.isfinite(values[start : start + rows])
        sound = finite.all(axis=tuple(range(1, finite.ndim)))
        if not sound.all():
            return start + int(np.flatnonzero(~sound)[0])
    return None
