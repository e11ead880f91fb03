"""The Free Spoken Digit Dataset v1.0.9: 2,500 recordings of five speakers."""

import io
import pathlib
import re
import tarfile
import wave
import zlib
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.raw.zips import LARGEST_ALL, LARGEST_MEMBER
from fedcmi_jax.data.tfds.download import url_info

FILE = "free-spoken-digit-dataset-1.0.9.tar.gz"
URL_INFOS = {
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz": (
        url_info(
            11_975_353,
            "8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0",
            FILE,
        )
    )
}
"""URL -> size, sha256 and name of the archive."""

SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
"""In alphabetical order; the index is a speaker's client id."""

TEST_TAKES = 5
"""Takes 0 to 4 of each speaker and digit are the official test split."""

RATE = 8000
"""Samples per second; mono, 16 bit."""

_NAME = re.compile(r".*/recordings/([0-9])_([a-z]+)_([0-9]{1,4})\.wav")


class Recording(NamedTuple):
    """One spoken digit.

    Attributes:
      digit: Its class, 0 to 9.
      speaker: Index into SPEAKERS.
      take: Number of the recording of this speaker and digit, from 0.
      audio: [samples] int16.
    """

    digit: int
    speaker: int
    take: int
    audio: np.ndarray


def read_recordings(path: pathlib.Path) -> list[Recording]:
    """All recordings of the archive, sorted by digit, speaker and take.

    Nothing is unpacked to the disk.

    Args:
      path: The .tar.gz archive.

    Returns:
      The recordings.

    Raises:
      ValueError: Archive or recording are damaged or too large, a recording is a link,
        a name or speaker is unknown, or there are none; names archive and recording.
    """
    found = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            unpacked = 0
            for member in archive:
                unpacked += member.size
                if member.size > LARGEST_MEMBER or unpacked > LARGEST_ALL:
                    raise ValueError(
                        f"{path}: {member.name} makes it unpack to more than such an "
                        "archive has; get the file again"
                    )
                if member.name.endswith(".wav"):
                    found.append(_recording(f"{path}: {member.name}", archive, member))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); get the file again") from None
    if not found:
        raise ValueError(f"{path}: holds no recordings; get the file again")
    return sorted(found, key=lambda r: (r.digit, r.speaker, r.take))


def _recording(
    where: str, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> Recording:
    match = _NAME.fullmatch(where)
    if match is None or match[2] not in SPEAKERS:
        raise ValueError(
            f"{where}: expected <digit>_<speaker>_<take>.wav with a speaker of "
            f"{', '.join(SPEAKERS)}; get the archive again"
        )
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise ValueError(f"{where}: is a link, or no file; get the archive again")
    audio = read_wav(where, file.read())
    return Recording(int(match[1]), SPEAKERS.index(match[2]), int(match[3]), audio)


def read_wav(where: str, content: bytes) -> np.ndarray:
    """Samples of a mono 16-bit recording at 8 kHz.

    Args:
      where: Name for messages.
      content: The .wav file.

    Returns:
      [samples] int16, at least one.

    Raises:
      ValueError: It is damaged, truncated, empty or of another kind.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            count = file.getnframes()
            frames = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{where}: damaged ({error}); get it again") from None
    if kind != (RATE, 1, 2):
        raise ValueError(
            f"{where}: rate, channels and bytes are {kind}, expected {(RATE, 1, 2)}; "
            "get it again"
        )
    if not 0 < len(frames) == 2 * count:
        raise ValueError(
            f"{where}: truncated, {len(frames) // 2} of {count} samples; get it again"
        )
    return np.frombuffer(frames, "<i2")
