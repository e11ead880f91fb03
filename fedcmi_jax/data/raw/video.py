"""Video: choosing and decoding frames, and the sound.

By PyAV, which brings FFmpeg's libraries in its wheel: no ffmpeg program is needed.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcmi_jax.data.raw.audio import RATE, spectrogram_shape
from fedcmi_jax.data.raw.cache import prepared
from fedcmi_jax.data.raw.decoding import Item
from fedcmi_jax.data.raw.images import evenly, library

if TYPE_CHECKING:
    from PIL.Image import Image


def frame_times(
    times: Sequence[float], start: float, end: float, fewest: int
) -> list[int]:
    """Frames at one per second, or more where that gives too few.

    Args:
      times: Ascending times of a video's frames, in seconds.
      start: First second wanted.
      end: Where to stop, in seconds.
      fewest: If one frame per second gives fewer than this, as many are taken at even
        distances.

    Returns:
      Indices into ``times``: of the first frame at or after each wanted time, or the
      last frame of all.

    Example:
      >>> frame_times([0.0, 0.5, 1.0, 1.5, 2.0], 0.0, 2.2, 3)
      [0, 2, 4]
      >>> frame_times([0.0, 0.5, 1.0, 1.5, 2.0], 0.0, 1.2, 4)
      [0, 1, 2, 2]
    """
    wanted = np.arange(start, end, 1.0)
    if len(wanted) < fewest:
        wanted = start + (end - start) * np.arange(fewest) / fewest
    # Stamps are rounded to the container's clock, a millisecond for flv.
    places = np.searchsorted(np.asarray(times), wanted - 1e-3)
    return np.minimum(places, len(times) - 1).tolist()


def video_frames(
    path: pathlib.Path,
    frames: int,
    *,
    fewest: int,
    start: float = 0.0,
    end: float | None = None,
) -> "list[Image]":
    """Frames of a video: one per second, at least ``fewest``, then ``frames`` of them.

    Args:
      path: A video that FFmpeg's libraries read.
      frames: Frames to return, evenly spread over those kept.
      fewest: See ``frame_times``.
      start: First second.
      end: Last second; None, or beyond the video: its end.

    Returns:
      ``frames`` RGB images.

    Raises:
      ValueError: The file cannot be read, has no video or a damaged frame where one is
        needed; names it.
    """
    av = library("av")
    try:
        with av.open(str(path)) as container:
            stream = _first(container.streams.video, path, "video")
            # Their stamps tell the times of all frames without decoding any.
            stamps = sorted(
                packet.pts
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size
            )
        if not stamps:
            raise ValueError(f"{path}: has no video frames; replace it")
        clock = float(stream.time_base)
        times = [(stamp - stamps[0]) * clock for stamp in stamps]
        # A frame is shown until the next; a lone one, say, for a second.
        step = times[-1] / (len(times) - 1) if len(times) > 1 else 1.0
        length = times[-1] + step
        stop = length if end is None else min(end, length)
        if start >= stop:
            raise ValueError(
                f"{path}: has {length:.1f} s of video, none after {start} s; replace it"
            )
        kept = frame_times(times, start, stop, fewest)
        chosen = [stamps[kept[i]] for i in evenly(len(kept), frames)]
        images = _decode(av, path, sorted(set(chosen)))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from None
    missing = [stamp for stamp in chosen if stamp not in images]
    if missing:
        seconds = (missing[0] - stamps[0]) * clock
        raise ValueError(
            f"{path}: the frame at {seconds:.1f} s cannot be decoded; replace it"
        )
    return [images[stamp] for stamp in chosen]


def _decode(av: Any, path: pathlib.Path, chosen: list[int]) -> "dict[int, Image]":
    """Stamp -> image: the first frame that decodes at or after each stamp."""
    images: dict[int, Image] = {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while len(images) < len(chosen) and frame.pts >= chosen[len(images)]:
                images[chosen[len(images)]] = frame.to_image()
            if len(images) == len(chosen):
                break
    return images


def video_audio(
    path: pathlib.Path, *, start: float = 0.0, end: float | None = None
) -> np.ndarray:
    """Sound of a video as mono samples at 16 kHz.

    Args:
      path: A video that FFmpeg's libraries read.
      start: First second.
      end: Last second; None, or beyond the sound: its end.

    Returns:
      [n] float32, n >= 1.

    Raises:
      ValueError: The file cannot be read, or has no sound in that time; names it.
    """
    av = library("av")

    def pieces() -> Iterator[np.ndarray]:
        with av.open(str(path)) as container:
            _first(container.streams.audio, path, "sound")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
            for frame in itertools.chain(container.decode(audio=0), [None]):
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray().reshape(-1)

    try:
        samples = np.concatenate([np.zeros(0, np.float32), *pieces()])
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from None
    last = None if end is None else round(end * RATE)
    part = samples[round(start * RATE) : last]
    if not len(part):
        raise ValueError(
            f"{path}: has {len(samples) / RATE:.1f} s of sound, none after {start} s; "
            "replace it"
        )
    return part


def _first(streams: Any, path: pathlib.Path, what: str) -> Any:
    if not streams:
        raise ValueError(f"{path}: has no {what}; replace it")
    return streams[0]


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return ValueError(f"{path}: unreadable video ({reason}); replace it")


def prepared_clips(
    name: str,
    splits: Mapping[str, Sequence[Item]],
    decode: Callable[..., dict[str, np.ndarray]],
    *,
    seconds: float,
    frames: int,
    image_size: int,
    **options: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """``cache.prepared`` of clips with a sound (``audio``) and frames (``visual``).

    Args:
      name: Data set.
      splits: Split -> its samples, in order.
      decode: A module's ``(item, frames=, image_size=) -> {modality: array}``.
      seconds: Length of the sound.
      frames: Frames of a clip.
      image_size: Side of a frame in pixels.
      **options: Of ``cache.prepared``.

    Returns:
      Split -> modality -> [n, ...] float32, read-only.
    """
    return prepared(
        name,
        splits,
        functools.partial(decode, frames=frames, image_size=image_size),
        {
            "audio": spectrogram_shape(seconds),
            "visual": (frames, image_size, image_size, 3),
        },
        **options,
    )
