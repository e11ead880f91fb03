"""What the loaders of official layouts share: lists of samples and their mistakes."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from fedcmi_jax.data.places import expanded

_SHOWN = 10  # names in a note

Row = TypeVar("Row")


def root_folder(root: str | None, expected: str) -> pathlib.Path:
    """The folder of a data set as distributed.

    Args:
      root: The folder, as the user gave it.
      expected: What lies in it, for the message.

    Returns:
      Its path.

    Raises:
      ValueError: It was not given or there is no such folder.

    Example:
      >>> root_folder("no/such", "train.csv and AudioWAV/")
      Traceback (most recent call last):
      ValueError: root='no/such': no such folder; give the one with train.csv and ...
    """
    if root is None:
        raise ValueError(f"root: not given; give the folder with {expected}")
    folder = expanded(root)
    if not folder.is_dir():
        raise ValueError(f"root={root!r}: no such folder; give the one with {expected}")
    return folder


def check_at_least_one(**options: int) -> None:
    """Refuses counts and sizes below 1.

    Raises:
      ValueError: Names option and value.

    Example:
      >>> check_at_least_one(frames=3)
    """
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def listed(
    path: pathlib.Path, separator: str, columns: int
) -> Iterator[tuple[str, list[str]]]:
    """Rows of a list file, each with its place.

    Args:
      path: Text in UTF-8, one row per line; empty lines are skipped.
      separator: Between the columns.
      columns: How many there must be.

    Yields:
      ("train.csv, row 12", values); rows are lines, counted from 1.

    Raises:
      ValueError: There is no such file, it is no UTF-8 text or empty, or a row has
        another number of columns; names file and row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; restore the file or give its folder as splits"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error}); replace it") from None
    if not text.strip():
        raise ValueError(f"{path}: is empty; replace it")
    # Not splitlines: tweets hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        values = line.rstrip("\r").split(separator)
        if values == [""]:
            continue
        where = f"{path}, row {number}"
        if len(values) != columns:
            raise ValueError(
                f"{where}: {len(values)} columns, expected {columns} separated by "
                f"{separator!r}; correct the row"
            )
        yield where, values


def check_classes(
    labels: np.ndarray, class_names: Sequence[str], where: pathlib.Path
) -> None:
    """Refuses a split in which a class has no sample.

    Args:
      labels: [n] integers in [0, C).
      class_names: C names.
      where: The split's list or folder, for the message.

    Raises:
      ValueError: Names the first empty class.

    Example:
      >>> check_classes(np.array([0, 0]), ("cat", "dog"), pathlib.Path("train.txt"))
      Traceback (most recent call last):
      ValueError: train.txt: class 'dog' has no sample; restore its rows
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if (counts == 0).any():
        empty = class_names[int(np.flatnonzero(counts == 0)[0])]
        raise ValueError(f"{where}: class {empty!r} has no sample; restore its rows")


def without_test_samples(
    train: Sequence[Row], test: Sequence[Row], name: Callable[[Row], str], what: str
) -> tuple[list[Row], tuple[str, ...]]:
    """Drops training rows whose source also stands in the test split.

    Args:
      train: Rows of the training split.
      test: Rows of the test split.
      name: Row -> name of its source.
      what: What a source is called, "videos".

    Returns:
      The remaining training rows, and a note if any were dropped.

    Example:
      >>> without_test_samples(["a", "b", "b"], ["b"], str, "videos")
      (['a'], ('2 training rows of 1 videos dropped, also in the test split: b',))
    """
    names = {name(row) for row in test}
    kept = [row for row in train if name(row) not in names]
    if len(kept) == len(train):
        return kept, ()
    shared = sorted(names & {name(row) for row in train})
    more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
    return kept, (
        f"{len(train) - len(kept)} training rows of {len(shared)} {what} dropped, also "
        f"in the test split: {', '.join(shared[:_SHOWN])}{more}",
    )


def client_names(samples: Iterable[str]) -> tuple[str, ...]:
    """Names of natural clients, each once, in alphabetical order.

    Example:
      >>> client_names(["b", "a", "b"])
      ('a', 'b')
    """
    return tuple(sorted(set(samples)))


def client_ids(
    train: Sequence[str], test: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Names of natural clients as numbers, the same in both splits.

    Args:
      train: n names.
      test: Names of the test samples.

    Returns:
      [n] int32 and the same for test: places in ``client_names`` of both.

    Example:
      >>> client_ids(["b", "a"], ["c"])
      (array([1, 0], dtype=int32), array([2], dtype=int32))
    """
    names = client_names((*train, *test))
    places = {name: i for i, name in enumerate(names)}
    ids = [np.array([places[n] for n in names], np.int32) for names in (train, test)]
    return ids[0], ids[1]
