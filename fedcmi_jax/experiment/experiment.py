"""The experiment that a configuration describes: data, model, algorithm, evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fedcmi_jax import models, server_optimizers
from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.clients import replicate
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation.metrics import Evaluation
from fedcmi_jax.experiment import hosts
from fedcmi_jax.experiment.config import (
    Config,
    LocalConfig,
    ServerConfig,
    check_cohort,
    check_config,
    create,
    lookup,
    section,
    shares_partition,
)
from fedcmi_jax.experiment.measures import Measures, build_measures
from fedcmi_jax.experiment.seed_axis import over_seeds, seed_keys
from fedcmi_jax.experiment.split import deal, load_dataset
from fedcmi_jax.federation import Federation, build_federation, coarse_capacity
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods._momentum import momentum_gain
from fedcmi_jax.methods.base import FEDAVG, Method, has_own_models, own_model
from fedcmi_jax.methods.seen import Kept
from fedcmi_jax.models.augment import crop_and_flip
from fedcmi_jax.optimizers import Optimizer, linear_decay, torch_sgd
from fedcmi_jax.streaming import CohortStream, build_skeleton
from fedcmi_jax.types import FederationState, Model


class Experiment(NamedTuple):
    """What a configuration describes, ready to run.

    Attributes:
      config: The configuration, with the number of clients that the partition gave;
        ``federation.num_clients`` is that of those that take part.
      dataset: Host data, as loaded.
      federation: Device data, dealt to clients; when streaming, without inputs.
      model: The model.
      algorithm: ``init``, ``round``, ``run``.
      measures: What its model is measured on, on one device.
      mesh: Devices that share the cohort; None: one.
      with_chunk_size: Chunk size -> the same algorithm with another chunk size.
      stream: Sends each round's samples; None: they are all in ``federation``.
      personal: Whether clients keep models of their own, which ``evaluate`` tests if
        it is given their memory.
      rate_scale: Factor on the configured learning rates, ``LocalConfig.rate_scale``.
      holdout_ids: ``Dealt.holdout_ids``.
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
    say: Callable[[str], None] = lambda text: None,
    like: Experiment | None = None,
) -> Experiment:
    """Loads, deals and compiles nothing yet: everything a run needs.

    Args:
      config: The configuration.
      mesh: ``clients.client_mesh``: devices that share the cohort; None: one.
      say: Receives the progress of a data set that is prepared, its notes, and learning
        rates that are not the configuration's numbers.
      like: An experiment of this configuration with another seed. Its data set is used
        again and so are its compiled functions, unless this seed's learning rate
        differs (``LocalConfig.rate_scale``). What has other shapes than there compiles
        its own: the samples of all clients, with ``holdout_clients``.

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
    method = create("method", config.method)
    dataset = load_dataset(config.dataset, say) if like is None else like.dataset
    shares = shares_partition(config)
    if shares:
        say("fixed_partition: samples and modalities are dealt by seed 0")
    dealt = deal(dataclasses.replace(config, fixed_partition=shares), dataset)
    parts = dealt.partition
    clients = parts.num_clients + config.holdout_clients
    config = dataclasses.replace(config, clients=clients)
    check_cohort(config.clients_per_round, clients, config.holdout_clients)
    _check_augmented(config.local.augment, dataset)
    if config.stream:
        _check_stream(method)
    federation = (build_skeleton if config.stream else build_federation)(
        dealt.dataset,
        parts,
        dealt.available,
        probe_fraction=config.probe_fraction,
        capacity=coarse_capacity(int(parts.sizes.max())),
    )
    rate_scale = _rate_scale(config, method, np.asarray(federation.sizes), say)
    model = (
        _build_model(config, dataset, method.needs_projectors)
        if like is None
        else like.model
    )

    @functools.cache  # so that seeds share what chunk_size = "auto" chooses
    def with_chunk_size(chunk_size: int) -> FederatedAlgorithm:
        algorithm = build_algorithm(
            method,
            model,
            clients_per_round=config.clients_per_round,
            local=_local_training(config, method.momentum, rate_scale),
            server_optimizer=_server_optimizer(config.server),
            chunk_size=chunk_size,
            rounds_per_call=rounds_per_call(config),
            clip_norm=config.clip_norm,
            mesh=mesh,
        )
        return over_seeds(algorithm) if config.map_seeds else algorithm

    personal = has_own_models(method)
    measures = build_measures(
        dealt,
        federation,
        model,
        personal=functools.partial(own_model, method) if personal else None,
        stream=config.stream,
        compiled=None if like is None else like.measures.compiled,
    )
    chunk_size = 1 if config.chunk_size == "auto" else config.chunk_size
    if like is not None and like.rate_scale == rate_scale:
        remade, algorithm = like.with_chunk_size, like.algorithm
    else:
        remade, algorithm = with_chunk_size, with_chunk_size(chunk_size)
    placed = replicate(federation, mesh)
    stream: CohortStream | None = None
    if config.stream:
        key = jax.random.key(config.seed)
        stream = CohortStream(
            dealt.dataset, parts, placed, key, config.clients_per_round, mesh=mesh
        )
    return Experiment(
        config=config,
        dataset=dataset,
        federation=placed,
        model=model,
        algorithm=algorithm,
        measures=measures,
        rate_scale=rate_scale,
        mesh=mesh,
        with_chunk_size=remade,
        stream=stream,
        personal=personal,
        holdout_ids=dealt.holdout_ids,
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
    kept = Kept(state.memory, state.personal) if experiment.personal else None
    what = (params, state.batch_stats, kept)
    if experiment.mesh is not None:  # one device per process does it
        what = hosts.fetch(what)
    return experiment.measures.all(*what)


def rounds_per_call(config: Config) -> int:
    """Rounds that one compiled call can do; a stream feeds it round by round."""
    return 1 if config.stream else config.rounds_per_call or config.eval_every


def _check_stream(method: Method) -> None:
    if method.select is not None:
        raise ValueError(
            f"stream: method {method.name!r} looks at clients before it chooses, and "
            "only the cohort's samples would be there; leave stream out"
        )
    if jax.process_count() > 1:
        raise ValueError("stream: runs in one process; leave stream out with several")


def _encoders(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The encoder of every modality."""
    modalities = dataset.modalities
    names = config.encoder_names or (config.encoder.name,) * len(modalities)
    if len(names) != len(modalities):
        raise ValueError(
            f"encoder_names: {len(names)} for the {len(modalities)} modalities "
            f"{', '.join(modalities)}; give one each"
        )
    encoders = {}
    for modality, given in zip(modalities, names, strict=True):
        name = lookup("encoder_names", given, models.ENCODERS)
        own = (
            config.encoder
            if name == config.encoder.name
            else section("encoder", name)()
        )
        encoders[modality] = create("encoder", own)
        # Any encoder can be run on any numbers; words as quantities teach it nothing.
        is_text = np.issubdtype(dataset.train.inputs[modality].dtype, np.integer)
        if is_text != getattr(encoders[modality], "takes_token_ids", False):
            has, remedy = ("token ids", "text") if is_text else ("numbers", "another")
            raise ValueError(
                f"encoder_names: modality {modality!r} has {has}, which encoder "
                f"{name!r} does not take; give {remedy}"
            )
    return encoders


def _build_model(config: Config, dataset: Dataset, needs_projectors: bool) -> Model:
    encoders = _encoders(config, dataset)
    chosen, sizes = config.model, (dataset.shapes, dataset.num_classes)
    plain = chosen.architecture == "auto" and not needs_projectors
    if plain or chosen.architecture == "classifier":
        model = models.classifier(encoders, *sizes, fusion=chosen.fusion)
    else:
        model = models.two_projector(
            encoders,
            *sizes,
            fusion=chosen.fusion,
            projector=chosen.projector,
            width=chosen.width,
            stand_in=chosen.stand_in,
        )
    if chosen.precision == "bfloat16":
        return models.mixed_precision(model)
    return model


def _rate_scale(
    config: Config, method: Method, sizes: np.ndarray, say: Callable[[str], None]
) -> float:
    """Factor on the learning rates, see ``LocalConfig.rate_scale``; told if not 1."""
    local, usual = config.local, FEDAVG.momentum
    if local.rate_scale is not None:
        return local.rate_scale
    if local.optimizer != "sgd" or method.momentum == usual:
        return 1.0
    if local.momentum is not None:  # and with it the rate that goes with it
        if local.momentum != method.momentum:
            say(
                f"{method.name}: local.momentum {local.momentum:g} overrides its own "
                f"{method.momentum:g}, of which the method hears nothing"
            )
        return 1.0
    median = int(np.percentile(sizes, 50, method="lower"))
    steps = local.epochs * -(-median // local.batch_size)
    gains = [float(momentum_gain(m, steps)) for m in (usual, method.momentum)]
    scale = gains[0] / gains[1]
    say(
        f"{method.name}: momentum {method.momentum:g}, so learning rate "
        f"{local.learning_rate:g} x {scale:.2f} = {local.learning_rate * scale:.3g}, "
        f"which makes the mean step as long as with momentum {usual:g} over {steps} "
        "steps, the median client's (--local.rate-scale=1: the rate as it is)"
    )
    return scale


def _local_training(
    config: Config, momentum: float, rate_scale: float
) -> LocalTraining:
    local = config.local
    start, end = local.learning_rate * rate_scale, local.learning_rate_min
    rate: float | Callable[[jax.Array], jax.Array] = start
    if end is not None:
        rate = linear_decay(
            start,
            end * rate_scale,
            local.knee,
            config.rounds,
            legacy=local.legacy_schedule,
        )
    return LocalTraining(
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=rate,
        optimizer=_local_optimizer(local, momentum),
        augment=crop_and_flip(local.augment) if local.augment else None,
    )


def _check_augmented(names: tuple[str, ...], dataset: Dataset) -> None:
    for name in names:
        if name not in dataset.modalities:
            raise ValueError(
                f"local.augment: unknown modality {name!r}; choose from "
                f"{list(dataset.modalities)}"
            )
        shape = dataset.shapes[name]
        if len(shape) not in (3, 4):
            raise ValueError(
                f"local.augment: {name!r} has samples of shape {shape}, which are no "
                "images or frames; leave it out"
            )


def _local_optimizer(local: LocalConfig, momentum: float) -> Optimizer:
    def adam(learning_rate) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(local.weight_decay)
        return optax.chain(decay, optax.adam(learning_rate))

    if local.momentum is not None:
        momentum = local.momentum
    sgd = torch_sgd(momentum=momentum, weight_decay=local.weight_decay)
    return {"sgd": sgd, "adam": adam}[local.optimizer]


def _server_optimizer(server: ServerConfig) -> optax.GradientTransformation | None:
    if server.optimizer == "none":
        return None
    make = server_optimizers.REGISTRY[server.optimizer]
    return make() if server.learning_rate is None else make(server.learning_rate)
