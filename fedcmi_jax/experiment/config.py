"""A run's configuration: frozen dataclasses, from and to JSON."""

import dataclasses
import math
import typing
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from fedcmi_jax.experiment import plugins
from fedcmi_jax.experiment.checks import check_cohort as check_cohort
from fedcmi_jax.experiment.checks import check_config as check_config
from fedcmi_jax.experiment.checks import check_effects as check_effects
from fedcmi_jax.experiment.sections import (
    DEFAULT_NAMES,
    REGISTRIES,
    RENAMED,
    section,
)
from fedcmi_jax.experiment.sections import create as create
from fedcmi_jax.experiment.sections import lookup as lookup
from fedcmi_jax.experiment.values import typed
from fedcmi_jax.guard import FACTOR
from fedcmi_jax.setup import LANES, Reduction


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model around the encoders.

    Attributes:
      architecture: classifier (encoders + fusion), two_projector (FedCMI's), or auto:
        what the method needs.
      fusion: How modalities meet: concat, sum, film or gated (methods 0.3).
      projector: Projectors of two_projector: linear, or mlp of three layers.
      width: Width D of every projector (512 in the reference code).
      stand_in: What two_projector puts in a missing modality's place: infiltration
        (the paper's), or zero (an ablation).
      lora_rank: Rank of adapters that train in place of the encoders, which are frozen
        then (LoRA); 0: none.
      precision: float32, or bfloat16: activations and products in bfloat16,
        parameters, statistics, losses and sums in float32.
    """

    architecture: Literal["auto", "classifier", "two_projector"] = "auto"
    fusion: Literal["concat", "sum", "film", "gated"] = "concat"
    projector: Literal["linear", "mlp"] = "linear"
    width: int = 128
    stand_in: Literal["infiltration", "zero"] = "infiltration"
    lora_rank: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """What a client does in one round.

    Attributes:
      epochs: Passes over its samples per round, E (reference code: 10).
      batch_size: Samples per step, B (reference code: 16 to 64).
      learning_rate: lr_0, the rate of the first rounds.
      learning_rate_min: lr_min, reached at the last round; None: constant rate.
      rate_scale: Factor on both rates; 1: as they are. None: 1 where clients train with
        momentum 0.9, but for a method whose own momentum is another (SCAFFOLD: 0) the
        ratio of the mean lengths of their steps, so that one learning rate is fair to
        all: G = (1/S) sum_{s=1..S} (1 - 0.9^s) / (1 - 0.9) without momentum (2.6 at
        S = 5, 6.0 at 20), S the median client's steps in a round. The run's first
        lines name it.
      decay_start: T_0, last round at lr_0 (reference code: 80 of 180).
      legacy_schedule: The public code's discontinuous schedule.
      optimizer: sgd (torch's momentum form) or adam; fresh in every round.
      momentum: Of sgd, in [0, 1); None: the method's own, 0.9 but for SCAFFOLD.
      weight_decay: On all parameters (reference code: 1e-4).
      clip_grad_norm: Largest l2 norm of a step's gradient, of all parameters together
        and before weight decay; None: no clipping. clip_norm is that of a client's
        whole update.
      augment: Image modalities whose training batches get random resized crops and
        horizontal flips (reference code: visual).
    """

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 0.02
    learning_rate_min: float | None = None
    rate_scale: float | None = None
    decay_start: int = 0
    legacy_schedule: bool = False
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float | None = None
    weight_decay: float = 1e-4
    clip_grad_norm: float | None = None
    augment: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """What the server does with the mean update (FedOpt, arXiv 2003.00295).

    Attributes:
      optimizer: none (add it); the paper's adagrad, adam, yogi or avgm; or optax_adam,
        optax_yogi, their usual forms with bias correction.
      learning_rate: Rate of that optimizer, unused with none; None: its own, adagrad
        0.1, adam and yogi 0.01, avgm 1, optax_adam and optax_yogi 0.03.
    """

    optimizer: Literal[
        "none", "adagrad", "adam", "yogi", "avgm", "optax_adam", "optax_yogi"
    ] = "none"
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that fixes a run's results.

    Attributes:
      dataset: Data set and its options.
      partition: How samples are dealt to clients, and options.
      encoder: Encoder of every modality, and options.
      encoder_names: Encoder of each modality, in the data set's order, with its default
        options; a name equal to encoder.name has that section's. Empty: encoder for
        all.
      method: Federated method and options.
      aggregator: What stands in the place of the mean of updates, and options.
      attack: What some clients do to harm, to measure what holds, and options.
      privacy: Clipping of clients' updates and noise on their sum, and options.
      compression: What makes the updates that clients send smaller, and options.
      systems: Clients that are away, slow or lost, simulated time, and options.
      model: The model around the encoders.
      local: Local training.
      server: Server optimizer.
      clients: Clients that the partition gives; 0: as many as a natural one has. The
        federation's N are those but for holdout_clients.
      clients_per_round: Clients trained per round, K.
      multimodal_fraction: Share of clients with all modalities; the others have one
        (reference code: 0.5).
      modalities: Instead, any subsets: counts of clients (clean=5,clean+noisy=15),
        probabilities (clean=0.25,clean+noisy=0.75), or a table by client, FILE.csv or
        FILE.npz (docs/new_data.md). None: multimodal_fraction.
      missing_fraction: Share of the samples of clients with several modalities that
        lack one of them, drawn uniformly; training samples only.
      label_noise: Share of each client's training labels that are replaced by wrong
        ones; validation and test samples never are.
      label_noise_kind: symmetric: by any other class; pair: by the next one.
        Class shares that differ by client are the partition's (dirichlet's alpha).
      label_noise_min: Clients draw their share between this and label_noise; None: all
        have label_noise.
      noisy_clients: Share of clients that have label noise.
      feature_noise: Gaussian noise on the training inputs of client i of N: deviation
        feature_noise * i / N, in the inputs' units (NIID-Bench, arXiv 2102.02079).
      probe_fraction: Share of a client's samples held out for r-bar and temperatures.
      validation_fraction: Share of every client's samples, stratified by class, held
        out of training for choices: the best round, early stopping, tuning. Shares
        come from the training split: what its samples have in common stays in common.
        Columns val_...
      client_test_fraction: Share of every client's samples, stratified by class, kept
        as its own test set; meant for natural partitions. Columns client_test_...
      holdout_clients: Clients of the partition, drawn by the seed, that never take
        part; the federation has the others. Their samples are tested on. Columns
        holdout_...
      rounds: Rounds of the run, R.
      seed: Seed of everything random.
      seeds: Runs with the seeds seed, seed + 1... one after the other, each in a folder
        of its own; metrics over all beside them. Seeds whose arrays have the same
        shapes, the usual case, share one compiled program; others compile their own
        (holdout_clients: numbers of samples differ; SCAFFOLD: rates may).
      map_seeds: Train all seeds at once in one program (vmap), on the partition of
        seed 0 (as fixed_partition): for small models on one device.
      early_stop_rounds: Stop when this many rounds brought no higher fused accuracy on
        validation, judged at evaluations; None: train all rounds.
      fixed_partition: Deal partition, modalities, held-out samples and noise by seed 0,
        whatever the seed is: several seeds then share them.
      eval_every: Rounds between evaluations.
      checkpoint_every: Rounds between checkpoints.
      rounds_per_call: Rounds per compiled call at most; None: as eval_every.
      chunk_size: Clients computed together, speed and memory only; auto: a few sizes
        are timed when the run begins and the fastest is kept.
      reduction: How a cohort's sums are added. fixed: in a fixed order, so that the
        number of devices changes no bit of the results; fast: one all-reduce; auto:
        fixed on CPU, fast elsewhere.
      lanes: Partial sums of a fixed reduction, at least as many as devices; part of the
        results.
      clip_norm: Largest l2 norm of a client's update, of its parameters only: BatchNorm
        statistics and a method's uploads pass as they are; None: no clipping.
      guard_factor: Clients whose update is longer than this many times the median of
        earlier rounds are set aside and named; inf: nobody is. A run that was begun
        before there was a guard goes on without.
      init_from: What parameters start from: a run's folder (RUN, RUN@best, RUN@12) or
        FILE.npz or FILE.safetensors as ``fedcmi export`` writes them; one of its blocks
        after a colon, such as FILE.npz:encoder/clean. None: all are drawn.
      freeze: Blocks (encoder/*), layers (encoder/*/dense0) or arrays that never change:
        not trained, not sent.
      stream: Keep samples on the host and send each round's cohort to the device while
        the round before runs; for data that do not fit the device. Same results.
      log_clients: Who took part, in clients.jsonl in the run's folder. cohort: ids of
        the cohort and of rejected clients, every round; all: their training losses,
        too, and every client's accuracy at evaluations. Each number is about 8 bytes.
      imports: Modules of your own that register methods, data sets, partitions or
        encoders (``fc.register``), imported first, here and when the run is resumed.
      output: Run folder; None: a new one under runs/.
      preset: Where the values come from (fedcmi list presets); named first, no flag.
    """

    dataset: Any = None
    partition: Any = None
    encoder: Any = None
    encoder_names: tuple[str, ...] = ()
    method: Any = None
    aggregator: Any = None
    attack: Any = None
    privacy: Any = None
    compression: Any = None
    systems: Any = None
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    server: ServerConfig = ServerConfig()
    clients: int = 20
    clients_per_round: int = 5
    multimodal_fraction: float = 0.5
    modalities: str | None = None
    missing_fraction: float = 0.0
    label_noise: float = 0.0
    label_noise_kind: Literal["symmetric", "pair"] = "symmetric"
    label_noise_min: float | None = None
    noisy_clients: float = 1.0
    feature_noise: float = 0.0
    probe_fraction: float = 0.0
    validation_fraction: float = 0.0
    client_test_fraction: float = 0.0
    holdout_clients: int = 0
    rounds: int = 100
    seed: int = 0
    seeds: int = 1
    map_seeds: bool = False
    early_stop_rounds: int | None = None
    fixed_partition: bool = False
    eval_every: int = 1
    checkpoint_every: int = 10
    rounds_per_call: int | None = None
    chunk_size: int | Literal["auto"] = 1
    reduction: Reduction = "auto"
    lanes: int = LANES
    clip_norm: float | None = None
    guard_factor: float = FACTOR
    init_from: str | None = None
    freeze: tuple[str, ...] = ()
    stream: bool = False
    log_clients: Literal["none", "cohort", "all"] = "none"
    imports: Annotated[tuple[str, ...], arg(name="import")] = ()
    output: str | None = None
    preset: Annotated[str, Positional, arg(metavar="[PRESET]")] = ""

    def __post_init__(self) -> None:
        """Puts the default sections in."""
        for kind, name in DEFAULT_NAMES.items():
            if getattr(self, kind) is None:
                object.__setattr__(self, kind, section(kind, name)())


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a configuration from nested dicts; what is left out has its default.

    Raises:
      ValueError: An unknown section, field or name, or a module that does not import.

    Example:
      >>> from_dict({"method": {"name": "fedprox", "mu": 0.5}}).method.mu
      0.5
    """
    given = values.get("imports", ()) if isinstance(values, dict) else ()
    plugins.load(typed("imports", given, tuple[str, ...]))
    return _load(Config, "", values)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts of JSON values; ``from_dict`` takes them back.

    Floats that JSON lacks become "inf", "-inf" and "nan".

    Example:
      >>> to_dict(from_dict({"partition": {"cap": float("inf")}}))["partition"]["cap"]
      'inf'
    """
    return as_json(dataclasses.asdict(config))


def as_json(value: Any) -> Any:
    """A value as a JSON file has it: tuples as lists, floats that JSON lacks as texts.

    Example:
      >>> as_json({"values": (3.0, float("inf"))})
      {'values': [3.0, 'inf']}
    """
    if isinstance(value, dict):
        return {name: as_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _load(cls: type, where: str, values: Any) -> Any:
    if not isinstance(values, dict):
        what = where.removesuffix(".") or "config"
        raise ValueError(f"{what}: {values!r} is not a table of fields")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    loaded = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in fields:
            now = f"{path}: unknown field; choose from {sorted(fields)}"
            if RENAMED.get(name) in fields:
                now = f"{path}: called {RENAMED[name]} since release 0.2"
            raise ValueError(now)
        if cls is Config and name in REGISTRIES:
            value = _load(_chosen(name, value), f"{path}.", value)
        elif dataclasses.is_dataclass(hints[name]):
            value = _load(hints[name], f"{path}.", value)
        else:
            value = typed(path, value, hints[name])
        loaded[name] = value
    return cls(**loaded)


def _chosen(kind: str, values: Any) -> type:
    """The section that a table names."""
    name = values.get("name", DEFAULT_NAMES[kind]) if isinstance(values, dict) else ""
    return section(kind, typed(f"{kind}.name", name or DEFAULT_NAMES[kind], str))


def shares_partition(config: Config) -> bool:
    """Whether all seeds of a configuration train on the partition of seed 0."""
    return config.fixed_partition or config.map_seeds


def trains_in_turn(config: Config) -> bool:
    """Whether a configuration has several seeds, trained one after the other."""
    return config.seeds > 1 and not config.map_seeds
