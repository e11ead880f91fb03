"""hapt: windows of a smartphone's accelerometer and gyroscope, six activities.

Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using Smartphones",
Neurocomputing 2016; UCI data set 341. 30 volunteers, of whom the authors keep nine for
testing. The archive publishes no checksum, so its content is checked instead.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedcmi_jax.data.tfds.download import find_manual
from fedcmi_jax.data.tfds.hapt_raw import WINDOW, Window, opened, windows

ACTIVITIES = (
    "walking",
    "walking_upstairs",
    "walking_downstairs",
    "sitting",
    "standing",
    "laying",
)
"""Activities 1 to 6 of labels.txt."""

TEST_VOLUNTEERS = (2, 4, 9, 10, 12, 13, 18, 20, 24)
"""The official test split."""

NAMES = ("HAPT Data Set.zip", "HAPT Data Set", "RawData")
"""What is looked for in the manual folder: as distributed, or unpacked."""

PAGE = "https://archive.ics.uci.edu/dataset/341"


class Hapt(tfds.core.GeneratorBasedBuilder):
    """Windows of both sensors, activity, volunteer and recording."""

    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {NAMES[0]} from {PAGE} into the folder."
    url_infos: dict = {}

    def _info(self) -> tfds.core.DatasetInfo:
        window = tfds.features.Tensor(
            shape=(WINDOW, 3), dtype=np.float32, encoding="bytes"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "acc": window,
                    "gyro": window,
                    "label": tfds.features.ClassLabel(names=ACTIVITIES),
                    "volunteer": tfds.features.Scalar(np.int32),
                    "experiment": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        found = (find_manual(dl_manager, name) for name in NAMES)
        path = next((p for p in found if p is not None), None)
        if path is None:
            raise ValueError(
                f"hapt: no {NAMES[0]!r} found, zipped or unpacked; download it from "
                f"{PAGE} and give its folder as manual_dir (fedcmi data prepare hapt "
                "--manual-dir=FOLDER)"
            )
        cut = list(windows(opened(path), len(ACTIVITIES)))
        test = [w for w in cut if w.segment.volunteer in TEST_VOLUNTEERS]
        train = [w for w in cut if w.segment.volunteer not in TEST_VOLUNTEERS]
        for split, kept in (("training", train), ("test", test)):
            if not kept:
                raise ValueError(
                    f"{path}: labels.txt has no window of a {split} volunteer (test: "
                    f"{', '.join(map(str, TEST_VOLUNTEERS))}); get the data set again"
                )
        return {
            "train": self._generate_examples(train),
            "test": self._generate_examples(test),
        }

    def _generate_examples(
        self, cut: Iterable[Window]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, window in enumerate(cut):
            segment = window.segment
            yield (
                i,
                {
                    "acc": window.acc,
                    "gyro": window.gyro,
                    "label": segment.activity - 1,
                    "volunteer": segment.volunteer,
                    "experiment": segment.experiment,
                },
            )
