"""The rounds of a run: one compiled call after the other, and its metrics lines."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.evaluation.summary import read_sums
from fedcmi_jax.experiment import traffic
from fedcmi_jax.experiment.accounting import Guarantee
from fedcmi_jax.experiment.bound import rounds_per_call
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, measure
from fedcmi_jax.experiment.resume import is_due
from fedcmi_jax.experiment.seed_axis import by_seed, one_seed, pool
from fedcmi_jax.types import FederationState, PyTree, RoundInfo

LONGEST_POLL = 0.05
"""Seconds between looks at the device while a round runs, at most."""

POLL_SHARE = 1 / 16
"""Time between looks over the time waited so far: what a look may come too late by."""

SHORTEST_POLL = 1e-4
"""Seconds between looks at the device, at least."""


MOST_EMPTY_ROUNDS = 3
"""Rounds in a row that may accept nobody: by then it is no client's bad luck."""


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


def calls(
    experiment: Experiment,
    state: FederationState,
    begin: Callable[[int], None] | None = None,
) -> Iterator[Call]:
    """Trains from the state's round to the last one.

    A call ends at an evaluation, at a checkpoint or at the last round at the latest.

    Args:
      experiment: What to run.
      state: Of its algorithm. It is given up to the next call, as each call's state is:
        whoever takes the calls must be done with one before asking for the next.
      begin: Called with each round's number before it; a call then holds one round.

    Yields:
      The calls; their states are finite.

    Raises:
      DivergedError: Three rounds in a row, of any seed, accepted no client, or the
        parameters or statistics after one are not finite. A round that accepts nobody
        changes nothing but the count of rounds, and metrics lines name its clients.

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
    empty: Counter[int] = Counter()
    while round < config.rounds:
        before, round = round, _next_stop(config, round) if begin is None else round + 1
        if begin is not None:
            begin(round)
        state, infos = experiment.algorithm.run(
            state, experiment.federation_at(before), np.int32(round - before)
        )
        _wait(infos)
        call = Call(state, jax.device_get(infos), before, round)
        _check(experiment, call, empty)
        yield call


def records(
    experiment: Experiment, call: Call, last: bool = False
) -> Iterator[dict[str, Any]]:
    """Metrics lines of a call: rounds with rejected clients, and the evaluated one.

    Args:
      experiment: The experiment.
      call: One of its calls.
      last: Evaluate its last round even if that is not due, because the run ends.

    Yields:
      Lines for the log; of mapped seeds their ``seed_axis.pool``.
    """
    config, clients = experiment.config, experiment.federation.num_clients
    for i, round in enumerate(range(call.before + 1, call.round + 1)):
        infos = _infos_of(config, call, i)
        record = {"round": round} | unusual(config, clients, infos)
        is_evaluated = last or is_due(config.eval_every, round, config.rounds)
        if round == call.round and is_evaluated:
            states = by_seed(config, call.state, one_seed)
            rows = {
                seed: _apart(
                    measure(experiment, states[seed]), training_numbers(info, clients)
                )
                | _costs(experiment, info, round)
                for seed, info in infos.items()
            }
            record |= pool(rows) if config.map_seeds else rows[config.seed]
        if len(record) > 1:
            yield record


def _infos_of(config: Config, call: Call, i: int) -> dict[int, RoundInfo]:
    """Seed -> the info of the call's i-th round."""
    row = jax.tree.map(lambda x: x[i], call.infos)
    return by_seed(config, row, lambda t, s: jax.tree.map(lambda x: x[s], t))


def unusual(
    config: Config, num_clients: int, infos: dict[int, RoundInfo]
) -> dict[str, Any]:
    """Fields of a metrics line on what was left out of a round, if anything.

    Who was rejected, whom the guard set aside, whether it dropped the round, how many
    blocks had too few owners. Of mapped seeds: seed -> each of these.
    """
    fields: dict[str, dict[int, Any]] = {}
    for seed, info in infos.items():
        rejected = ~info.accepted & ~info.set_aside & (not info.skipped)
        rejected &= _arrived(info, num_clients)
        found = {
            "rejected": [int(c) for c in info.cohort[rejected]],
            "set_aside": [int(c) for c in info.cohort[info.set_aside]],
            "skipped": bool(info.skipped),
            "blocks_kept": int(info.blocks_kept),
        }
        for name, value in found.items():
            if value:
                fields.setdefault(name, {})[seed] = value
    if config.map_seeds:
        return dict(fields)
    return {name: values[config.seed] for name, values in fields.items()}


def _next_stop(config: Config, round: int) -> int:
    """The round at which the next compiled call must end."""
    stops = [round + rounds_per_call(config), config.rounds]
    for every in (config.eval_every, config.checkpoint_every):
        stops.append((round // every + 1) * every)
    return min(stops)


def _wait(tree: PyTree) -> None:
    """Waits for device arrays so that Python still sees signals."""
    begun = time.perf_counter()
    for leaf in jax.tree.leaves(tree):
        while not leaf.is_ready():
            pause = POLL_SHARE * (time.perf_counter() - begun)
            time.sleep(min(max(pause, SHORTEST_POLL), LONGEST_POLL))


def _check(experiment: Experiment, call: Call, empty: Counter[int]) -> None:
    """Raises `DivergedError` if the call's updates or its model are not finite.

    ``empty`` has the rounds in a row, up to the last one, in which a seed accepted
    nobody; it is brought up to date.
    """
    config, rejected = experiment.config, []
    clients = experiment.federation.num_clients
    for i, round in enumerate(range(call.before + 1, call.round + 1)):
        infos = _infos_of(config, call, i)
        if found := unusual(config, clients, infos):
            rejected.append({"round": round} | found)
        for seed, info in infos.items():
            # A new guard drops rounds until it has a measure; metrics lines name them.
            nobody = not _arrived(info, clients).any()
            counts = info.accepted.any() or info.skipped or nobody
            empty[seed] = 0 if counts else empty[seed] + 1
        most = min(MOST_EMPTY_ROUNDS, config.rounds)
        if lost := [seed for seed in infos if empty[seed] == most]:
            cohort = len(infos[lost[0]].cohort)
            what = (
                f"none of {cohort} clients sent a finite update, {most} rounds in a row"
            )
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


def training_numbers(info: RoundInfo, num_clients: int) -> dict[str, Any]:
    """The training's own metrics in an evaluated round."""
    return {
        **read_sums(info.metrics),
        "learning_rate": float(info.learning_rate),
        "num_examples": float(info.num_examples),
        "cohort": int(_real(info, num_clients).sum()),
    }


def _apart(measured: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Both; a name in both is a script's metric and one of its method."""
    for name in measured.keys() & trained.keys():
        raise ValueError(
            f"metrics: {name!r} is the name of a training metric, too; choose another"
        )
    return measured | trained


def _costs(experiment: Experiment, info: RoundInfo, round: int) -> dict[str, Any]:
    """What an evaluated round has sent, and what privacy is spent by then."""
    members, clients = np.asarray(info.cohort), experiment.federation.num_clients
    real, arrived = _real(info, clients), _arrived(info, clients)
    down, _ = traffic.of_cohort(experiment.traffic(), members[real])
    _, up = traffic.of_cohort(experiment.traffic(), members[arrived])
    fields: dict[str, Any] = {"bytes_down": down, "bytes_up": up}
    if info.systems:
        fields["lost"] = int((real & ~arrived).sum())
        fields["partial"] = int(info.systems.partial)
        fields["sim_seconds"] = float(info.systems.seconds)
    return fields | spent(experiment.guarantee, info, round)


def spent(
    guarantee: Guarantee | None, info: RoundInfo, round: int
) -> dict[str, float | None]:
    """What privacy is spent after a round, and how it clipped; nothing without any.

    Without noise epsilon is infinite, which a line of JSON and a mean have no place
    for: None.
    """
    if guarantee is None:
        return {}
    epsilon = guarantee.epsilon(round)
    clipping = {name: float(x) for name, x in info.privacy._asdict().items()}
    return {"epsilon": epsilon if math.isfinite(epsilon) else None} | clipping


def _real(info: RoundInfo, num_clients: int) -> np.ndarray:
    """[K] bool, which places of a round's cohort have a client."""
    return np.asarray(info.cohort) < num_clients


def _arrived(info: RoundInfo, num_clients: int) -> np.ndarray:
    """[K] bool, whose update arrived, whatever became of it."""
    real = _real(info, num_clients)
    return real & np.asarray(info.systems.returned) if info.systems else real
