"""The data of a configuration: loaded, and split among clients."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedcmi_jax import data, partition
from fedcmi_jax.assembly import check_present
from fedcmi_jax.cohort import KEYS
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.experiment.client_modalities import client_modalities
from fedcmi_jax.experiment.config import Config, create
from fedcmi_jax.partition import Partition
from fedcmi_jax.partition.holdout import Held, take_clients, take_share
from fedcmi_jax.partition.noise import ClientRng, add_feature_noise, add_label_noise

PARTITION_KEY = KEYS.index("partition")
"""Index of the NumPy generator that splits samples and modalities; one per seed, so
that all methods share one split."""


def load_dataset(chosen: Any, log: Callable[[str], None]) -> Dataset:
    """The data set that a section describes, checked.

    Args:
      chosen: The section ``dataset`` of a configuration.
      log: Receives the progress of its preparation, and its notes.

    Returns:
      The data set.

    Raises:
      ValueError: An option is refused, or the data are missing or not sound.

    Example:
      >>> from fedcmi_jax.experiment.config import section
      >>> load_dataset(section("dataset", "synthetic")(), print).num_classes
      10
    """
    takes_log = "log" in inspect.signature(data.REGISTRY[chosen.name]).parameters
    made = create("dataset", chosen, *((log,) if takes_log else ()))
    dataset = data.check_dataset(made)
    for note in dataset.notes:
        log(f"{dataset.name}: {note}")
    return dataset


LABEL_NOISE_KEY, FEATURE_NOISE_KEY = 1, 2
"""Which noise a client's generator [seed, PARTITION_KEY, key, client + 1] is for."""

FIXED_SEED = 0
"""The seed that splits the data with ``fixed_partition``, whatever the run's own is."""


class ClientSplit(NamedTuple):
    """Which client has which samples and modalities.

    Attributes:
      dataset: The data set, with what its training samples lack.
      partition: The samples that each client trains on (and probes).
      available: [N, M] bool, True where a client has a modality.
      validation: Training samples held out for choices; None: no.
      client_test: Every client's own test samples; None: no.
      holdout: All samples of the clients that never train, ``clients`` counted among
        these; None: no.
      holdout_available: [h, M] bool, what those clients have.
      holdout_ids: Their numbers in the partition that they were taken from, ascending.
    """

    dataset: Dataset
    partition: Partition
    available: np.ndarray
    validation: Held | None = None
    client_test: Held | None = None
    holdout: Held | None = None
    holdout_available: np.ndarray | None = None
    holdout_ids: tuple[int, ...] = ()


def split(config: Config, dataset: Dataset) -> ClientSplit:
    """Splits training samples and modalities among clients; the seed decides how.

    Drawn in this order from one generator: partition, modalities, clients held out,
    validation samples, the clients' own test samples, missing modalities. What is off
    draws nothing. Samples held out lack no modality that the data set has, as those of
    the test split. Both shares are of what a client had before either was taken.
    Noise comes last, on training samples only, from generators of its own.

    Args:
      config: The configuration.
      dataset: The data set.

    Returns:
      Which client has what.

    Raises:
      ValueError: An option of the partition or the number of clients is impossible, a
        share is of too few samples, the clients held out or the others have no sample,
        or a sample held out has none of its client's modalities.
    """
    seed = FIXED_SEED if config.fixed_partition else config.seed
    rng = np.random.default_rng([seed, PARTITION_KEY])
    parts = _partition(config, dataset.train, rng)
    available = client_modalities(config, dataset.modalities, parts.num_clients, rng)
    holdout: Held | None = None
    holdout_available: np.ndarray | None = None
    holdout_ids: tuple[int, ...] = ()
    if config.holdout_clients:
        parts, available, holdout, holdout_available, ids = take_clients(
            parts, available, config.holdout_clients, rng
        )
        holdout_ids = tuple(ids.tolist())
        _check_holdout(config.holdout_clients, seed, parts, holdout)
    train, share = dataset.train, config.validation_fraction
    parts, validation = _take(parts, train, share, "validation_fraction", rng)
    # Of what is left, the same number of samples as of the whole.
    share = config.client_test_fraction / (1 - share)
    parts, client_test = _take(parts, train, share, "client_test_fraction", rng)
    for held, table in ((client_test, available), (holdout, holdout_available)):
        if held is not None and table is not None:
            check_present(train.available, held.rows, held.clients, table)
    if config.missing_fraction:
        present = partition.drop_modalities(
            train, parts, available, rng, fraction=config.missing_fraction
        )
        dataset = dataset._replace(train=train._replace(available=present))
    return ClientSplit(
        _with_noise(config, dataset, parts, seed),
        parts,
        available,
        validation,
        client_test,
        holdout,
        holdout_available,
        holdout_ids,
    )


def _partition(config: Config, train: Split, rng: np.random.Generator) -> Partition:
    """The partition's own; its messages name the field, not its argument."""
    try:
        return create("partition", config.partition, train, config.clients, rng)
    except ValueError as error:
        raise ValueError(str(error).replace("num_clients", "clients")) from None


def _with_noise(
    config: Config, dataset: Dataset, parts: Partition, seed: int
) -> Dataset:
    """The data set, the samples of its clients as noisy as the configuration says."""

    def rng_of(purpose: int) -> ClientRng:
        key = [seed, PARTITION_KEY, purpose]
        return lambda client: np.random.default_rng([*key, client + 1])

    train = dataset.train
    if config.label_noise:
        train = add_label_noise(
            train,
            parts,
            dataset.num_classes,
            rng_of(LABEL_NOISE_KEY),
            fraction=config.label_noise,
            kind=config.label_noise_kind,
            fraction_min=config.label_noise_min,
            clients=config.noisy_clients,
        )
    if config.feature_noise:
        rng = rng_of(FEATURE_NOISE_KEY)
        train = add_feature_noise(train, parts, rng, sigma=config.feature_noise)
    return dataset._replace(train=train)


def _check_holdout(count: int, seed: int, left: Partition, holdout: Held) -> None:
    """Refuses a draw that leaves nothing to test on, or nothing to train on."""
    for rows, who, what in (
        (holdout.rows, f"none of the {count} clients that seed {seed} drew", "test"),
        (left.order, f"with the {count} that seed {seed} drew, nobody else", "train"),
    ):
        if not rows.size:
            raise ValueError(
                f"holdout_clients: {who} has a sample to {what} on; give another "
                "number, or a partition without empty clients"
            )


def _take(
    parts: Partition,
    train: Split,
    fraction: float,
    name: str,
    rng: np.random.Generator,
) -> tuple[Partition, Held | None]:
    """Takes a share of every client's samples, if one is asked for."""
    if fraction == 0:
        return parts, None
    left, held = take_share(
        parts, train.labels, fraction, rng, sequential=train.sequential
    )
    if not held.rows.size:
        raise ValueError(
            f"{name}: its share of {len(parts.order)} samples at {parts.num_clients} "
            "clients is no sample; give more, or 0 for none"
        )
    return left, held
