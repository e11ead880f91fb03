"""HAPT as FedMultimodal (arXiv 2306.09486) has UCI-HAR: windows, dev set, clients.

UCI-HAR (its README.txt) comes from recordings like HAPT's, filtered before they are
cut: a median filter and a low pass of 20 Hz against noise (Butterworth, third order),
and another of 0.3 Hz whose output, gravity, is taken away from the acceleration. HAPT's
raw recordings have neither. The width of the median and the phase are not published;
here they are three samples and zero.
"""

import pathlib

import numpy as np
from scipy import signal

import fedcmi_jax as fc
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.data.tfds.hapt import ACTIVITIES, NAMES, TEST_VOLUNTEERS
from fedcmi_jax.data.tfds.hapt_raw import Read, Window, opened, windows
from fedcmi_jax.partition import Partition
from fedcmi_jax.samples import Split

RATE = 50.0
"""Samples per second."""

NOISE, GRAVITY, ORDER, MEDIAN = 20.0, 0.3, 3, 3


DEV = 5
"""One of so many windows of a volunteer is for dev."""

PER_VOLUNTEER, FEWEST = 5, 5
MAX_DRAWS = 100_000
"""Of a volunteer's split; the public code draws without end."""


def deal(
    train: Split, alpha: float, rng: np.random.Generator
) -> tuple[Partition, np.ndarray]:
    """The clients' windows, and the rows of the dev set.

    Args:
      train: Windows of all volunteers.
      alpha: Concentration.
      rng: Source of all draws.
    """
    owners = np.asarray(train.clients)
    dev = []
    for volunteer in np.unique(owners):
        rows = rng.permutation(np.flatnonzero(owners == volunteer))
        dev.append(rows[: len(rows) // DEV])
    held = np.concatenate(dev)
    rest = np.setdiff1d(np.arange(train.size), held)
    part = fc.partition.natural_dirichlet(
        Split({}, train.labels[rest], owners[rest]),
        0,
        rng,
        per_client=PER_VOLUNTEER,
        alpha=alpha,
        min_samples=FEWEST,
        max_retries=MAX_DRAWS,
    )
    return Partition(rest[part.order], part.sizes), np.sort(held)


def low_pass(x: np.ndarray, corner: float) -> np.ndarray:
    """[n, axes] without what is above the corner, in Hz; no phase is shifted."""
    sections = signal.butter(ORDER, corner, fs=RATE, output="sos")
    return signal.sosfiltfilt(sections, x, axis=0)


def filtered(read: Read) -> Read:
    """Recordings as UCI-HAR has them; other files as they are."""

    def smooth(name: str) -> tuple[str, bytes]:
        where, content = read(name)
        sensor = name.split("_")[0]
        if sensor not in ("acc", "gyro"):
            return where, content
        x = np.loadtxt(content.decode().splitlines())
        x = low_pass(signal.medfilt(x, (MEDIAN, 1)), NOISE)
        if sensor == "acc":
            x = x - low_pass(x, GRAVITY)
        rows = (" ".join(f"{value:.9g}" for value in row) for row in x)
        return where, "\n".join(rows).encode()

    return smooth


def uci_har(manual_dir: str) -> Dataset:
    """Windows of filtered recordings, every axis of each to mean 0, deviation 1."""
    paths = [pathlib.Path(manual_dir) / name for name in NAMES]
    path = next(p for p in paths if p.exists())
    cut = list(windows(filtered(opened(path)), len(ACTIVITIES)))
    test = [w for w in cut if w.segment.volunteer in TEST_VOLUNTEERS]
    train = [w for w in cut if w.segment.volunteer not in TEST_VOLUNTEERS]
    return fc.data.from_arrays(
        _inputs(train),
        _labels(train),
        _inputs(test),
        _labels(test),
        class_names=ACTIVITIES,
        clients=np.array([w.segment.volunteer for w in train], np.int32),
    )


def _inputs(cut: list[Window]) -> dict[str, np.ndarray]:
    found = {}
    for sensor in ("acc", "gyro"):
        x = np.stack([getattr(w, sensor) for w in cut])
        mean, deviation = x.mean(1, keepdims=True), x.std(1, keepdims=True)
        found[sensor] = (x - mean) / (deviation + 1e-5)
    return found


def _labels(cut: list[Window]) -> np.ndarray:
    return np.array([w.segment.activity - 1 for w in cut], np.int32)
