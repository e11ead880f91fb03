"""av_mnist: an MNIST image and a spoken digit of the same class.

After the audio-visual MNIST of Vielzeuf et al., "CentralNet", 2018, with the free
recordings of FSDD. Training images go with takes 5 to 49 of a speaker, test images
with takes 0 to 4, so no recording is heard in both.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedcmi_jax.data.tfds import fsdd, mnist
from fedcmi_jax.data.tfds.download import fetch

SEED = 0
"""Of the pairing; part of the data set, so that everybody has the same one."""


class AvMnist(tfds.core.GeneratorBasedBuilder):
    """Image, recording, label, and the speaker and take of the recording."""

    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{mnist.INSTRUCTIONS} And {fsdd.FILE}."
    url_infos = mnist.URL_INFOS | fsdd.URL_INFOS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=mnist.IMAGE_SHAPE, dtype=np.uint8, encoding="bytes"
                    ),
                    "audio": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=mnist.CLASS_NAMES),
                    "speaker": tfds.features.ClassLabel(names=fsdd.SPEAKERS),
                    "take": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = fetch(dl_manager, self.url_infos)
        recordings = fsdd.read_recordings(files[fsdd.FILE])
        return {
            split: self._generate_examples(files, recordings, split)
            for split in mnist.FILES
        }

    def _generate_examples(
        self,
        files: Mapping[str, pathlib.Path],
        recordings: list[fsdd.Recording],
        split: str,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = mnist.read_mnist(files, split)
        in_test = split == "test"
        usable = [r for r in recordings if (r.take < fsdd.TEST_TAKES) == in_test]
        rng = np.random.default_rng((SEED, list(mnist.FILES).index(split)))
        partners = pair_by_class(labels, np.array([r.digit for r in usable]), rng)
        for i, (image, partner) in enumerate(zip(images, partners, strict=True)):
            chosen = usable[partner]
            yield (
                i,
                {
                    "image": image,
                    "audio": chosen.audio,
                    "label": chosen.digit,
                    "speaker": chosen.speaker,
                    "take": chosen.take,
                },
            )


def pair_by_class(
    labels: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws for every label one of the items of that class, each about equally often.

    Args:
      labels: [n] integers.
      classes: [m] integers, the classes of the items.
      rng: Source of the draws.

    Returns:
      [n] int64 item indices; within a class, counts differ by at most one.

    Raises:
      ValueError: A class has samples but no item.

    Example:
      >>> pair_by_class(np.array([1, 0, 1]), np.array([0, 1]), np.random.default_rng(0))
      array([1, 0, 1])
    """
    partners = np.empty(len(labels), np.int64)
    for c in np.unique(labels):
        rows, items = np.flatnonzero(labels == c), np.flatnonzero(classes == c)
        if not items.size:
            raise ValueError(f"class {c}: {rows.size} samples but nothing to pair")
        repeats = -(-rows.size // items.size)
        deck = np.concatenate([rng.permutation(items) for _ in range(repeats)])
        partners[rows] = deck[: rows.size]
    return partners
