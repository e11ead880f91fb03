"""The rounds of a run: one compiled call after the other, and its metrics lines."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.evaluation.summary import read_sums
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, measure, rounds_per_call
from fedcmi_jax.experiment.resume import is_due
from fedcmi_jax.experiment.seed_axis import by_seed, one_seed, pool
from fedcmi_jax.types import FederationState, PyTree, RoundInfo

LONGEST_POLL = 0.05
"""Seconds between looks at the device while a round runs, at most."""


class DivergedError(Exception):
    """No client's update was finite, or the model is not; names the remedy.

    Attributes:
      rejected: Metrics lines of the lost call's rounds that had rejected clients.
    """

    def __init__(self, message: str, rejected: list[dict[str, Any]] | None = None):
        super().__init__(message)
        self.rejected = rejected or []


class Call(NamedTuple):
    """A compiled call that is done.

    Attributes:
      state: After it.
      infos: On the host, [rounds_per_call, ...]; the first ``round - before`` count.
      before: Rounds done before it.
      round: Rounds done after it.
    """

    state: FederationState
    infos: RoundInfo
    before: int
    round: int


def calls(experiment: Experiment, state: FederationState) -> Iterator[Call]:
    """Trains from the state's round to the last one.

    A call ends at an evaluation, at a checkpoint or at the last round at the latest.

    Args:
      experiment: What to run.
      state: Of its algorithm. It is given up to the next call, as each call's state is:
        whoever takes the calls must be done with one before asking for the next.

    Yields:
      The calls; their states are finite.

    Raises:
      DivergedError: A round, of any seed, accepted no client, or the parameters or
        statistics after it are not finite.

    Example:
      >>> import jax, fedcmi_jax as fc
      >>> values = {"dataset": {"name": "synthetic"}, "rounds": 2}
      >>> values["method"] = {"name": "fedavg"}
      >>> experiment = fc.experiment.build(fc.config.from_dict(values))
      >>> algorithm, federation = experiment.algorithm, experiment.federation
      >>> state = algorithm.init(experiment.key, federation)
      >>> [call.round for call in calls(experiment, state)]
      [1, 2]
    """
    config, round = experiment.config, int(state.round)
    while round < config.rounds:
        before, round = round, _next_stop(config, round)
        state, infos = experiment.algorithm.run(
            state, experiment.federation_at(before), np.int32(round - before)
        )
        _wait(infos)
        call = Call(state, jax.device_get(infos), before, round)
        _check(experiment, call)
        yield call


def records(experiment: Experiment, call: Call) -> Iterator[dict[str, Any]]:
    """Metrics lines of a call: rounds with rejected clients, and the evaluated one.

    Args:
      experiment: The experiment.
      call: One of its calls.

    Yields:
      Lines for the log; of mapped seeds their ``seed_axis.pool``.
    """
    config = experiment.config
    for i, round in enumerate(range(call.before + 1, call.round + 1)):
        infos = _infos_of(config, call, i)
        record = {"round": round} | _rejected_of(config, infos)
        if round == call.round and is_due(config.eval_every, round, config.rounds):
            states = by_seed(config, call.state, one_seed)
            rows = {
                seed: measure(experiment, states[seed]) | _training(info)
                for seed, info in infos.items()
            }
            record |= pool(rows) if config.map_seeds else rows[config.seed]
        if len(record) > 1:
            yield record


def _infos_of(config: Config, call: Call, i: int) -> dict[int, RoundInfo]:
    """Seed -> the info of the call's i-th round."""
    row = jax.tree.map(lambda x: x[i], call.infos)
    return by_seed(config, row, lambda t, s: jax.tree.map(lambda x: x[s], t))


def _rejected_of(config: Config, infos: dict[int, RoundInfo]) -> dict[str, Any]:
    """The field of a metrics line that names the clients rejected in a round, if any.

    Of mapped seeds: seed -> its rejected clients.
    """
    found = {
        seed: [int(c) for c in info.cohort[~info.accepted]]
        for seed, info in infos.items()
        if info.rejected
    }
    if not found:
        return {}
    return {"rejected": found if config.map_seeds else found[config.seed]}


def _next_stop(config: Config, round: int) -> int:
    """The round at which the next compiled call must end."""
    stops = [round + rounds_per_call(config), config.rounds]
    for every in (config.eval_every, config.checkpoint_every):
        stops.append((round // every + 1) * every)
    return min(stops)


def _wait(tree: PyTree) -> None:
    """Waits for device arrays so that Python still sees signals."""
    pause = 1e-4
    for leaf in jax.tree.leaves(tree):
        while not leaf.is_ready():
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL)


def _check(experiment: Experiment, call: Call) -> None:
    """Raises `DivergedError` if the call's updates or its model are not finite."""
    config, rejected = experiment.config, []
    for i, round in enumerate(range(call.before + 1, call.round + 1)):
        infos = _infos_of(config, call, i)
        if found := _rejected_of(config, infos):
            rejected.append({"round": round} | found)
        if lost := [seed for seed, info in infos.items() if not info.accepted.any()]:
            cohort = len(infos[lost[0]].cohort)
            what = f"none of {cohort} clients sent a finite update"
            raise DivergedError(_message(experiment, lost, round, what), rejected)
    # Finite updates can add up to more than a float holds.
    states = by_seed(config, call.state, one_seed)
    lost = [
        seed
        for seed, own in states.items()
        if not jax.jit(all_finite)((own.params, own.batch_stats))
    ]
    if lost:
        message = _message(experiment, lost, call.round, "the model is not finite")
        raise DivergedError(message, rejected)


def _message(experiment: Experiment, lost: list[int], round: int, what: str) -> str:
    """Which seeds were lost, when and why, and what to do."""
    config = experiment.config
    rate, scale = config.local.learning_rate, experiment.rate_scale
    now = f"{rate}" if scale == 1 else f"{rate * scale:.3g} = {rate} x {scale:.3g}"
    remedies = f"lower --local.learning-rate (now {now})"
    if hasattr(config.method, "min_temperature"):
        remedies += ", raise --method.min-temperature"
    where = f"seed {', '.join(map(str, lost))}, " if config.map_seeds else ""
    return (
        f"{where}round {round}, method {config.method.name}: {what}; {remedies} or set "
        "--clip-norm"
    )


def _training(info: RoundInfo) -> dict[str, Any]:
    """The training's own metrics in an evaluated round."""
    return {
        **read_sums(info.metrics),
        "learning_rate": float(info.learning_rate),
        "num_examples": float(info.num_examples),
        "cohort": len(info.cohort),
    }
