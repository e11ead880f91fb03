"""A CSV that lists samples, and what its columns hold."""

import csv
import io
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fedcmi_jax.samples import SPLITS

SPLIT, LABEL, CLIENT = "split", "label", "client"
"""Columns that are no modality; client may be missing."""

SUFFIXES = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
    "image": (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    "video": (".mp4", ".avi", ".flv", ".mkv", ".mov", ".mpg", ".webm"),
    "textfile": (".txt",),
    "array": (".npy",),
    "text": (),
}
"""Kind of a modality -> ends of its files' names; text stands in the cells."""
_KIND_OF = {suffix: kind for kind, ends in SUFFIXES.items() for suffix in ends}


class Row(NamedTuple):
    """A row of the manifest.

    Attributes:
      where: File and row.
      cells: Column -> value, "" where there is none.
    """

    where: str
    cells: dict[str, str]


def read_rows(path: pathlib.Path) -> tuple[list[str], list[Row]]:
    """Header and rows of a manifest.

    Args:
      path: The CSV.

    Returns:
      The names of the columns, and the rows.

    Raises:
      ValueError: The file is missing or no CSV, a column is missing or stands twice, or
        a row has another number of columns, no label, no client where there is such a
        column, another split than train and test, or no modality; names file and row.
    """
    lines = _lines(path)
    _, header = next(lines, ("", []))
    header = [name.strip() for name in header]
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"{path}, row 1: a column has no name, or one's; correct it")
    if not {SPLIT, LABEL} < set(header) or set(header) == {SPLIT, LABEL, CLIENT}:
        raise ValueError(
            f"{path}, row 1: columns {header}; give split, label and one for each "
            "modality"
        )
    rows = []
    for where, values in lines:
        if len(values) != len(header):
            raise ValueError(
                f"{where}: {len(values)} columns, the header has {len(header)}; "
                "correct the row, with quotes around a text that has commas"
            )
        cells = {n: v.strip() for n, v in zip(header, values, strict=True)}
        if cells[SPLIT] not in SPLITS:
            raise ValueError(
                f"{where}: {cells[SPLIT]!r} is no split; give train or test "
                "(--validation-fraction takes validation samples out of train)"
            )
        for name in (LABEL, CLIENT):
            if not cells.get(name, "-"):
                raise ValueError(f"{where}: has no {name}; give one or drop the row")
        if not any(v for n, v in cells.items() if n not in (SPLIT, LABEL, CLIENT)):
            raise ValueError(f"{where}: the sample has no modality; drop the row")
        rows.append(Row(where, cells))
    return header, rows


def _lines(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """("FILE, row 12", values); rows are counted by lines, a text may have several."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"path: {path}: {error.strerror}; give a CSV file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error}); save it as such") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = 1
    try:
        for values in reader:
            if values:
                yield f"{path}, row {first}", values
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, row {first}: no CSV ({error}); correct it") from None


def kinds_of(
    path: pathlib.Path,
    rows: Sequence[Row],
    modalities: Sequence[str],
    given: Sequence[str] = (),
) -> dict[str, str]:
    """The kind of every modality: as given, else by the names of its files.

    Args:
      path: The CSV, for messages.
      rows: Its rows.
      modalities: Names of the columns.
      given: Kinds that the names do not tell, "scan=image".

    Returns:
      Modality -> a key of SUFFIXES.

    Raises:
      ValueError: Names of a column tell different kinds, a column is empty, or what is
        given names no modality or kind.
    """
    chosen = {}
    for entry in given:
        name, _, kind = entry.partition("=")
        if name not in modalities or kind not in SUFFIXES:
            raise ValueError(
                f"kinds: {entry!r} is no modality=kind; modalities are "
                f"{', '.join(modalities)}, kinds {', '.join(SUFFIXES)}"
            )
        chosen[name] = kind
    for m in modalities:
        first = ""
        for row in rows if m not in chosen else ():
            if not row.cells[m]:
                continue
            suffix = pathlib.PurePath(row.cells[m]).suffix.lower()
            kind = _KIND_OF.get(suffix, "text")
            first = first or kind
            if kind != first:
                raise ValueError(
                    f"{row.where}: {m} is {row.cells[m][:40]!r}, by its end {kind}, "
                    f"and {first} before; give --dataset.kinds={m}=KIND or correct it"
                )
        if not first and m not in chosen:
            raise ValueError(f"{path}: the column {m} is empty; drop it")
        chosen.setdefault(m, first)
    return {m: chosen[m] for m in modalities}


def classes_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Names of the classes in order; of whole numbers, by size.

    Example:
      >>> classes_of(["10", "9", "9"]), classes_of(["b", "a"])
      (('9', '10'), ('a', 'b'))
    """
    names = set(labels)
    numbers = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda n: (int(n), n) if numbers else (0, n)))
