"""cremad: emotions in voice and face (CREMA-D), from the official files.

Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE
Transactions on Affective Computing 2014; preprocessing of the FedCMI code (methods 0.2)
and the 6,698 / 744 split of OGM-GE (arXiv 2203.15332).
"""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data import raw
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.decoding import Item, Log, silent
from fedcmi_jax.samples import PathOption

CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
"""Neutral, happy, sad, fear, disgust, anger; the order of the labels."""

SECONDS = 3.0
"""Length of the sound after tiling (methods 0.2)."""
FEWEST_FRAMES = 3
"""Frames kept of a video shorter than as many seconds."""

_AUDIO, _VIDEO, _FRAMES = "AudioWAV", "VideoFlash", "Image-01-FPS"
_ID = re.compile(r"(\d+)_\w+_([A-Z]+)_[A-Z]+")


class Clip(NamedTuple):
    """A row of train.csv or test.csv.

    Attributes:
      id: "1088_IOM_NEU_XX": actor, sentence, emotion, level.
      actor: "1088".
      label: Place of the emotion in CLASSES.
      where: File and row.
    """

    id: str
    actor: str
    label: int
    where: str


def cremad(
    log: Log = silent,
    *,
    root: PathOption | None = None,
    splits: PathOption | None = None,
    frames: int = 3,
    image_size: int = 224,
    cache_dir: PathOption | None = None,
    workers: int = 1,
) -> Dataset:
    """CREMA-D: 7,442 clips of 91 actors, six emotions; "audio" and "visual".

    audio [n, 257, 299, 1]: log-spectrogram of 3 s at 16 kHz, standardised per clip.
    visual [n, frames, image_size, image_size, 3]: frames at one per second, at least
    three of them, resized, with ImageNet's mean and deviation. Both are memory maps of
    arrays that the first call prepares: 2.1 MB per clip at three frames.

    The folder: ``AudioWAV/<id>.wav``, ``VideoFlash/<id>.flv``, ``train.csv`` and
    ``test.csv`` with rows ``<id>,<emotion>``. A folder ``Image-01-FPS/<id>/00001.jpg``
    (frames already at one per second) is used instead of the videos where it exists.

    Args:
      log: Receives progress.
      root: Folder of the data set.
      splits: Folder of train.csv and test.csv; None: root.
      frames: Frames per clip, F, evenly spread over those kept (public code: 2).
      image_size: Pixels of a side.
      cache_dir: Folder of prepared arrays, which may be deleted at any time; None:
        ``media`` in $FEDCMI_DATA_ROOT or in the user's cache.
      workers: Processes that prepare; 1: this one.

    Returns:
      The data set; natural clients are the actors.

    Raises:
      ValueError: Something is missing, damaged or contradictory; names file and row.
    """
    raw.layout.check_at_least_one(frames=frames, image_size=image_size)
    folder = raw.layout.root_folder(
        root, f"{_AUDIO}/, {_VIDEO}/ or {_FRAMES}/, train.csv and test.csv"
    )
    lists = folder if splits is None else pathlib.Path(splits)
    train, test = read_split(lists / "train.csv"), read_split(lists / "test.csv")
    train, notes = raw.layout.without_test_samples(train, test, lambda c: c.id, "clips")
    clients = raw.layout.client_ids([c.actor for c in train], [c.actor for c in test])
    labels = [np.array([c.label for c in clips], np.int32) for clips in (train, test)]
    raw.layout.check_classes(labels[0], CLASSES, lists / "train.csv")
    raw.layout.check_classes(labels[1], CLASSES, lists / "test.csv")
    inputs = raw.video.prepared_clips(
        "cremad",
        {
            "train": [_item(folder, clip) for clip in train],
            "test": [_item(folder, clip) for clip in test],
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
        name="cremad",
        modalities=("audio", "visual"),
        class_names=CLASSES,
        train=Split(inputs["train"], labels[0], clients[0]),
        test=Split(inputs["test"], labels[1], clients[1]),
        notes=notes,
        client_names=raw.layout.client_names(c.actor for c in (*train, *test)),
    )


def read_split(path: pathlib.Path) -> list[Clip]:
    """Rows of train.csv or test.csv.

    Args:
      path: The file; rows ``1088_IOM_NEU_XX,NEU``.

    Returns:
      The clips, in order.

    Raises:
      ValueError: The file is missing, or a row has another form, an unknown emotion or
        one that its file name contradicts; names file and row.
    """
    clips = []
    for where, (clip, emotion) in raw.layout.listed(path, ",", 2):
        match = _ID.fullmatch(clip)
        if match is None:
            raise ValueError(
                f"{where}: {clip!r} is no clip such as 1088_IOM_NEU_XX; correct the row"
            )
        if emotion not in CLASSES:
            raise ValueError(
                f"{where}: unknown class {emotion!r}; use one of {', '.join(CLASSES)}"
            )
        if match[2] != emotion:
            raise ValueError(
                f"{where}: {clip} is labelled {emotion}, its name says {match[2]}; "
                "correct the row"
            )
        clips.append(Clip(clip, match[1], CLASSES.index(emotion), where))
    return clips


def _item(folder: pathlib.Path, clip: Clip) -> Item:
    sound = folder / _AUDIO / f"{clip.id}.wav"
    if not (folder / _FRAMES).is_dir():
        return Item((sound, folder / _VIDEO / f"{clip.id}.flv"), clip.where)
    images = sorted((folder / _FRAMES / clip.id).glob("*.jpg"))
    if not images:
        raise ValueError(
            f"{clip.where}: {folder / _FRAMES / clip.id} has no .jpg; restore the "
            f"frames, or remove {_FRAMES} to use {_VIDEO}"
        )
    return Item((sound, *images), clip.where)


def _decode(item: Item, *, frames: int, image_size: int) -> dict[str, np.ndarray]:
    sound, *pictures = item.sources
    if pictures[0].suffix == ".jpg":
        chosen = raw.images.evenly(len(pictures), frames)
        images = [raw.images.read_image(pictures[i]) for i in chosen]
    else:
        images = raw.video.video_frames(pictures[0], frames, fewest=FEWEST_FRAMES)
    images = [raw.images.resized(image, image_size) for image in images]
    return {
        "audio": raw.audio.log_spectrogram(raw.audio.read_wav(sound), SECONDS),
        "visual": raw.images.scaled(images, raw.images.IMAGENET),
    }
