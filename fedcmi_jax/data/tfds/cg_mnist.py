"""cg_mnist: MNIST in gray, and in a colour that tells the class in training only.

Colored-and-gray MNIST, after the biased colouring of Kim et al., "Learning Not to
Learn", CVPR 2019; colours and jitter are those of ``data.cg_digits``.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedcmi_jax.data.cg_digits import CLASS_COLORS, colorize
from fedcmi_jax.data.tfds.mnist import (
    CLASS_NAMES,
    FILES,
    IMAGE_SHAPE,
    INSTRUCTIONS,
    URL_INFOS,
    read_mnist,
    split_generators,
)

SEED = 0
"""Of the colours; part of the data set, so that everybody has the same one."""

_CHUNK = 1000  # images coloured at a time


class CgMnist(tfds.core.GeneratorBasedBuilder):
    """Gray image, coloured image, label and the class whose colour it has."""

    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    url_infos = URL_INFOS

    def _info(self) -> tfds.core.DatasetInfo:
        def image(channels: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(
                shape=(*IMAGE_SHAPE[:2], channels), dtype=np.uint8, encoding="bytes"
            )

        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "gray": image(1),
                    "color": image(3),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                    "color_id": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            disable_shuffling=True,
        )

    _split_generators = split_generators

    def _generate_examples(
        self, files: Mapping[str, pathlib.Path], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_mnist(files, split)
        rng = np.random.default_rng((SEED, list(FILES).index(split)))
        color_ids = labels
        if split == "test":
            color_ids = rng.integers(0, len(CLASS_COLORS), size=len(labels))
        for start in range(0, len(labels), _CHUNK):
            rows = slice(start, start + _CHUNK)
            gray = images[rows].astype(np.float32)
            color = np.rint(colorize(gray, color_ids[rows], rng)).astype(np.uint8)
            for i in range(len(color)):
                yield (
                    start + i,
                    {
                        "gray": images[start + i],
                        "color": color[i],
                        "label": int(labels[start + i]),
                        "color_id": int(color_ids[start + i]),
                    },
                )
