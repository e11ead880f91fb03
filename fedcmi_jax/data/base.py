"""The one record every data set becomes."""

from typing import Any, NamedTuple

import numpy as np

from fedcmi_jax.samples import Shape, map_arrays, named_arrays
from fedcmi_jax.samples import Split as Split

_CHECKED_BYTES = 1 << 24
"""Bytes of an array looked at together: no copy of a large memory map, little Python
per sample. 16 MiB stay in a processor's cache or near it."""

MAX_INPUT = float(np.sqrt(np.finfo(np.float32).max))
"""About 1.8e19. The square of anything larger is no float32, and norms, variances and
gradients take squares."""


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
      client_names: Name of natural client j at place j; empty: ``Split.clients`` are
        the source's own numbers.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    train: Split
    test: Split
    notes: tuple[str, ...] = ()
    client_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def shapes(self) -> dict[str, Any]:
        """Modality -> ``Shape`` of one sample, or a dict of them."""

        def of(where: str, x: np.ndarray) -> Shape:
            return Shape(x.shape[1:], x.dtype)

        return {m: map_arrays(of, m, self.train.inputs[m]) for m in self.modalities}


def check_dataset(dataset: Dataset) -> Dataset:
    """Returns the data set if it is sound.

    Raises:
      ValueError: A modality is missing from a split, lengths disagree, a split is
        empty, a label is no integer or out of range, an input is not finite or larger
        than MAX_INPUT (of token ids: than int32 holds); names split, modality and the
        first bad row.
    """
    for split_name, split in (("train", dataset.train), ("test", dataset.test)):
        where = f"dataset {dataset.name!r}, {split_name} split"
        if split.size == 0:
            raise ValueError(f"{where}: no samples; check the source files")
        check_labels(split.labels, dataset.num_classes, where)
        if set(split.inputs) != set(dataset.modalities):
            raise ValueError(
                f"{where}: has modalities {sorted(split.inputs)}, expected "
                f"{sorted(dataset.modalities)}"
            )
        for modality, arrays in split.inputs.items():
            for whose, values in named_arrays(f"modality {modality!r}", arrays):
                if len(values) != split.size:
                    raise ValueError(
                        f"{where}, {whose}: {len(values)} samples for {split.size} "
                        "labels"
                    )
                row = _first_out_of_bounds(values)
                if row is not None:
                    fault = _fault(values[row])
                    raise ValueError(f"{where}, {whose}, row {row}: {fault}")
        if split.clients is not None and len(split.clients) != split.size:
            raise ValueError(
                f"{where}: {len(split.clients)} client ids for {split.size} labels"
            )
        if split.clients is not None and dataset.client_names:
            ids, known = np.asarray(split.clients), len(dataset.client_names)
            bad = np.flatnonzero((ids < 0) | (ids >= known))
            if bad.size:
                raise ValueError(
                    f"{where}, row {bad[0]}: client {ids[bad[0]]} has none of the "
                    f"{known} client_names; name all of them or none"
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


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuses labels that are no class indices.

    They must have an integer type: whole numbers as floats, and booleans, are refused
    too, because the package converts nothing that it might misread.

    Args:
      labels: [n].
      num_classes: C.
      where: Whose labels they are, for the message.

    Raises:
      ValueError: They are not one integer in [0, C) per sample; names the first bad
        row.

    Example:
      >>> check_labels(np.array([0, 2]), 3, "train split")
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{where}: labels of shape {labels.shape}; give one class index per sample"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        row, remedy = 0, "convert the labels with .astype(np.int32)"
        if np.issubdtype(labels.dtype, np.floating):
            whole = np.isfinite(labels) & (labels == np.floor(labels))
            broken = np.flatnonzero(~whole)
            if broken.size:
                row, remedy = broken[0], "fix the label or drop the row"
        elif labels.dtype != bool:
            remedy = "give indices into class_names, as integers"
        raise ValueError(
            f"{where}, row {row}: label {labels[row]!s} is no integer but "
            f"{labels.dtype}; {remedy}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise ValueError(
            f"{where}, row {bad[0]}: label {labels[bad[0]]} is outside "
            f"[0, {num_classes}); fix the label or class_names"
        )


def _bounds(dtype: np.dtype) -> tuple[float, float] | None:
    """Smallest and largest value of an input; None: its type holds nothing else."""
    if np.issubdtype(dtype, np.floating):
        return -MAX_INPUT, MAX_INPUT
    if np.issubdtype(dtype, np.integer) and not np.can_cast(dtype, np.int32):
        return float(np.iinfo(np.int32).min), float(np.iinfo(np.int32).max)
    return None


def _first_out_of_bounds(values: np.ndarray) -> int | None:
    """First row of [n, ...] with an unsound value, read once, a few rows at a time."""
    bounds = _bounds(values.dtype)
    if bounds is None or values.size == 0:
        return None
    low, high = bounds
    rows = max(1, _CHECKED_BYTES * len(values) // max(1, values.nbytes))
    for start in range(0, len(values), rows):
        piece = values[start : start + rows]
        # A NaN is neither; as Python floats, for float16 has no MAX_INPUT.
        if low <= float(piece.min()) and float(piece.max()) <= high:
            continue
        flat = piece.reshape(len(piece), -1).astype(np.float64)
        sound = ((flat >= low) & (flat <= high)).all(axis=1)
        return start + int(np.flatnonzero(~sound)[0])
    return None


def _fault(row: np.ndarray) -> str:
    """What is wrong with a row that ``_first_out_of_bounds`` found."""
    if not np.isfinite(row).all():
        return "value is not finite; clean or drop the row"
    worst = np.max(np.abs(np.asarray(row, np.float64)))
    if np.issubdtype(row.dtype, np.integer):
        return f"{worst:.3g} does not fit int32; token ids must"
    return (
        f"magnitude {worst:.3g} is above {MAX_INPUT:.3g}, its square overflows "
        "float32; rescale the modality or drop the row"
    )
