"""The experiment that a configuration describes: data, model, algorithm, evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.assembly import build_federation, coarse_capacity
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation.metrics import Evaluation
from fedcmi_jax.experiment import accounting, hosts
from fedcmi_jax.experiment.bound import algorithm_of, rounds_per_call
from fedcmi_jax.experiment.checks import check_spread, check_stream
from fedcmi_jax.experiment.config import (
    Config,
    check_cohort,
    check_config,
    create,
    shares_partition,
)
from fedcmi_jax.experiment.measures import (
    Measures,
    build_measures,
    compiled_measures,
)
from fedcmi_jax.experiment.model import build_model, first_start
from fedcmi_jax.experiment.optimization import check_augmented, rate_scale
from fedcmi_jax.experiment.parts import Parts, check_parts
from fedcmi_jax.experiment.seed_axis import over_seeds, seed_keys
from fedcmi_jax.experiment.sharing import (
    Shared,
    algorithm_key,
    model_key,
    signature,
)
from fedcmi_jax.experiment.sizes import check_samples, check_state
from fedcmi_jax.experiment.split import ClientSplit, load_dataset, split
from fedcmi_jax.experiment.traffic import Traffic, traffic_by_client
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods.base import Method, has_own_models, own_model
from fedcmi_jax.methods.seen import Kept
from fedcmi_jax.placement import own_rows, replicate
from fedcmi_jax.privacy import Privacy
from fedcmi_jax.streaming import CohortStream, build_skeleton
from fedcmi_jax.types import FederationState, Model, Start


class Experiment(NamedTuple):
    """What a configuration describes, ready to run.

    Attributes:
      config: The configuration, with the number of clients that the partition gave;
        ``federation.num_clients`` is that of those that take part.
      dataset: Host data, as loaded.
      federation: Device data, sorted by client; when streaming, without inputs.
      method: The method.
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
      parts: Objects in the place of what the configuration names.
      guarantee: What it promises its clients; None: nothing.
      traffic: ``traffic.traffic_by_client``, found when it is first called.
      start: Reads ``init_from``, once, when it is first called: a run that goes on does
        not need it. None: there is none.
    """

    config: Config
    dataset: Dataset
    federation: Federation
    method: Method
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
    guarantee: accounting.Guarantee | None = None
    traffic: Callable[[], Traffic] = lambda: Traffic({}, {})
    start: Callable[[], Start | None] = lambda: None
    parts: Parts = Parts()

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
    shared: Shared | None = None,
    spread: bool = False,
    resident: bool = True,
    parts: Parts = Parts(),  # noqa: B008 (immutable)
) -> Experiment:
    """Loads and splits the data and builds all that a run needs; compiles nothing yet.

    Args:
      config: The configuration.
      mesh: ``placement.client_mesh``: devices that share the cohort; None: one.
      log: Receives the progress of a data set that is prepared, its notes, and learning
        rates that are not the configuration's numbers.
      shared: What experiments before have in common with it, data set, model and
        compiled functions, and gets what it adds; None: it shares nothing. What has
        other shapes than there compiles its own (the samples of all clients, with
        ``holdout_clients``), and so does another learning rate
        (``LocalConfig.rate_scale``).
      spread: Spread the training samples over the mesh, each device (and process) with
        a part of them, for data larger than a device; no effect on results.
      resident: Whether training samples are put on devices; without them models can be
        evaluated, and no round can run.
      parts: Objects in the place of what the configuration names.

    Returns:
      The experiment; with ``chunk_size="auto"`` its algorithm still has chunk size 1.
      With ``map_seeds`` its algorithm is that of all seeds (``seed_axis.over_seeds``);
      otherwise it is of one seed, ``config.seed``.

    Raises:
      ValueError: Something in the configuration is impossible.

    Example:
      >>> import fedcmi_jax as fc
      >>> experiment = build(fc.config.from_dict({"dataset": {"name": "synthetic"}}))
      >>> experiment.federation.num_clients
      20
    """
    check_config(config)
    if config.map_seeds and mesh is not None:
        raise ValueError("map_seeds: mapped seeds run on one device; give --devices=1")
    if spread:
        check_spread(config, mesh)
    check_parts(parts)
    shared = shared or Shared()
    shared.make_room()
    # A script's own objects are known by their identity, and so must stay alive.
    objects = tuple(map(id, parts))
    shared.get("parts", objects, lambda: parts)
    method = parts.method or create("method", config.method)
    dataset = parts.dataset or shared.get(
        "dataset", repr(config.dataset), lambda: load_dataset(config.dataset, log)
    )
    config, found = _split(config, dataset, log)
    check_augmented(config.local.augment, dataset)
    check_samples(found, devices=1 if mesh is None or spread else mesh.size)
    hollow = config.stream or spread or not resident
    federation = _federation(config, found, method, hollow=hollow)
    scale = rate_scale(config, method, np.asarray(federation.sizes), log)
    needs, own = method.needs_projectors, (parts.encoders, parts.model)
    model_like = (model_key(config, needs), signature(dataset), objects)
    model: Model = shared.get(
        "model", model_like, lambda: build_model(config, dataset, needs, *own)
    )
    promised = accounting.promised(config, federation.num_clients, log, resident)
    private = None if promised is None else promised.privacy
    own_key = algorithm_key(config, rounds_per_call(config))
    program = (own_key, model_like, scale, mesh, private)
    with_chunk_size = shared.get(
        "algorithm",
        program,
        lambda: _algorithms(config, method, model, scale, mesh, private),
    )
    algorithm = with_chunk_size(1 if config.chunk_size == "auto" else config.chunk_size)
    if not config.map_seeds:
        shared.get(
            "state",
            (program, federation.num_clients),
            lambda: check_state(config, algorithm, federation),
        )
    personal = has_own_models(method)
    if spread:
        placed = _federation(config, found, method, mesh=mesh)
    else:
        placed = replicate(federation, mesh)
    own_start = functools.partial(own_model, method) if personal else None
    compiled = shared.get(
        "evaluation",
        (model_like, repr(config.method) if personal else None),
        lambda: compiled_measures(model, own_start, parts.metrics),
    )
    return Experiment(
        config=config,
        dataset=dataset,
        federation=placed,
        method=method,
        model=model,
        algorithm=algorithm,
        measures=build_measures(
            found,
            federation,
            model,
            personal=own_start,
            stream=config.stream,
            compiled=compiled,
        ),
        mesh=mesh,
        with_chunk_size=with_chunk_size,
        stream=_stream(config, found, placed, mesh),
        personal=personal,
        rate_scale=scale,
        parts=parts,
        holdout_ids=found.holdout_ids,
        spread=spread,
        guarantee=promised,
        traffic=functools.cache(
            functools.partial(
                traffic_by_client,
                method,
                model,
                dataset,
                np.asarray(federation.available),
                create("compression", config.compression),
            )
        ),
        start=shared.get(
            "start", (config.init_from, model_like), lambda: first_start(config, model)
        ),
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
        check_stream(method)
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
    config: Config,
    method: Method,
    model: Model,
    scale: float,
    mesh: Mesh | None,
    privacy: Privacy | None,
) -> Callable[[int], FederatedAlgorithm]:
    """Chunk size -> algorithm; seeds share what chunk_size = "auto" chooses."""

    @functools.cache
    def with_chunk_size(chunk_size: int) -> FederatedAlgorithm:
        algorithm = algorithm_of(
            config, method, model, scale, chunk_size, mesh, privacy
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
    return experiment.measures.all(*what, experiment.config.log_clients == "all")
