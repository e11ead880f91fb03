"""A client's samples: its share of the data set that is planned, or its own file."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from fedcmi_jax.assembly import check_present
from fedcmi_jax.data.array_files import nested
from fedcmi_jax.data.arrays import RESERVED, numeric, table_of
from fedcmi_jax.data.base import Split, check_dataset, check_labels
from fedcmi_jax.data.raw.npy import read_npz
from fedcmi_jax.deploy.client import Samples
from fedcmi_jax.deploy.plan import Plan, no_samples
from fedcmi_jax.experiment.config import shares_partition
from fedcmi_jax.experiment.split import load_dataset, split
from fedcmi_jax.samples import Shape, map_arrays


def dealt(plan: Plan, id: int) -> Samples:
    """What a client has in the simulation: its share of the data set, to try out.

    Args:
      plan: The deployment's; its configuration says how samples are dealt.
      id: The client's.

    Raises:
      ValueError: The data cannot be had, or an option is impossible.
    """
    config = plan.config
    fixed = dataclasses.replace(config, fixed_partition=shares_partition(config))
    found = split(fixed, load_dataset(config.dataset, lambda text: None))
    size = int(found.partition.sizes[id])
    start = int(found.partition.sizes[:id].sum())
    rows = found.partition.order[start : start + size]
    train = found.dataset.train
    available = np.asarray(found.available[id], bool)
    present = None if train.available is None else np.asarray(train.available)[rows]
    if present is not None:
        check_present(present, np.arange(size), np.zeros(size, int), available[None])
    return Samples(
        {m: jax.tree.map(lambda x: x[rows], train.inputs[m]) for m in plan.modalities},
        train.labels[rows],
        available,
        int(np.floor(size * config.probe_fraction)),
        present,
    )


def of_file(plan: Plan, path: Path) -> Samples:
    """A client's own .npz file: its modalities by name, ``labels``, ``available``.

    The layout of the data set ``npz`` (docs/new_data.md) without ``train/``. A modality
    that the file lacks is one that the client lacks. The last ``probe_fraction`` of the
    samples are held out of its training.

    Args:
      plan: The deployment's.
      path: The file.

    Raises:
      ValueError: An array is missing, damaged, of another shape than the plan's, not
        finite, or a label is none; names file, array and row.
    """
    arrays = read_npz(path)
    try:
        return _checked(plan, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(plan: Plan, arrays: dict[str, np.ndarray]) -> Samples:
    if "labels" not in arrays:
        raise ValueError("has no array 'labels'; give one class index per sample")
    labels = arrays["labels"]
    check_labels(labels, len(plan.class_names), "labels")
    given = nested({m: x for m, x in arrays.items() if m not in RESERVED}, "modalities")
    unknown = sorted(set(given) - set(plan.modalities))
    if unknown or not given:
        raise ValueError(
            f"has modalities {sorted(given)}; choose from {list(plan.modalities)}"
        )
    inputs = no_samples(plan, len(labels)).train.inputs
    for m, values in given.items():
        inputs[m] = map_arrays(numeric, f"modality {m!r}", values)
        found = map_arrays(lambda where, x: Shape(x.shape[1:], x.dtype), m, inputs[m])
        if _described(found) != _described(plan.shapes[m]):
            raise ValueError(
                f"modality {m!r} has samples of {_described(found)}, the plan says "
                f"{_described(plan.shapes[m])}"
            )
    present = arrays.get("available")
    if present is not None:
        present = table_of(present, (len(labels), len(plan.modalities)))
    own = Split(inputs, np.asarray(labels, np.int32), None, present)
    data = no_samples(plan)._replace(name="own", train=own, test=own)
    check_dataset(data)
    available = np.array([m in given for m in plan.modalities])
    if present is not None:
        rows = np.arange(len(labels))
        check_present(present, rows, np.zeros_like(rows), available[None])
    probes = int(np.floor(len(labels) * plan.config.probe_fraction))
    return Samples(inputs, own.labels, available, probes, present)


def _described(shape: Shape | dict) -> str:
    if isinstance(shape, dict):
        return str({name: _described(part) for name, part in sorted(shape.items())})
    return f"{shape.dtype}{list(shape)}"
