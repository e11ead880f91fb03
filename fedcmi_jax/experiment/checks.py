"""What a configuration must satisfy before any work; one line for each mistake."""

import dataclasses
import typing
from typing import Any, Literal

import numpy as np

from fedcmi_jax import models
from fedcmi_jax.choices import check_choice
from fedcmi_jax.experiment.sections import lookup

if typing.TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config


def check_config(config: "Config") -> None:
    """Refuses impossible numbers before any work.

    Raises:
      ValueError: One line that names field, value and remedy. What a factory checks
        itself (alpha, mu...) is found by ``build``.
    """
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
    positive = {"local.learning_rate": config.local.learning_rate}
    if config.local.rate_scale is not None:
        positive["local.rate_scale"] = config.local.rate_scale
    if config.server.learning_rate is not None:
        positive["server.learning_rate"] = config.server.learning_rate
    for name, value in positive.items():
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{name}: {value} is not positive; try 0.01")
    momentum = config.local.momentum
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"local.momentum: {momentum} is outside [0, 1); try 0.9")
    if not config.local.weight_decay >= 0:
        raise ValueError(
            f"local.weight_decay: {config.local.weight_decay} is negative; try 1e-4"
        )
    for name in config.encoder_names:
        lookup("encoder_names", name, models.ENCODERS)
    if config.seed < 0:
        raise ValueError(f"seed: {config.seed} is negative; give 0 or more")
    if config.clients < 0:
        raise ValueError(
            f"clients: {config.clients} is negative; give 1 or more, or 0 for as many "
            "as a natural partition gives"
        )
    if config.clients > 0:
        check_cohort(config.clients_per_round, config.clients, config.holdout_clients)
    _check_shares(config)
    if config.stream and config.rounds_per_call not in (None, 1):
        raise ValueError(
            f"rounds_per_call: {config.rounds_per_call} is not possible with stream, "
            "which sends data between rounds; leave it out"
        )
    _check_seeds(config)
    _check_choices(config, "")


def _check_seeds(config: "Config") -> None:
    """Refuses what several seeds at once, or early stopping, cannot do."""
    if config.map_seeds and config.seeds == 1:
        raise ValueError("map_seeds: there is one seed only; give e.g. seeds = 3")
    if config.map_seeds and config.stream:
        raise ValueError(
            "map_seeds: mapped seeds have cohorts of their own, which one stream "
            "cannot send; leave out map_seeds or stream"
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


def _check_choices(config: Any, where: str) -> None:
    """Checks every Literal field, which JSON and library callers can get wrong."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{where}{field.name}.")
        elif typing.get_origin(hint) is Literal:
            check_choice(f"{where}{field.name}", value, hint)
