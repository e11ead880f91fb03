"""Data of one's own: from arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmi_jax.data.base import Dataset, Split, check_dataset
from fedcmi_jax.samples import map_arrays, named_arrays

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
    sequential: bool = False,
    name: str = "arrays",
) -> Dataset:
    """A data set of arrays, checked.

    Args:
      train: Modality -> [n, ...], of floats, or of integers for token ids; or a dict of
        such arrays, which its encoder gets as x. The order of the modalities is that of
        every table of them. Floats become float32, integers int32.
      labels: [n] integers in [0, C).
      test: Modality -> [t, ...].
      test_labels: [t].
      class_names: C names; None: 0 to the largest label.
      clients: [n] ids of natural clients, numbers or strings; None: there are none.
      available: [n, M], which modalities a training sample has; None: all.
      test_available: [t, M]; None: all.
      sequential: ``Split.sequential``: neighbouring rows of a client overlap, as
        sliding windows do, so that what is held out is taken in runs.
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
    for which, inputs in (("train", train), ("test", test)):
        if not isinstance(inputs, Mapping):
            raise ValueError(
                f"{which}: is of type {type(inputs).__name__}; give a dict, modality "
                "-> array"
            )
    splits = {
        "train": Split(dict(train), labels, clients, available, sequential),
        "test": Split(dict(test), test_labels, None, test_available, sequential),
    }
    return check_dataset(assembled(name, splits, class_names))


def assembled(
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
        if not named_arrays(modality, train[modality]):
            raise ValueError(f"train: modality {modality!r} has no array; give one")
    if set(test) != set(train):
        raise ValueError(
            f"test: has modalities {sorted(test)}, train has {sorted(train)}; give "
            "both the same"
        )
    ids, client_names = _numbers({s: x.clients for s, x in splits.items()})
    typed = {
        which: Split(
            {
                m: map_arrays(numeric, f"{which}, modality {m!r}", split.inputs[m])
                for m in train
            },
            _integers(split.labels),
            ids[which],
            None
            if split.available is None
            else table_of(split.available, (len(split.labels), len(train))),
            split.sequential,
        )
        for which, split in splits.items()
    }
    for m in train:
        one, other = (
            {whose: x.shape[1:] for whose, x in named_arrays(repr(m), split.inputs[m])}
            for split in typed.values()
        )
        if set(one) != set(other):
            raise ValueError(
                f"test: has arrays {sorted(other)}, train has {sorted(one)}; give both "
                "the same"
            )
        for whose, shape in one.items():
            if shape != other[whose]:
                raise ValueError(
                    f"test: a sample of {whose} has shape {other[whose]}, in train "
                    f"{shape}"
                )
    if class_names is None:
        labels = [split.labels for split in typed.values() if split.size]
        known = [y.max() for y in labels if np.issubdtype(y.dtype, np.integer)]
        largest = int(max(known, default=0))
        if largest > MOST_CLASSES:
            raise ValueError(f"labels: {largest} is no class index; give class_names")
        class_names = tuple(map(str, range(largest + 1)))
    names = tuple(class_names)
    return Dataset(
        name,
        tuple(train),
        names,
        typed["train"],
        typed["test"],
        client_names=client_names,
    )


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


def _numbers(
    clients: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Split -> ids as numbers from 0, and the names that they stand for, sorted."""
    given = {s: np.asarray(ids) for s, ids in clients.items() if ids is not None}
    given = {s: x.astype(str) if x.dtype == object else x for s, x in given.items()}
    numbers: dict[str, np.ndarray | None] = dict.fromkeys(clients)
    if not given:
        return numbers, ()
    known = np.unique(np.concatenate([ids.reshape(-1) for ids in given.values()]))
    for split, ids in given.items():
        places = np.searchsorted(known, ids.reshape(-1).astype(known.dtype))
        numbers[split] = places.astype(np.int32)
    return numbers, tuple(map(str, known))
