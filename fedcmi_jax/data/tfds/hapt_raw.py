"""The raw recordings of HAPT: from its folder or its zip file, checked row by row."""

import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.raw import zips

ACTIVITIES = 12
"""Labels 1 to 12; the first six are basic activities, the others transitions."""

EXPERIMENTS, VOLUNTEERS = 61, 30
"""Recordings and persons, both numbered from 1."""

WINDOW, STRIDE = 128, 64
"""Samples per window (2.56 s at 50 Hz) and between windows: half of it overlaps."""

_AXES = 3
_DIGITS = 9
"""Of a number in labels.txt; longer ones are no 32-bit integers."""
_FOLDER = "RawData"
_LABELS = "labels.txt"
_AGAIN = "get the data set again"

Read = Callable[[str], tuple[str, bytes]]
"""Name of a file in RawData -> where it was found, for messages, and its content."""


class Segment(NamedTuple):
    """One row of labels.txt: what a volunteer did from sample begin to sample end.

    Attributes:
      row: Row of the file, from 1.
      experiment: Number of the recording.
      volunteer: Number of the person, 1 to 30.
      activity: 1 to 12.
      begin: First sample, from 1.
      end: Last sample, inclusive.
    """

    row: int
    experiment: int
    volunteer: int
    activity: int
    begin: int
    end: int


def opened(path: pathlib.Path) -> Read:
    """Reads the files of the data set, unpacked or zipped.

    Args:
      path: A zip file with a folder RawData at any depth; or that folder; or the folder
        that holds it.

    Returns:
      The reading function. It raises ValueError where a file is missing or damaged.

    Raises:
      ValueError: The zip file is damaged or too large (`zips`), has a member that would
        be unpacked outside its folder, or has no RawData/labels.txt.
    """
    return _opened_zip(path) if path.is_file() else _opened_folder(path)


def _opened_folder(path: pathlib.Path) -> Read:
    folder = path / _FOLDER if (path / _FOLDER).is_dir() else path

    def read(name: str) -> tuple[str, bytes]:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file}: missing; {_AGAIN}")
        return str(file), file.read_bytes()

    return read


def _opened_zip(path: pathlib.Path) -> Read:
    found = zips.members(path)
    zips.check_sizes(path, found)
    members = [member.filename for member in found]
    for member in members:
        # Windows paths know both kinds of slash, and drives.
        as_path = pathlib.PureWindowsPath(member)
        if ".." in as_path.parts or as_path.anchor:
            raise ValueError(
                f"{path}: member {member!r} leads out of the folder; {_AGAIN}"
            )
    suffix = f"{_FOLDER}/{_LABELS}"
    inside = [m for m in members if m == suffix or m.endswith(f"/{suffix}")]
    if not inside:
        raise ValueError(f"{path}: has no {suffix}; {_AGAIN}")
    prefix = inside[0].removesuffix(_LABELS)

    def read(name: str) -> tuple[str, bytes]:
        where = f"{path}: {prefix}{name}"
        try:
            with zipfile.ZipFile(path) as archive:
                return where, archive.read(prefix + name)
        except KeyError:
            raise ValueError(f"{where}: missing; {_AGAIN}") from None
        except zips.DAMAGES as error:
            raise ValueError(f"{where}: damaged ({error}); {_AGAIN}") from None

    return read


def read_segments(read: Read) -> list[Segment]:
    """The rows of labels.txt.

    Args:
      read: As ``opened`` returns it.

    Returns:
      The segments in the order of the file.

    Raises:
      ValueError: A row has not five whole numbers, an unknown experiment, volunteer or
        activity, or an empty range; names file and row.
    """
    where, content = read(_LABELS)
    segments = []
    for row, line in enumerate(content.decode("latin-1").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 5 or not all(field.isdecimal() for field in fields):
            raise ValueError(
                f"{where}, row {row}: {line!r} is not five whole numbers; {_AGAIN}"
            )
        if any(len(field) > _DIGITS for field in fields):
            raise ValueError(
                f"{where}, row {row}: a number has more than {_DIGITS} digits; {_AGAIN}"
            )
        segment = Segment(row, *map(int, fields))
        for name, most in (("experiment", EXPERIMENTS), ("volunteer", VOLUNTEERS)):
            if not 1 <= getattr(segment, name) <= most:
                raise ValueError(
                    f"{where}, row {row}: {name} {getattr(segment, name)} is not one "
                    f"of 1 to {most}; {_AGAIN}"
                )
        if not 1 <= segment.activity <= ACTIVITIES:
            raise ValueError(
                f"{where}, row {row}: unknown activity {segment.activity}, expected 1 "
                f"to {ACTIVITIES}; {_AGAIN}"
            )
        if not 1 <= segment.begin <= segment.end:
            raise ValueError(
                f"{where}, row {row}: samples {segment.begin} to {segment.end} are no "
                f"range; {_AGAIN}"
            )
        segments.append(segment)
    if not segments:
        raise ValueError(f"{where}: empty; {_AGAIN}")
    return segments


def read_signal(read: Read, name: str) -> np.ndarray:
    """One recording of one sensor.

    Args:
      read: As ``opened`` returns it.
      name: File in RawData.

    Returns:
      [samples, 3] float32, 50 samples per second: units g (acc) or rad/s (gyro).

    Raises:
      ValueError: A row has not three finite numbers; names file and row.
    """
    where, content = read(name)
    rows = [line.split() for line in content.decode("latin-1").splitlines()]
    try:
        values = np.array(rows, np.float32)
    except ValueError:
        values = np.empty(0, np.float32)
    if values.shape != (len(rows), _AXES) or not np.isfinite(values).all():
        raise ValueError(f"{where}{_first_mistake(rows)}; {_AGAIN}")
    return values


def _first_mistake(rows: list[list[str]]) -> str:
    """What is wrong with the first bad row of a recording, and where."""
    for row, fields in enumerate(rows, start=1):
        if len(fields) != _AXES:
            return f", row {row}: {len(fields)} columns, expected {_AXES}"
        try:
            finite = np.isfinite(np.array(fields, np.float32)).all()
        except ValueError:
            return f", row {row}: {' '.join(fields)!r} are not numbers"
        if not finite:
            return f", row {row}: {' '.join(fields)!r} is not finite"
    return ": empty"


class Window(NamedTuple):
    """128 samples of both sensors within one segment.

    Attributes:
      segment: Where it was cut.
      acc: [128, 3] float32, acceleration in g, gravity included.
      gyro: [128, 3] float32, angular velocity in rad/s.
    """

    segment: Segment
    acc: np.ndarray
    gyro: np.ndarray


def windows(read: Read, activities: int) -> Iterator[Window]:
    """Windows of all segments of the first activities, by recording and time.

    Within a segment: starts b - 1, b - 1 + 64... as long as start + 128 <= e, with the
    file's b and e, counted from 1 and inclusive.

    Args:
      read: As ``opened`` returns it.
      activities: How many activities, from number 1, to cut windows from.

    Yields:
      The windows.

    Raises:
      ValueError: A file is missing or damaged, the sensors' recordings differ in
        length, or a segment ends behind its recording; names file and row.
    """
    by_recording: dict[tuple[int, int], list[Segment]] = {}
    for segment in read_segments(read):
        key = (segment.experiment, segment.volunteer)
        by_recording.setdefault(key, []).append(segment)
    for (experiment, volunteer), segments in by_recording.items():
        suffix = f"exp{experiment:02d}_user{volunteer:02d}.txt"
        acc, gyro = (read_signal(read, f"{s}_{suffix}") for s in ("acc", "gyro"))
        last = max(segments, key=lambda s: s.end)
        for sensor, signal in (("acc", acc), ("gyro", gyro)):
            if last.end > len(signal):
                raise ValueError(
                    f"{sensor}_{suffix}: truncated, {len(signal)} rows, but row "
                    f"{last.row} of {_LABELS} ends at {last.end}; {_AGAIN}"
                )
        if len(acc) != len(gyro):
            raise ValueError(
                f"{suffix}: {len(acc)} rows of acc but {len(gyro)} of gyro; {_AGAIN}"
            )
        for segment in segments:
            if segment.activity <= activities:
                for start in range(segment.begin - 1, segment.end - WINDOW + 1, STRIDE):
                    rows = slice(start, start + WINDOW)
                    yield Window(segment, acc[rows], gyro[rows])
