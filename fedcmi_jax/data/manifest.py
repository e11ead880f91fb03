"""Data of one's own in files: a CSV with a row per sample, media files beside it."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data import raw
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.places import expanded
from fedcmi_jax.data.raw.cache import prepared
from fedcmi_jax.data.raw.decoding import Item, Log, silent
from fedcmi_jax.data.raw.table import (
    CLIENT,
    LABEL,
    SPLIT,
    Row,
    classes_of,
    kinds_of,
    read_rows,
)
from fedcmi_jax.samples import SPLITS, PathOption

_TEXTS = ("text", "textfile")


class Column(NamedTuple):
    """A modality that is decoded to floats.

    Attributes:
      name: The modality.
      kind: A key of SUFFIXES.
      shape: Of one sample.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


def manifest(
    log: Log = silent,
    *,
    path: PathOption | None = None,
    kinds: tuple[str, ...] = (),
    seconds: float = 3.0,
    frames: int = 3,
    image_size: int = 224,
    tokens: int = 48,
    cache_dir: PathOption | None = None,
    workers: int = 1,
    sequential: bool = False,
) -> Dataset:
    """Files of your own, listed in a CSV: a row per sample, a column per modality.

    Columns: ``split`` (train or test), ``label`` (any name), ``client`` (any name; may
    be left out), and the modalities: a file's path, relative to the CSV, or a text. An
    empty cell: the sample lacks that modality. All files of a column are of one kind.

    audio [n, 257, T, 1]: log-spectrogram at 16 kHz, standardised per clip. image
    [n, image_size, image_size, 3] and video [n, frames, image_size, image_size, 3]:
    sides stretched, ImageNet's mean and deviation. array: the floats of .npy files of
    one shape. These are memory maps of arrays that the first call prepares. text and
    .txt files [n, tokens] int32: token ids, padded with 0, for the encoder ``text``.

    Args:
      log: Receives progress.
      path: The CSV, UTF-8, with a header line.
      kinds: Kinds that the names of a column's files do not tell, as scan=image: one of
        audio (also the sound of a video), image, video, array, textfile, text.
      seconds: Length that sound is tiled or cut to.
      frames: Frames per video, evenly spread.
      image_size: Pixels of a side.
      tokens: Tokens kept of a text; what is cut is counted in ``Dataset.notes``.
      cache_dir: Folder of prepared arrays, which may be deleted at any time; None:
        ``media`` in $FEDCMI_DATA_ROOT or in the user's cache.
      workers: Processes that prepare; 1: this one.
      sequential: Neighbouring rows of a client overlap in content, as clips of one
        recording may; what is held out is then taken in runs.

    Returns:
      The data set; classes are the labels in order, of numbers by size.

    Raises:
      ValueError: Something is missing, damaged or contradictory; names file and row.
    """
    raw.layout.check_at_least_one(frames=frames, image_size=image_size, tokens=tokens)
    if not raw.audio.SEGMENT <= seconds * raw.audio.RATE < np.inf:
        raise ValueError(f"seconds={seconds}: must be finite and at least 0.032")
    if path is None:
        raise ValueError("path: of the CSV is missing; give --dataset.path=FILE.csv")
    place = expanded(path)
    header, rows = read_rows(place)
    modalities = [name for name in header if name not in (SPLIT, LABEL, CLIENT)]
    splits = {s: [row for row in rows if row.cells[SPLIT] == s] for s in SPLITS}
    for split, found in splits.items():
        if not found:
            raise ValueError(f"{place}: no row has the split {split}; add some")
    kind_of = kinds_of(place, rows, modalities, kinds)
    classes = classes_of(row.cells[LABEL] for row in rows)
    clients = _clients(splits, CLIENT in header)
    columns = tuple(
        Column(m, kind, _shape(place, rows, m, kind, seconds, frames, image_size))
        for m, kind in kind_of.items()
        if kind not in _TEXTS
    )
    inputs, notes = _token_ids(place, splits, kind_of, tokens)
    if columns:
        media = prepared(
            place.stem,
            {s: [_item(place, row, columns) for row in splits[s]] for s in SPLITS},
            functools.partial(_decode, columns=columns, seconds=seconds),
            {column.name: column.shape for column in columns},
            root=place.parent,
            cache_dir=cache_dir,
            workers=workers,
            log=log,
        )
        inputs = {split: inputs[split] | media[split] for split in SPLITS}
    train, test = (
        _split(
            splits[s],
            {m: inputs[s][m] for m in modalities},
            classes,
            clients[s],
            sequential,
        )
        for s in SPLITS
    )
    names = raw.layout.client_names(filter(None, (r.cells.get(CLIENT) for r in rows)))
    return Dataset(place.stem, tuple(modalities), classes, train, test, notes, names)


def _split(
    rows: Sequence[Row],
    inputs: dict[str, np.ndarray],
    classes: tuple[str, ...],
    clients: np.ndarray | None,
    sequential: bool,
) -> Split:
    """A split; without a table of who has what where nothing is missing."""
    places = {name: c for c, name in enumerate(classes)}
    labels = np.array([places[row.cells[LABEL]] for row in rows], np.int32)
    has = np.array([[bool(row.cells[m]) for m in inputs] for row in rows])
    return Split(inputs, labels, clients, None if has.all() else has, sequential)


def _clients(
    splits: Mapping[str, list[Row]], known: bool
) -> dict[str, np.ndarray | None]:
    if not known:
        return dict.fromkeys(SPLITS)
    names = [[row.cells[CLIENT] for row in splits[split]] for split in SPLITS]
    return dict(zip(SPLITS, raw.layout.client_ids(*names), strict=True))


def _shape(
    path: pathlib.Path,
    rows: Sequence[Row],
    modality: str,
    kind: str,
    seconds: float,
    frames: int,
    size: int,
) -> tuple[int, ...]:
    """Shape of a sample; of arrays, that of the first file."""
    if kind == "array":
        row = next(row for row in rows if row.cells[modality])
        try:
            return raw.npy.read_npy(path.parent / row.cells[modality]).shape
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
    shapes = {
        "audio": raw.audio.spectrogram_shape(seconds),
        "image": (size, size, 3),
        "video": (frames, size, size, 3),
    }
    return shapes[kind]


def _item(path: pathlib.Path, row: Row, columns: Sequence[Column]) -> Item:
    """The files that a sample has; ``values`` are their columns' places."""
    places = [i for i, column in enumerate(columns) if row.cells[column.name]]
    sources = tuple(path.parent / row.cells[columns[i].name] for i in places)
    return Item(sources, row.where, tuple(map(float, places)))


def _decode(
    item: Item, *, columns: Sequence[Column], seconds: float
) -> dict[str, np.ndarray]:
    found = {c.name: np.zeros(c.shape, np.float32) for c in columns}
    for place, source in zip(item.values, item.sources, strict=True):
        column = columns[int(place)]
        found[column.name] = _read(column, source, seconds)
    return found


def _read(column: Column, source: pathlib.Path, seconds: float) -> np.ndarray:
    if column.kind == "array":
        return _floats(source, column.shape)
    if column.kind == "audio":
        read = raw.audio.read_wav if _is_wav(source) else raw.video.video_audio
        return raw.audio.log_spectrogram(read(source), seconds)
    if column.kind == "image":
        images = [raw.images.read_image(source)]
    else:
        frames = column.shape[0]
        images = raw.video.video_frames(source, frames, fewest=frames)
    images = [raw.images.resized(image, column.shape[-2]) for image in images]
    values = raw.images.scaled(images, raw.images.IMAGENET)
    return values if column.kind == "video" else values[0]


def _is_wav(source: pathlib.Path) -> bool:
    return source.suffix.lower() == ".wav"


def _floats(source: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    values = raw.npy.read_npy(source)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{source}: holds {values.dtype}; give floats")
    if values.shape != shape:
        raise ValueError(
            f"{source}: has shape {values.shape}, the first file of its column "
            f"{shape}; give all of a column one shape"
        )
    with np.errstate(over="ignore"):  # infinite, and refused
        floats = np.asarray(values, np.float32)
    if not np.isfinite(floats).all():
        raise ValueError(f"{source}: a value is not finite; replace the file")
    return floats


def _token_ids(
    path: pathlib.Path,
    splits: Mapping[str, list[Row]],
    kind_of: Mapping[str, str],
    tokens: int,
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """Split -> the modalities of text, and notes on what was cut."""
    ids: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
    notes = []
    for m in (m for m, kind in kind_of.items() if kind in _TEXTS):
        for split, found in splits.items():
            words = [_words(path, row, m, kind_of[m]) for row in found]
            ids[split][m] = raw.text.token_ids(words, tokens)
            if cut := sum(len(x) > tokens for x in words):
                notes.append(f"{cut} {split} texts of {m} cut to {tokens} tokens")
    return ids, tuple(notes)


def _words(path: pathlib.Path, row: Row, modality: str, kind: str) -> list[str]:
    text = row.cells[modality]
    if text and kind == "textfile":
        source = path.parent / text
        try:
            text = source.read_text("utf-8")
        except OSError as error:
            raise ValueError(f"{row.where}: {source}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{row.where}: {source}: no UTF-8 text") from None
    return raw.text.tokenize(text)
