"""The experiment that a configuration describes: data, model, algorithm, evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.assembly import build_federation, coarse_capacity
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation.metrics import Evaluation
from fedcmi_jax.experiment import hosts
from fedcmi_jax.experiment.config import (
    Config,
    check_cohort,
    check_config,
    create,
    shares_partition,
)
from fedcmi_jax.experiment.measures import Measures, build_measures
from fedcmi_jax.experiment.model import build_model
from fedcmi_jax.experiment.optimization import (
    check_augmented,
    local_training,
    rate_scale,
    server_optimizer,
)
from fedcmi_jax.experiment.seed_axis import over_seeds, seed_keys
from fedcmi_jax.experiment.split import ClientSplit, load_dataset, split
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods.base import Method, has_own_models, own_model
from fedcmi_jax.methods.seen import Kept
from fedcmi_jax.placement import own_rows, replicate
from fedcmi_jax.streaming import CohortStream, build_skeleton
from fedcmi_jax.types import FederationState, Model


class Experiment(NamedTuple):
    """What a configuration describes, ready to run.

    Attributes:
      config: The configuration, with the number of clients that the partition gave;
        ``federation.num_clients`` is that of those that take part.
      dataset: Host data, as loaded.
      federation: Device data, sorted by client; when streaming, without inputs.
      model: The model.
      algorithm: ``init``, ``round``, ``run``.
      measures: What its model is measured on, on one device.
      mesh: Devices that share the cohort; None: one.
      with_chunk_size: Chunk size -> the same algorithm with another chunk size.
      stream: Sends each round's samples; None: they are all in ``federation``.
      personal: Whether clients keep models of their own, which ``evaluate`` tests if
        it is given their memory.
      rate_scale: Factor on the configured learning rates, ``LocalConfig.rate_scale``.
      holdout_ids: ``ClientSplit.holdout_ids``.
      spread: Whether each device of the mesh has a part of the samples only.
    """

    config: Config
    dataset: Dataset
    federation: Federation
    model: Model
    algorithm: FederatedAlgorithm
    measures: Measures
    mesh: Mesh | None
    with_chunk_size: Callable[[int], FederatedAlgorithm]
    stream: CohortStream | None = None
    personal: bool = False
    rate_scale: float = 1.0
    holdout_ids: tuple[int, ...] = ()
    spread: bool = False

    @property
    def evaluate(self) -> Callable[..., Evaluation]:
        """``(params, batch_stats, memory=None) -> Evaluation`` of the test split."""
        return self.measures.evaluate

    @property
    def key(self) -> jax.Array:
        """The PRNG key of the run's seed; [S] where seeds are mapped."""
        if self.config.map_seeds:
            return seed_keys(self.config.seed, self.config.seeds)
        return jax.random.key(self.config.seed)

    def federation_at(self, round: int) -> Federation:
        """The federation to call ``algorithm.run`` with after ``round`` rounds."""
        return self.stream.federation(round) if self.stream else self.federation


def build(
    config: Config,
    mesh: Mesh | None = None,
    log: Callable[[str], None] = lambda text: None,
    like: Experiment | None = None,
    spread: bool = False,
    resident: bool = True,
) -> Experiment:
    """Loads and splits the data and builds all that a run needs; compiles nothing yet.

    Args:
      config: The configuration.
      mesh: ``placement.client_mesh``: devices that share the cohort; None: one.
      log: Receives the progress of a data set that is prepared, its notes, and learning
        rates that are not the configuration's numbers.
      like: An experiment of this configuration with another seed. Its data set is used
        again and so are its compiled functions, unless this seed's learning rate
        differs (``LocalConfig.rate_scale``). What has other shapes than there compiles
        its own: the samples of all clients, with ``holdout_clients``.
      spread: Spread the training samples over the mesh, each device (and process) with
        a part of them, for data larger than a device; no effect on results. With
        ``like``: as there.
      resident: Whether training samples are put on devices; without them models can be
        evaluated, and no round can run.

    Returns:
      The experiment; with ``chunk_size="auto"`` its algorithm still has chunk size 1.
      With ``map_seeds`` its algorithm is that of all seeds (``seed_axis.over_seeds``);
      otherwise it is of one seed, ``config.seed``.

    Raises:
      ValueError: Something in the configuration is impossible, or it differs from that
        of ``like`` in more than the seed.

    Example:
      >>> import fedcmi_jax as fc
      >>> experiment = build(fc.config.from_dict({"dataset": {"name": "synthetic"}}))
      >>> experiment.federation.num_clients
      20
    """
    check_config(config)
    if config.map_seeds and mesh is not None:
        raise ValueError("map_seeds: mapped seeds run on one device; give --devices=1")
    if like is not None:
        _check_like(config, like)
        spread = like.spread
    if spread:
        _check_spread(config, mesh)
    method = create("method", config.method)
    dataset = load_dataset(config.dataset, log) if like is None else like.dataset
    config, found = _split(config, dataset, log)
    check_augmented(config.local.augment, dataset)
    hollow = config.stream or spread or not resident
    federation = _federation(config, found, method, hollow=hollow)
    scale = rate_scale(config, method, np.asarray(federation.sizes), log)
    if like is None:
        model = build_model(config, dataset, method.needs_projectors)
    else:
        model = like.model
    if like is not None and like.rate_scale == scale:
        with_chunk_size, algorithm = like.with_chunk_size, like.algorithm
    else:
        with_chunk_size = _algorithms(config, method, model, scale, mesh)
        size = 1 if config.chunk_size == "auto" else config.chunk_size
        algorithm = with_chunk_size(size)
    personal = has_own_models(method)
    if spread:
        placed = _federation(config, found, method, mesh=mesh)
    else:
        placed = replicate(federation, mesh)
    return Experiment(
        config=config,
        dataset=dataset,
        federation=placed,
        model=model,
        algorithm=algorithm,
        measures=build_measures(
            found,
            federation,
            model,
            personal=functools.partial(own_model, method) if personal else None,
            stream=config.stream,
            compiled=None if like is None else like.measures.compiled,
        ),
        mesh=mesh,
        with_chunk_size=with_chunk_size,
        stream=_stream(config, found, placed, mesh),
        personal=personal,
        rate_scale=scale,
        holdout_ids=found.holdout_ids,
        spread=spread,
    )


def _split(
    config: Config, dataset: Dataset, log: Callable[[str], None]
) -> tuple[Config, ClientSplit]:
    """The configuration with the number of clients that there are, and their data."""
    is_fixed = shares_partition(config)
    if is_fixed:
        log("fixed_partition: samples and modalities are split by seed 0")
    found = split(dataclasses.replace(config, fixed_partition=is_fixed), dataset)
    clients = found.partition.num_clients + config.holdout_clients
    check_cohort(config.clients_per_round, clients, config.holdout_clients)
    return dataclasses.replace(config, clients=clients), found


def _federation(
    config: Config,
    found: ClientSplit,
    method: Method,
    *,
    hollow: bool = False,
    mesh: Mesh | None = None,
) -> Federation:
    """The clients' samples on the device; hollow: without inputs; a mesh: spread."""
    if config.stream:
        _check_stream(method)
    build = build_skeleton
    if not hollow:
        build = functools.partial(build_federation, mesh=mesh)
    parts = found.partition
    return build(
        found.dataset,
        parts,
        found.available,
        probe_fraction=config.probe_fraction,
        capacity=coarse_capacity(int(parts.sizes.max())),
    )


def _algorithms(
    config: Config, method: Method, model: Model, scale: float, mesh: Mesh | None
) -> Callable[[int], FederatedAlgorithm]:
    """Chunk size -> algorithm; seeds share what chunk_size = "auto" chooses."""

    @functools.cache
    def with_chunk_size(chunk_size: int) -> FederatedAlgorithm:
        algorithm = build_algorithm(
            method,
            model,
            clients_per_round=config.clients_per_round,
            local=local_training(config, method.momentum, scale),
            server_optimizer=server_optimizer(config.server),
            chunk_size=chunk_size,
            rounds_per_call=rounds_per_call(config),
            clip_norm=config.clip_norm,
            mesh=mesh,
            reduction=config.reduction,
            lanes=config.lanes,
        )
        return over_seeds(algorithm) if config.map_seeds else algorithm

    return with_chunk_size


def _stream(
    config: Config, found: ClientSplit, federation: Federation, mesh: Mesh | None
) -> CohortStream | None:
    """What sends each round's samples; None: they are all in the federation."""
    if not config.stream:
        return None
    return CohortStream(
        found.dataset,
        found.partition,
        federation,
        jax.random.key(config.seed),
        config.clients_per_round,
        mesh=mesh,
    )


def _check_like(config: Config, like: Experiment) -> None:
    same = dataclasses.replace(like.config, seed=config.seed, clients=config.clients)
    if config != same:
        raise ValueError(
            "like: its configuration differs in more than the seed; build it anew"
        )


def measure(experiment: Experiment, state: FederationState) -> dict[str, Any]:
    """All metrics of a state's deployed model, on the host.

    Args:
      experiment: The experiment.
      state: Of its algorithm; with several processes all must call this together.

    Returns:
      ``Measures.all``; the names are explained in ``glossary.GLOSSARY``.

    Example:
      >>> import jax, fedcmi_jax as fc
      >>> values = {"dataset": {"name": "synthetic"}, "validation_fraction": 0.1}
      >>> experiment = build(fc.config.from_dict(values))
      >>> algorithm, federation = experiment.algorithm, experiment.federation
      >>> metrics = measure(experiment, algorithm.init(experiment.key, federation))
      >>> 0 <= metrics["val_acc"] <= 1
      True
    """
    params = experiment.algorithm.deploy(state, experiment.federation)
    state = own_rows(state, experiment.federation.num_clients)
    kept = Kept(state.memory, state.personal) if experiment.personal else None
    what = (params, state.batch_stats, kept)
    if experiment.mesh is not None:  # one device per process does it
        what = hosts.fetch(what)
    return experiment.measures.all(*what)


def rounds_per_call(config: Config) -> int:
    """Rounds that one compiled call can do; a stream feeds it round by round."""
    return 1 if config.stream else config.rounds_per_call or config.eval_every


def _check_spread(config: Config, mesh: Mesh | None) -> None:
    if config.map_seeds:
        raise ValueError(
            "spread_samples: mapped seeds run on one device; leave one of them out"
        )
    if mesh is None:
        raise ValueError(
            "spread_samples: there is one device, and it holds all samples; leave "
            "spread_samples out or give more devices"
        )
    if config.stream:
        raise ValueError(
            "spread_samples: stream keeps samples on the host; leave one of them out"
        )


def _check_stream(method: Method) -> None:
    if method.select is not None:
        raise ValueError(
            f"stream: method {method.name!r} looks at clients before it chooses, and "
            "only the cohort's samples would be there; leave stream out"
        )
    if jax.process_count() > 1:
        raise ValueError("stream: runs in one process; leave stream out with several")
