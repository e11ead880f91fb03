"""av_mnist: written and spoken digits, paired by class.

MNIST images with recordings of the Free Spoken Digit Dataset; the pairing is made in
``data.tfds.av_mnist``.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fedcmi_jax.choices import check_choice
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.noisy_digits import standardized
from fedcmi_jax.data.sampling import MNIST_SIZES, check_subset, subset
from fedcmi_jax.data.spectrogram import fixed_length, log_mel, log_stft
from fedcmi_jax.data.tfds import as_float, prepare, records
from fedcmi_jax.samples import PathOption

CLIP = 6000
"""Samples of audio kept, 0.75 s: only 30 of the 2,500 recordings are longer."""

_SPECTROGRAMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log_mel": log_mel,
    "log_stft": log_stft,
}


def av_mnist(
    *,
    spectrogram: Literal["log_mel", "log_stft"] = "log_mel",
    train_samples: int | None = None,
    test_samples: int | None = None,
    standardize: bool = True,
    seed: int = 0,
    data_dir: PathOption | None = None,
    manual_dir: PathOption | None = None,
) -> Dataset:
    """60,000 MNIST images, each with a spoken digit of the same class.

    image is [n, 28, 28, 1]; audio is the spectrogram of 0.75 s, in frames of 50 ms
    every 25 ms, [n, 32, 29, 1] as log_mel and [n, 201, 29, 1] as log_stft; both
    float32. The natural clients are the five speakers. Training recordings (takes 5
    to 49 of each speaker and digit, 2,250) and test recordings (takes 0 to 4, 250)
    are disjoint. Within the training split a recording goes with 27 images on average,
    so samples held out of it (validation, clients' own tests) have new images, but
    recordings that mostly are in training too.

    Args:
      spectrogram: log_mel, 32 bands, or log_stft, 201 frequencies.
      train_samples: Keep so many training samples, every class in proportion; None:
        all 60,000.
      test_samples: The same for the 10,000 test samples.
      standardize: Bring each modality to mean 0 and standard deviation 1, by two
        numbers per modality taken from its training split.
      seed: Seed of the choice of samples. The pairing is part of the data set.
      data_dir: Folder of prepared data; None: $FEDCMI_DATA_ROOT or the user's cache.
      manual_dir: Folder with the raw files, where downloading is not possible.

    Returns:
      The data set, 60,000 training and 10,000 test samples with the defaults.

    Raises:
      ValueError: spectrogram is unknown, a number of samples is out of range, or the
        data cannot be prepared.
    """
    check_choice("spectrogram", spectrogram, _SPECTROGRAMS)
    counts = {"train_samples": train_samples, "test_samples": test_samples}
    check_subset(seed, counts, MNIST_SIZES)
    builder = prepare("av_mnist", data_dir=data_dir, manual_dir=manual_dir)
    transform = _SPECTROGRAMS[spectrogram]
    dataset = Dataset(
        name="av_mnist",
        modalities=("image", "audio"),
        class_names=tuple(builder.info.features["label"].names),
        train=_split(builder, "train", transform, train_samples, seed, 0),
        test=_split(builder, "test", transform, test_samples, seed, 1),
        client_names=tuple(builder.info.features["speaker"].names),
    )
    return standardized(dataset) if standardize else dataset


def _split(
    builder: Any,
    name: str,
    transform: Callable[[np.ndarray], np.ndarray],
    count: int | None,
    seed: int,
    split_index: int,
) -> Split:
    images, labels, speakers, sounds = [], [], [], []
    index: dict[tuple[int, int, int], int] = {}
    recordings: list[np.ndarray] = []
    for record in records(builder, name):
        label, speaker = int(record["label"]), int(record["speaker"])
        # A recording goes with many images; its spectrogram is computed once.
        key = (label, speaker, int(record["take"]))
        if key not in index:
            index[key] = len(recordings)
            recordings.append(record["audio"])
        images.append(record["image"])
        labels.append(label)
        speakers.append(speaker)
        sounds.append(index[key])
    all_labels = np.array(labels, np.int32)
    kept = subset(all_labels, count, seed, split_index, f"{name}_samples")
    return Split(
        {
            "image": as_float(np.array(images)[kept]),
            "audio": transform(fixed_length(recordings, CLIP))[np.array(sounds)[kept]],
        },
        all_labels[kept],
        np.array(speakers, np.int32)[kept],
    )
