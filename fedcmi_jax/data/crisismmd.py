"""crisismmd: tweets from seven disasters, image and text, informative or not.

Alam et al., "CrisisMMD: Multimodal Twitter Datasets from Natural Disasters", ICWSM
2018, version 2.0; split of Ofli et al., "Analysis of Social Media Data using Multimodal
Deep Learning for Disaster Response", ISCRAM 2020.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data import raw
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.places import expanded
from fedcmi_jax.data.raw.cache import prepared
from fedcmi_jax.data.raw.decoding import Item, Log, silent
from fedcmi_jax.samples import PathOption

CLASSES = ("not_informative", "informative")
"""The order of the labels."""
COLUMNS = (
    "event_name",
    "tweet_id",
    "image_id",
    "tweet_text",
    "image",
    "label",
    "label_text",
    "label_image",
    "label_text_image",
)
"""Header line of the lists."""

CROP_MARGIN = 4
"""Pixels by which images are larger before the crop: 228 for 224 (methods 0.2)."""

_LISTS = "crisismmd_datasplit_all"


class Tweet(NamedTuple):
    """A row of task_informative_text_img_{train,dev,test}.tsv.

    Attributes:
      event: "hurricane_harvey".
      tweet_id: A tweet with several images has several rows.
      text: As in the file.
      image: Path below the data set's folder.
      label: Place in CLASSES.
      where: File and row.
    """

    event: str
    tweet_id: str
    text: str
    image: str
    label: int
    where: str


def crisismmd(
    log: Log = silent,
    *,
    root: PathOption | None = None,
    splits: PathOption | None = None,
    tokens: int = 48,
    text_features: PathOption | None = None,
    image_size: int = 224,
    cache_dir: PathOption | None = None,
    workers: int = 1,
) -> Dataset:
    """CrisisMMD: 13,608 training and 2,237 test tweets; "image" and "text".

    image [n, image_size, image_size, 3]: padded to a square, resized, the middle cut
    out, in [-1, 1]; a memory map of an array that the first call prepares, 0.6 MB per
    tweet. text [n, tokens] int32: token ids of the cleaned tweet, padded with 0, for
    the encoder ``text``; or [n, F] float32 features of your own, for ``mlp``.

    The folder: ``data_image/...`` and the task_informative_text_img_{train,test}.tsv in
    ``crisismmd_datasplit_all``. The label is the column ``label``.

    Args:
      log: Receives progress.
      root: Folder of the data set.
      splits: Folder of the .tsv; None: crisismmd_datasplit_all in root.
      tokens: Tokens kept of a tweet, T; what is cut is counted in ``Dataset.notes``.
      text_features: File .npy with a [n, F] array, such as a language model's, to use
        instead of tokens: the rows of the training list in order, then those of the
        test list.
      image_size: Pixels of a side.
      cache_dir: Folder of prepared arrays, which may be deleted at any time; None:
        ``media`` in $FEDCMI_DATA_ROOT or in the user's cache.
      workers: Processes that prepare; 1: this one.

    Returns:
      The data set; natural clients are the seven events.

    Raises:
      ValueError: Something is missing, damaged or contradictory; names file and row.
    """
    raw.layout.check_at_least_one(tokens=tokens, image_size=image_size)
    folder = raw.layout.root_folder(root, f"data_image/ and {_LISTS}/")
    lists = folder / _LISTS if splits is None else pathlib.Path(splits)
    paths = [lists / f"task_informative_text_img_{s}.tsv" for s in ("train", "test")]
    train, test = (read_split(path) for path in paths)
    if text_features is None:
        texts, notes = _token_ids((train, test), tokens)
    else:
        texts, notes = _features(text_features, (len(train), len(test))), ()
    events = raw.layout.client_ids([t.event for t in train], [t.event for t in test])

    labels = [np.array([t.label for t in tweets], np.int32) for tweets in (train, test)]
    raw.layout.check_classes(labels[0], CLASSES, paths[0])
    raw.layout.check_classes(labels[1], CLASSES, paths[1])
    inputs = prepared(
        "crisismmd",
        {
            "train": [_item(folder, tweet) for tweet in train],
            "test": [_item(folder, tweet) for tweet in test],
        },
        functools.partial(_decode, image_size=image_size),
        {"image": (image_size, image_size, 3)},
        root=folder,
        cache_dir=cache_dir,
        workers=workers,
        log=log,
    )
    return Dataset(
        name="crisismmd",
        modalities=("image", "text"),
        class_names=CLASSES,
        train=Split(inputs["train"] | {"text": texts[0]}, labels[0], events[0]),
        test=Split(inputs["test"] | {"text": texts[1]}, labels[1], events[1]),
        notes=notes,
        client_names=raw.layout.client_names(t.event for t in (*train, *test)),
    )


def read_split(path: pathlib.Path) -> list[Tweet]:
    """Rows of a task_informative_text_img_*.tsv.

    Args:
      path: The file; a header line and nine columns.

    Returns:
      The tweets, in order.

    Raises:
      ValueError: The file is missing, its header is another, or a row has another
        number of columns, an unknown label or an image outside the data set's folder;
        names file and row.
    """
    rows = raw.layout.listed(path, "\t", len(COLUMNS))
    where, header = next(rows)
    if tuple(header) != COLUMNS:
        raise ValueError(
            f"{where}: header {header}, expected {list(COLUMNS)}; replace the file"
        )
    tweets = []
    for where, values in rows:
        event, tweet_id, _, text, image, label, *_ = values
        if label not in CLASSES:
            raise ValueError(
                f"{where}: unknown class {label!r}; use one of {', '.join(CLASSES)}"
            )
        relative = pathlib.PurePosixPath(image)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(
                f"{where}: image {image!r} is outside the data set's folder; correct "
                "the row"
            )
        tweets.append(Tweet(event, tweet_id, text, image, CLASSES.index(label), where))
    return tweets


def _token_ids(
    splits: Sequence[list[Tweet]], length: int
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    tokenized = [
        [raw.text.tokenize(raw.text.clean(tweet.text)) for tweet in split]
        for split in splits
    ]
    cut = sum(len(tokens) > length for split in tokenized for tokens in split)
    note = f"{cut} tweets cut to their first {length} tokens"
    return [raw.text.token_ids(split, length) for split in tokenized], (note,) * bool(
        cut
    )


def _features(path: str, sizes: tuple[int, int]) -> list[np.ndarray]:
    """The training and the test rows of a file of features."""
    where = f"text_features={path!r}"
    try:
        values = np.load(expanded(path), "r", allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "no .npy file"
        raise ValueError(f"{where}: {reason}; give a file of numpy.save") from None
    except (ValueError, EOFError):
        raise ValueError(f"{where}: no .npy file; give one of numpy.save") from None
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 2
        or values.dtype != np.float32
        or len(values) != sum(sizes)
    ):
        about = f"{values.dtype} {values.shape}" if hasattr(values, "dtype") else "npz"
        raise ValueError(
            f"{where}: holds {about}, expected float32 ({sum(sizes)}, F): {sizes[0]} "
            f"training rows, then {sizes[1]} test rows"
        )
    return [values[: sizes[0]], values[sizes[0] :]]


def _item(folder: pathlib.Path, tweet: Tweet) -> Item:
    return Item((folder / tweet.image,), tweet.where)


def _decode(item: Item, *, image_size: int) -> dict[str, np.ndarray]:
    image = raw.images.padded_to_square(raw.images.read_image(item.sources[0]))
    image = raw.images.resized(image, image_size + CROP_MARGIN)
    image = raw.images.center_crop(image, image_size)
    return {"image": raw.images.scaled([image], raw.images.HALVES)[0]}
