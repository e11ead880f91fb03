"""ave: audio-visual events, 28 classes, from the official files.

Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018;
preprocessing of the FedCMI code (methods 0.2).
"""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data import raw
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.decoding import Item, Log, silent
from fedcmi_jax.samples import PathOption

SECONDS = 10.0
"""Length of the sound after tiling (methods 0.2)."""
FEWEST_FRAMES = 10
"""Frames kept of an event shorter than as many seconds."""

_ID = re.compile(r"[\w-]+")


class Event(NamedTuple):
    """A row of trainSet.txt, valSet.txt, testSet.txt or Annotations.txt.

    Attributes:
      class_name: "Church bell".
      id: Of the video.
      start: First second of the event.
      end: Its last.
      where: File and row.
    """

    class_name: str
    id: str
    start: float
    end: float
    where: str


def ave(
    log: Log = silent,
    *,
    root: PathOption | None = None,
    splits: PathOption | None = None,
    frames: int = 4,
    image_size: int = 224,
    cache_dir: PathOption | None = None,
    workers: int = 1,
) -> Dataset:
    """AVE: 3,329 training and 402 test events of 28 classes; "audio" and "visual".

    audio [n, 257, 1004, 1]: log-spectrogram of the event's sound at 16 kHz, repeated to
    10 s, standardised per event. visual [n, frames, image_size, image_size, 3]: the
    event's frames at one per second, at least ten of them, resized, with ImageNet's
    mean and deviation. Both are memory maps of arrays that the first call prepares: 3.4
    MB per event at four frames.

    The folder: ``AVE/<id>.mp4``, ``trainSet.txt`` and ``testSet.txt`` with rows
    ``<class>&<id>&<quality>&<start>&<end>``. The order of the classes is that of their
    first rows in testSet.txt. Rows with start = end, and training rows of videos that
    the test split has too, are dropped and counted in ``Dataset.notes``.

    Args:
      log: Receives progress.
      root: Folder of the data set.
      splits: Folder of trainSet.txt and testSet.txt; None: root.
      frames: Frames per event, F, evenly spread over those kept (public command: 4).
      image_size: Pixels of a side.
      cache_dir: Folder of prepared arrays, which may be deleted at any time; None:
        ``media`` in $FEDCMI_DATA_ROOT or in the user's cache.
      workers: Processes that prepare; 1: this one.

    Returns:
      The data set; it has no natural clients.

    Raises:
      ValueError: Something is missing, damaged or contradictory; names file and row.
    """
    raw.layout.check_at_least_one(frames=frames, image_size=image_size)
    folder = raw.layout.root_folder(root, "AVE/, trainSet.txt and testSet.txt")
    lists = folder if splits is None else pathlib.Path(splits)
    test = read_split(lists / "testSet.txt")
    class_names = tuple(dict.fromkeys(event.class_name for event in test))
    train = read_split(lists / "trainSet.txt", class_names)
    train, empty_train = without_empty_events(train)
    test, empty_test = without_empty_events(test)
    train, shared = raw.layout.without_test_samples(
        train, test, lambda e: e.id, "videos"
    )

    labels = [
        np.array([class_names.index(e.class_name) for e in events], np.int32)
        for events in (train, test)
    ]
    raw.layout.check_classes(labels[0], class_names, lists / "trainSet.txt")
    raw.layout.check_classes(labels[1], class_names, lists / "testSet.txt")
    inputs = raw.video.prepared_clips(
        "ave",
        {
            "train": [_item(folder, event) for event in train],
            "test": [_item(folder, event) for event in test],
        },
        _decode,
        seconds=SECONDS,
        frames=frames,
        image_size=image_size,
        root=folder,
        cache_dir=cache_dir,
        workers=workers,
        log=log,
    )
    return Dataset(
        name="ave",
        modalities=("audio", "visual"),
        class_names=class_names,
        train=Split(inputs["train"], labels[0]),
        test=Split(inputs["test"], labels[1]),
        notes=(*empty_train, *empty_test, *shared),
    )


def read_split(
    path: pathlib.Path, class_names: Sequence[str] | None = None
) -> list[Event]:
    """Rows of a list of AVE; none of these files has a header line.

    Args:
      path: The file; rows ``Church bell&EsfJpLbBeb4&good&0&10``.
      class_names: Known classes; None: any.

    Returns:
      The events, in order, empty ones included.

    Raises:
      ValueError: The file is missing, or a row has another form, an unknown class or
        impossible times; names file and row.
    """
    events = []
    for where, (name, video, _, *times) in raw.layout.listed(path, "&", 5):
        if class_names is not None and name not in class_names:
            raise ValueError(
                f"{where}: unknown class {name!r}, testSet.txt has none of it; correct "
                "the row"
            )
        if not _ID.fullmatch(video):
            raise ValueError(f"{where}: {video!r} is no video's id; correct the row")
        try:
            start, end = map(float, times)
        except ValueError:
            start, end = 0.0, -1.0
        if not 0 <= start <= end < float("inf"):
            raise ValueError(
                f"{where}: start {times[0]!r} and end {times[1]!r} are no stretch of "
                "seconds; correct the row"
            )
        events.append(Event(name, video, start, end, where))
    return events


def without_empty_events(
    events: Sequence[Event],
) -> tuple[list[Event], tuple[str, ...]]:
    """Drops events that end where they start.

    Args:
      events: Any events.

    Returns:
      The others, and a note if any were dropped.

    Example:
      >>> without_empty_events([Event("Bark", "x", 0, 0, "trainSet.txt, row 7")])
      ([], ('1 events dropped, they end where they start: trainSet.txt, row 7',))
    """
    kept = [event for event in events if event.end > event.start]
    empty = [event.where for event in events if event.end <= event.start]
    if not empty:
        return kept, ()
    return kept, (
        f"{len(empty)} events dropped, they end where they start: {'; '.join(empty)}",
    )


def _item(folder: pathlib.Path, event: Event) -> Item:
    source = folder / "AVE" / f"{event.id}.mp4"
    return Item((source,), event.where, (event.start, event.end))


def _decode(item: Item, *, frames: int, image_size: int) -> dict[str, np.ndarray]:
    (path,), (start, end) = item.sources, item.values
    images = raw.video.video_frames(
        path, frames, fewest=FEWEST_FRAMES, start=start, end=end
    )
    images = [raw.images.resized(image, image_size) for image in images]
    sound = raw.video.video_audio(path, start=start, end=end)
    return {
        "audio": raw.audio.log_spectrogram(sound, SECONDS),
        "visual": raw.images.scaled(images, raw.images.IMAGENET),
    }
