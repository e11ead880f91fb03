"""Raw files of the data sets: the real ones, and small ones of the same layout."""

import gzip
import io
import os
import pathlib
import tarfile
import wave
import zipfile

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from fedcmi_jax.data.tfds import fsdd, mnist
from fedcmi_jax.data.tfds.av_mnist import AvMnist
from fedcmi_jax.data.tfds.cg_mnist import CgMnist
from fedcmi_jax.data.tfds.mnist import Mnist

REAL = pathlib.Path(os.environ.get("FEDCMI_DATA_DIR", "../shared/data")).absolute()

TRAIN_PER_CLASS, TEST_PER_CLASS, TAKES = 8, 4, 7


def real(*parts: str) -> pathlib.Path:
    """A path in the folder of real data; skips the test where it is absent."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}; set FEDCMI_DATA_DIR to the folder of the real data")
    return path


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def wav(samples: np.ndarray, rate: int = fsdd.RATE) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def write_mnist(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        labels = rng.permutation(np.repeat(np.arange(10), count))
        images = rng.integers(0, 256, size=(len(labels), 28, 28))
        for name, array in zip(mnist.FILES[split], (images, labels), strict=True):
            (folder / name).write_bytes(idx(array))


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_fsdd(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    write_tar(
        folder / fsdd.FILE,
        {
            f"fsdd-1.0.9/recordings/{digit}_{speaker}_{take}.wav": wav(
                rng.integers(-999, 999, size=500 + 10 * take)
            )
            for digit in range(10)
            for speaker in fsdd.SPEAKERS
            for take in range(TAKES)
        },
    )


def state_checksums(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the small files the ones that the builders expect."""
    for builder in (Mnist, CgMnist, AvMnist):
        table = {
            url: checksums.compute_url_info(folder / info.filename)
            for url, info in builder.url_infos.items()
        }
        monkeypatch.setattr(builder, "url_infos", table)


HAPT_SEGMENTS = (
    # experiment, volunteer, activity, begin, end
    (1, 1, 5, 11, 138),  # exactly one window
    (1, 1, 7, 139, 290),  # a transition
    (1, 1, 1, 291, 481),  # one: the second would end a sample late
    (1, 1, 2, 482, 673),  # two
    (1, 1, 3, 674, 700),  # too short
    (2, 2, 6, 1, 256),  # three, of a test volunteer
)
HAPT_LENGTH = 700


def hapt_files() -> dict[str, str]:
    """Name in RawData -> content: acc counts up, gyro down, so windows show."""
    labels = "".join(" ".join(map(str, row)) + "\n" for row in HAPT_SEGMENTS)
    files = {"labels.txt": labels}
    for who in ("exp01_user01", "exp02_user02"):
        for sensor, sign in (("acc", 1), ("gyro", -1)):
            values = sign * np.arange(3 * HAPT_LENGTH).reshape(-1, 3) / 4
            rows = (" ".join(map(str, row)) for row in values.tolist())
            files[f"{sensor}_{who}.txt"] = "\n".join(rows) + "\n"
    return files


def write_hapt(folder: pathlib.Path, **changed: str) -> pathlib.Path:
    """The unpacked data set; ``changed``: file stem -> other content."""
    raw = folder / "HAPT Data Set" / "RawData"
    raw.mkdir(parents=True)
    for name, content in hapt_files().items():
        (raw / name).write_text(changed.get(name.removesuffix(".txt"), content))
    return raw


def write_hapt_zip(folder: pathlib.Path, *extra: str) -> pathlib.Path:
    path = folder / "HAPT Data Set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in hapt_files().items():
            archive.writestr(f"HAPT Data Set/RawData/{name}", content)
        for name in extra:
            archive.writestr(name, "")
    return path
