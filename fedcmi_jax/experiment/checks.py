"""What a configuration must satisfy before any work; one line for each mistake."""

import dataclasses
import typing

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax import models
from fedcmi_jax.experiment.sections import lookup
from fedcmi_jax.experiment.values import LARGEST, check_values
from fedcmi_jax.methods.base import Method
from fedcmi_jax.partition.noise import check_feature_noise, check_label_noise

if typing.TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config

SMALLEST_RATE = 1e-30
"""Smaller rates move no float32 weight, and their squares are 0."""


def check_config(config: "Config") -> None:
    """Refuses impossible numbers before any work.

    Raises:
      ValueError: One line that names field, value and remedy. What a factory checks
        itself (alpha, mu...) is found by ``build``.
    """
    check_values(config)
    _check_sizes(config)
    _check_rates(config)
    for name in config.encoder_names:
        lookup("encoder_names", name, models.ENCODERS)
    if config.model.lora_rank < 0:
        raise ValueError(
            f"model.lora_rank: {config.model.lora_rank} is negative; 0 is no adapters"
        )
    if config.seed < 0:
        raise ValueError(f"seed: {config.seed} is negative; give 0 or more")
    if config.seed + config.seeds - 1 > LARGEST:
        raise ValueError(
            f"seeds: {config.seeds} from seed {config.seed} on go past {LARGEST}"
        )
    if config.output is not None and not config.output.strip():
        raise ValueError("output: is empty; name a folder, or leave it out")
    if config.clients < 0:
        raise ValueError(
            f"clients: {config.clients} is negative; give 1 or more, or 0 for as many "
            "as a natural partition gives"
        )
    if config.clients > 0:
        check_cohort(config.clients_per_round, config.clients, config.holdout_clients)
    _check_shares(config)
    check_label_noise(
        config.label_noise,
        config.label_noise_kind,
        config.label_noise_min,
        config.noisy_clients,
    )
    check_feature_noise(config.feature_noise)
    _check_streamed(config)
    _check_seeds(config)


def _check_sizes(config: "Config") -> None:
    """Refuses counts and sizes below 1."""
    at_least_one: dict[str, float] = {
        "clients_per_round": config.clients_per_round,
        "rounds": config.rounds,
        "seeds": config.seeds,
        "eval_every": config.eval_every,
        "checkpoint_every": config.checkpoint_every,
        "chunk_size": 1 if config.chunk_size == "auto" else config.chunk_size,
        "lanes": config.lanes,
        "local.epochs": config.local.epochs,
        "local.batch_size": config.local.batch_size,
        "model.width": config.model.width,
    }
    # Encoders do not check their sizes, and flax fails on them far from here.
    for name in ("features", "hidden"):
        sizes = np.atleast_1d(getattr(config.encoder, name, 1))
        at_least_one[f"encoder.{name}"] = min(sizes.tolist(), default=1)
    if config.rounds_per_call is not None:
        at_least_one["rounds_per_call"] = config.rounds_per_call
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1; give at least 1")


def _check_rates(config: "Config") -> None:
    """Refuses learning rates and what goes with them outside their ranges."""
    positive = {"local.learning_rate": config.local.learning_rate}
    if config.local.rate_scale is not None:
        positive["local.rate_scale"] = config.local.rate_scale
    if config.server.learning_rate is not None:
        positive["server.learning_rate"] = config.server.learning_rate
    for name, value in positive.items():
        if not value >= SMALLEST_RATE:
            raise ValueError(f"{name}: {value} is below {SMALLEST_RATE}; try 0.01")
    momentum = config.local.momentum
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"local.momentum: {momentum} is outside [0, 1); try 0.9")
    if not config.local.weight_decay >= 0:
        raise ValueError(
            f"local.weight_decay: {config.local.weight_decay} is negative; try 1e-4"
        )
    clip = config.local.clip_grad_norm
    if clip is not None and not clip > 0:
        raise ValueError(
            f"local.clip_grad_norm: {clip} is not positive; try 10, or None for no "
            "clipping"
        )


def _check_streamed(config: "Config") -> None:
    """Refuses what cannot be known before a round when its samples are sent."""
    if not config.stream:
        return
    if config.rounds_per_call not in (None, 1):
        raise ValueError(
            f"rounds_per_call: {config.rounds_per_call} is not possible with stream, "
            "which sends data between rounds; leave it out"
        )
    if getattr(config.privacy, "sampling", "uniform") == "poisson":
        raise ValueError(
            "stream: a Poisson cohort has no fixed size to send; set privacy.sampling "
            "to uniform, or leave stream out"
        )
    away = getattr(config.systems, "available", 1.0) < 1
    if away or getattr(config.systems, "table", None):
        raise ValueError(
            "stream: who is away is not known when samples are sent; leave out "
            "systems.available and systems.table, or stream"
        )


def check_effects(config: "Config") -> None:
    """Refuses, for a new run, what another field leaves without effect.

    Raises:
      ValueError: One line that names the field and the other.
    """
    usual = {f.name: f.default for f in dataclasses.fields(config)}
    names = () if config.label_noise else ("noisy_clients", "label_noise_kind")
    for name in names:
        if getattr(config, name) != usual[name]:
            raise ValueError(
                f"{name}: {getattr(config, name)} has no effect without label_noise; "
                "give e.g. label_noise = 0.2, or leave it out"
            )
    share = config.multimodal_fraction
    if config.modalities is not None and share != usual["multimodal_fraction"]:
        raise ValueError(
            f"multimodal_fraction: {share} has no effect beside modalities; leave it "
            f"at {usual['multimodal_fraction']}, or leave out modalities"
        )


def _check_seeds(config: "Config") -> None:
    """Refuses what several seeds at once, or early stopping, cannot do."""
    if config.map_seeds and config.seeds == 1:
        raise ValueError("map_seeds: there is one seed only; give e.g. seeds = 3")
    if config.map_seeds and config.stream:
        raise ValueError(
            "map_seeds: mapped seeds have cohorts of their own, which one stream "
            "cannot send; leave out map_seeds or stream"
        )
    if config.map_seeds and config.log_clients != "none":
        raise ValueError(
            "log_clients: mapped seeds have cohorts of their own, and one file; leave "
            "out map_seeds or log_clients"
        )
    patience = config.early_stop_rounds
    if patience is None:
        return
    if patience < 1:
        raise ValueError(f"early_stop_rounds: {patience} is below 1; try 20")
    if not config.validation_fraction > 0:
        raise ValueError(
            f"early_stop_rounds: {patience} needs a validation split to judge by; set "
            "validation_fraction to 0.1"
        )


def check_cohort(clients_per_round: int, clients: int, holdout: int = 0) -> None:
    """Refuses a cohort that is larger than the federation.

    Args:
      clients_per_round: K.
      clients: Clients that the partition gives.
      holdout: Those of them that never take part.

    Raises:
      ValueError: It is, or nobody takes part.
    """
    left = clients - holdout
    if left < 1:
        raise ValueError(
            f"holdout_clients: {holdout} of {clients} clients; give at most "
            f"{clients - 1}, so that somebody trains"
        )
    if clients_per_round > left:
        less = f" less holdout_clients: {holdout}" if holdout else ""
        raise ValueError(
            f"clients_per_round: {clients_per_round} is more than clients: {clients}"
            f"{less}; give at most {left}"
        )


def _check_shares(config: "Config") -> None:
    """Refuses shares of a client's samples that leave nothing to train on."""
    names = ("probe_fraction", "validation_fraction", "client_test_fraction")
    shares = {name: getattr(config, name) for name in names}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: {share} is outside [0, 1); try 0.1")
    if sum(shares.values()) >= 1:
        given = " + ".join(f"{name} {share}" for name, share in shares.items() if share)
        raise ValueError(f"{given} leave nothing to train on; give less than 1 in all")
    if config.holdout_clients < 0:
        raise ValueError(
            f"holdout_clients: {config.holdout_clients} is negative; give 0 or more"
        )


def check_spread(config: "Config", mesh: Mesh | None) -> None:
    """Refuses to spread samples where nothing could be spread.

    Raises:
      ValueError: Seeds are mapped, there is one device, or samples are streamed.
    """
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


def check_stream(method: Method) -> None:
    """Refuses to stream samples to a method that looks at all clients.

    Raises:
      ValueError: It does, or there are several processes.
    """
    if method.select is not None:
        raise ValueError(
            f"stream: method {method.name!r} looks at clients before it chooses, and "
            "only the cohort's samples would be there; leave stream out"
        )
    if jax.process_count() > 1:
        raise ValueError("stream: runs in one process; leave stream out with several")
