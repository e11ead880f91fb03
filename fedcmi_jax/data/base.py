"""The one record every data set becomes."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Samples of one split, on the host.

    Attributes:
      inputs: Modality name -> [n, ...] float32; images are [n, height, width, channel].
      labels: [n] int32 in [0, C).
      clients: [n] int32 natural client ids (speaker, volunteer...), or None.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    clients: np.ndarray | None = None

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
    """

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    train: Split
    test: Split

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
            finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{where}, modality {modality!r}, row "
                    f"{np.flatnonzero(~finite)[0]}: value is not finite; clean or "
                    "drop the row"
                )
        if split.clients is not None and len(split.clients) != split.size:
            raise ValueError(
                f"{where}: {len(split.clients)} client ids for {split.size} labels"
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
