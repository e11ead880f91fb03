"""Who holds what: samples, classes and modalities of every client, as trained on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment import traffic
from fedcmi_jax.experiment.config import Config, check_config, create
from fedcmi_jax.experiment.model import build_model
from fedcmi_jax.experiment.split import load_dataset, split
from fedcmi_jax.partition import Partition

MOST_NAMES = 3
"""Natural clients that are named of one client."""


class Holdings(NamedTuple):
    """Who holds what.

    Attributes:
      title: Data set and partition.
      counts: [N, C] int64, training samples of each client and class.
      available: [N, M] bool, True where a client has a modality.
      present: [n, M] bool, True where a sample that a client holds has the modality.
      class_names: C names.
      modalities: M names.
      unused: Training samples that no client holds.
      test_counts: [C] int64, test samples of each class.
      held: What is held out of the clients' training -> [N] int64 samples of each.
      holdout: Samples of each client that never takes part.
      names: The natural clients that each client consists of; empty: numbers.
      wrong_labels: Training labels that label noise has replaced.
      network: A line on what a client receives and sends in a round.
    """

    title: str
    counts: np.ndarray
    available: np.ndarray
    present: np.ndarray
    class_names: tuple[str, ...]
    modalities: tuple[str, ...]
    unused: int
    test_counts: np.ndarray
    held: Mapping[str, np.ndarray] = MappingProxyType({})
    holdout: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    wrong_labels: int = 0
    network: str = ""

    @property
    def sizes(self) -> np.ndarray:
        """[N] training samples of each client."""
        return self.counts.sum(axis=1)


def holdings(
    config: Config, log: Callable[[str], None] = lambda text: None
) -> Holdings:
    """Loads the data set of a configuration and deals it, as training would.

    Args:
      config: The configuration.
      log: Receives the data set's preparation, and its notes.

    Returns:
      Who holds what.

    Raises:
      ValueError: Data set, partition or a number is impossible.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> values = {"dataset": {"name": "synthetic"}, "clients": 4}
      >>> holdings(from_dict(values)).available.sum(axis=0).tolist()
      [3, 3]
    """
    check_config(replace(config, clients_per_round=1))
    dataset = load_dataset(config.dataset, log)
    found = split(config, dataset)
    clean = dataset.train.labels
    dataset, parts, available = found.dataset, found.partition, found.available
    labels = dataset.train.labels
    counts = np.zeros((parts.num_clients, dataset.num_classes), np.int64)
    owners = np.repeat(np.arange(parts.num_clients), parts.sizes)
    np.add.at(counts, (owners, labels[parts.order]), 1)
    present = available[owners]
    if dataset.train.available is not None:
        present &= np.asarray(dataset.train.available)[parts.order].astype(bool)
    splits = {"validation": found.validation, "own test": found.client_test}
    held = {
        name: np.bincount(split.clients, minlength=parts.num_clients)
        for name, split in splits.items()
        if split is not None
    }
    away = np.zeros(0, np.int64) if found.holdout is None else found.holdout.clients
    used = len(parts.order) + len(away) + sum(int(x.sum()) for x in held.values())
    return Holdings(
        title=f"{dataset.name}, {config.partition.name}",
        counts=counts,
        available=available,
        present=present,
        class_names=dataset.class_names,
        modalities=dataset.modalities,
        unused=len(labels) - used,
        test_counts=np.bincount(dataset.test.labels, minlength=dataset.num_classes),
        held=held,
        holdout=tuple(np.bincount(away, minlength=config.holdout_clients).tolist()),
        names=_natural_names(dataset, parts),
        wrong_labels=int((labels != clean).sum()),
        network=_network(config, dataset, available),
    )


def _network(config: Config, dataset: Dataset, available: np.ndarray) -> str:
    """What goes over the network, under the configuration's method and model."""
    method = create("method", config.method)
    try:
        model = build_model(config, dataset, method.needs_projectors)
        compression = create("compression", config.compression)
        found = traffic.traffic(method, model, dataset, available, compression)
    except ValueError as error:  # tables do not need a model; training does
        return f"bytes per client and round unknown: {error}"
    return f"{config.method.name}, {traffic.described(found)}"


def _natural_names(dataset: Dataset, parts: Partition) -> tuple[str, ...]:
    """N names where no two clients share a natural one; () otherwise."""
    if dataset.train.clients is None:
        return ()
    owners = np.repeat(np.arange(parts.num_clients), parts.sizes)
    pairs = np.stack([owners, np.asarray(dataset.train.clients)[parts.order]], axis=1)
    pairs = np.unique(pairs, axis=0)
    if len(np.unique(pairs[:, 1])) < len(pairs):
        return ()
    ids: list[list[int]] = [[] for _ in parts.sizes]
    for client, natural in pairs.tolist():
        ids[client].append(natural)
    known = dataset.client_names
    return tuple(
        f"{i} (empty)"
        if not js
        else _joined([known[j] if known else str(j) for j in js])
        for i, js in enumerate(ids)
    )


def _joined(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return "+".join(names[:MOST_NAMES]) + (f"+{more} more" if more > 0 else "")
