"""Prepared TFDS data sets as arrays, and any of them as a Dataset."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedcmi_jax.data.base import Dataset, Split, check_labels
from fedcmi_jax.data.tfds.prepare import damage_named

_CHUNK = 4096  # records decoded at a time


def records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The records of a split in stored order.

    Args:
      builder: A prepared TFDS builder.
      split: Its name.

    Yields:
      Feature -> value.

    Raises:
      ValueError: The stored files are damaged or incomplete; names their folder.
    """
    # What the readers of the format raise, whatever is wrong with a file.
    try:
        source = builder.as_data_source(split)
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            yield from source.__getitems__(list(rows))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{builder.data_path}, {split} split: damaged ({reason}); delete the "
            "folder and prepare the data set again"
        ) from None


def read_arrays(
    builder: Any, split: str, features: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Features of a split as arrays of their own type.

    Args:
      builder: A prepared TFDS builder.
      split: Its name.
      features: Names of features whose shape is the same in every record.

    Returns:
      Feature -> [n, ...].

    Raises:
      ValueError: A record's shape differs from the first one's; names the row.
    """
    arrays: dict[str, np.ndarray] = {}
    for row, record in enumerate(records(builder, split)):
        for name in features:
            value = np.asarray(record[name])
            if row == 0:
                n = builder.info.splits[split].num_examples
                arrays[name] = np.empty((n, *value.shape), value.dtype)
            array = arrays[name]
            if value.shape != array.shape[1:]:
                raise ValueError(
                    f"{builder.info.full_name}, {split} split, row {row}: {name!r} has "
                    f"shape {value.shape}, the first row {array.shape[1:]}; use a data "
                    "set whose samples have one shape"
                )
            array[row] = value
    return arrays


def as_float(values: np.ndarray) -> np.ndarray:
    """Numbers as float32; those of uint8, intensities, divided by 255.

    Example:
      >>> as_float(np.array([0, 255], np.uint8)).tolist()
      [0.0, 1.0]
    """
    floats = values.astype(np.float32)
    return floats / np.float32(255) if values.dtype == np.uint8 else floats


def tfds(
    name: str,
    modalities: Mapping[str, str],
    label: str = "label",
    *,
    train: str = "train",
    test: str = "test",
    data_dir: str | None = None,
) -> Dataset:
    """Any prepared TFDS data set with image or tensor features as a Dataset.

    Images and other arrays of uint8 become float32 in [0, 1], other numbers float32.

    Args:
      name: Name of a TFDS data set, or the folder of a prepared one, which holds
        ``dataset_info.json``.
      modalities: Name of a modality -> feature of the data set.
      label: Feature with the class: a ClassLabel, or integers from 0.
      train: TFDS split of the training samples, also a slice as "train[:80%]".
      test: TFDS split of the test samples.
      data_dir: Folder of prepared TFDS data sets; None: TFDS's own default.

    Returns:
      The data set.

    Raises:
      ValueError: There is no such data set, split or feature, the set is not prepared
        in a format that can be read without TensorFlow, a feature is no array of
        numbers, its shape varies, or a label is no integer from 0.
    """
    builder = _prepared_builder(name, data_dir)
    known = builder.info.features
    for feature in (*modalities.values(), label):
        if feature not in known:
            raise ValueError(
                f"{name}: no feature {feature!r}; choose from {sorted(known)}"
            )
    if not modalities:
        raise ValueError(f"{name}: modalities={{}}; name one or more features")

    def split(part: str) -> Split:
        try:
            builder.as_data_source(part)
        except (KeyError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}, split {part!r}: {reason}") from None
        arrays = read_arrays(builder, part, (*modalities.values(), label))
        inputs = {m: _checked_float(name, f, arrays[f]) for m, f in modalities.items()}
        where = f"{name}, split {part!r}, feature {label!r}"
        check_labels(arrays[label], np.iinfo(np.int32).max, where)
        return Split(inputs, arrays[label].astype(np.int32))

    train_split, test_split = split(train), split(test)
    num_classes = getattr(known[label], "num_classes", None)
    if num_classes is None:
        num_classes = 1 + max(train_split.labels.max(), test_split.labels.max())
    names = getattr(known[label], "names", None) or map(str, range(num_classes))
    return Dataset(name, tuple(modalities), tuple(names), train_split, test_split)


def _prepared_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as api

    try:
        if pathlib.Path(name, "dataset_info.json").is_file():
            with damage_named(pathlib.Path(name)):
                return api.builder_from_directory(name)
        builder = api.builder(name, data_dir=data_dir)
    except api.core.DatasetNotFoundError:
        raise ValueError(
            f"{name}: TFDS knows no such data set; give its name or the folder with "
            "its dataset_info.json"
        ) from None
    if not builder.data_path.exists():
        raise ValueError(
            f"{name}: not prepared in {builder.data_path}; prepare it with "
            "tensorflow_datasets and file_format='array_record', or give data_dir"
        )
    return builder


def _checked_float(name: str, feature: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise ValueError(
            f"{name}: feature {feature!r} is {values.dtype}, not numbers; choose an "
            "image or tensor feature"
        )
    return as_float(values)
