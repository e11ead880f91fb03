"""The data of a configuration: loaded, and dealt to clients."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedcmi_jax import data, partition
from fedcmi_jax.cohort import STREAMS
from fedcmi_jax.config import Config, create
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.partition import Partition
from fedcmi_jax.split import Held, take_share

PARTITION_STREAM = STREAMS.index("partition")
"""Index of the NumPy stream that deals samples and modalities; one per seed, so that
all methods share one split."""


def load_dataset(chosen: Any, say: Callable[[str], None]) -> Dataset:
    """The data set that a section describes, checked.

    Args:
      chosen: The section ``dataset`` of a configuration.
      say: Receives the progress of its preparation, and its notes.

    Returns:
      The data set.

    Raises:
      ValueError: An option is refused, or the data are missing or not sound.

    Example:
      >>> from fedcmi_jax.config import section
      >>> load_dataset(section("dataset", "synthetic")(), print).num_classes
      10
    """
    takes_say = "say" in inspect.signature(data.REGISTRY[chosen.name]).parameters
    made = create("dataset", chosen, *((say,) if takes_say else ()))
    dataset = data.check_dataset(made)
    for note in dataset.notes:
        say(f"{dataset.name}: {note}")
    return dataset


class Dealt(NamedTuple):
    """Who holds what.

    Attributes:
      dataset: The data set, with what its training samples lack.
      partition: The samples that each client trains on (and probes).
      available: [N, M] bool, True where a client has a modality.
      validation: Training samples held out for choices; None: no.
    """

    dataset: Dataset
    partition: Partition
    available: np.ndarray
    validation: Held | None = None


def deal(config: Config, dataset: Dataset) -> Dealt:
    """Hands training samples and modalities out to clients; the seed decides how.

    Drawn in this order from one stream: partition, modalities, samples held out,
    missing modalities. What is off draws nothing. Samples held out lack no modality
    that the data set has, as test samples.

    Args:
      config: The configuration.
      dataset: The data set.

    Returns:
      Who holds what.

    Raises:
      ValueError: An option of the partition or the number of clients is impossible.
    """
    rng = np.random.default_rng([config.seed, PARTITION_STREAM])
    parts = create("partition", config.partition, dataset.train, config.clients, rng)
    available = partition.allocate_modalities(
        parts.num_clients, len(dataset.modalities), rng, multi_ratio=config.multi_ratio
    )
    labels = dataset.train.labels
    parts, validation = _take(parts, labels, config, "validation_fraction", rng)
    if config.missing_fraction:
        present = partition.drop_modalities(
            dataset.train, parts, available, rng, fraction=config.missing_fraction
        )
        dataset = dataset._replace(train=dataset.train._replace(available=present))
    return Dealt(dataset, parts, available, validation)


def _take(
    parts: Partition,
    labels: np.ndarray,
    config: Config,
    name: str,
    rng: np.random.Generator,
) -> tuple[Partition, Held | None]:
    """Takes the share that a field of the configuration asks for, if any."""
    fraction = getattr(config, name)
    if fraction == 0:
        return parts, None
    left, held = take_share(parts, labels, fraction, rng)
    if not held.rows.size:
        raise ValueError(
            f"{name}: {fraction} of {len(parts.order)} samples at {parts.num_clients} "
            "clients is none; give more, or 0 for none"
        )
    return left, held
