"""hapt: human activities by accelerometer and gyroscope, with volunteers as clients.

Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using Smartphones",
Neurocomputing 2016.
"""

from typing import Any, Literal

import numpy as np

from fedcmi_jax.choices import check_choice
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.tfds import prepare, read_arrays
from fedcmi_jax.samples import PathOption

MODALITIES = ("acc", "gyro")

_SMALLEST_DEVIATION = 1e-8  # a sensor that stands still is not scaled up further


def hapt(
    *,
    normalize: Literal["train", "window", "none"] = "train",
    data_dir: PathOption | None = None,
    manual_dir: PathOption | None = None,
) -> Dataset:
    """10,411 windows of a phone's sensors in six activities; 30 volunteers.

    acc, in g with gravity, and gyro, in rad/s, are [n, 128, 3] float32: 2.56 s at
    50 Hz, cut every 1.28 s from the recordings of one activity. The official split
    keeps nine volunteers for testing; the others, the natural clients, have the
    authors' numbers between 1 and 30. Neighbouring windows share half their content,
    so a share held out of a volunteer's samples is the last run of each activity, of
    which only the window at the border shares any with the training samples. Where a
    partition deals a volunteer's windows to several clients, more of them do.

    Args:
      normalize: train: each axis to mean 0 and deviation 1, by numbers taken from the
        training split; window: each axis of each window; none: the sensors' units.
      data_dir: Folder of prepared data; None: $FEDCMI_DATA_ROOT or the user's cache.
      manual_dir: Folder with "HAPT Data Set.zip" from
        https://archive.ics.uci.edu/dataset/341, or with the unpacked data set.

    Returns:
      The data set, 7,415 training and 2,996 test windows.

    Raises:
      ValueError: normalize is unknown, or the data cannot be prepared.
    """
    check_choice("normalize", normalize, ("train", "window", "none"))
    builder = prepare("hapt", data_dir=data_dir, manual_dir=manual_dir)
    train, test = _split(builder, "train"), _split(builder, "test")
    if normalize == "train":
        train, test = (_scaled(split, train, axes=(0, 1)) for split in (train, test))
    elif normalize == "window":
        train, test = (_scaled(split, split, axes=(1,)) for split in (train, test))
    return Dataset(
        name="hapt",
        modalities=MODALITIES,
        class_names=tuple(builder.info.features["label"].names),
        train=train,
        test=test,
    )


def _split(builder: Any, name: str) -> Split:
    arrays = read_arrays(builder, name, (*MODALITIES, "label", "volunteer"))
    return Split(
        {m: arrays[m] for m in MODALITIES},
        arrays["label"].astype(np.int32),
        arrays["volunteer"],
        sequential=True,  # rows are in the order of recordings and time
    )


def _scaled(split: Split, reference: Split, axes: tuple[int, ...]) -> Split:
    """(x - mean) / deviation, both of the reference along the axes."""
    inputs = {}
    for m, values in split.inputs.items():
        mean = reference.inputs[m].mean(axes, keepdims=True)
        deviation = reference.inputs[m].std(axes, keepdims=True)
        inputs[m] = (values - mean) / np.maximum(deviation, _SMALLEST_DEVIATION)
    return split._replace(inputs=inputs)
