"""What a call of the compiled rounds says: metrics lines, or that training diverged."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.evaluation.metrics import read_sums
from fedcmi_jax.experiment import checkpoint
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, measure
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.resume import is_due
from fedcmi_jax.experiment.run_folder import CHECKPOINTS
from fedcmi_jax.experiment.seed_axis import one_seed, pool
from fedcmi_jax.types import FederationState, RoundInfo


class DivergedError(Exception):
    """No client's update was finite, or the model is not; names the remedy."""


def _members(config: Config, tree: Any, pick: Callable) -> dict[int, Any]:
    """Seed -> its part of a program's result: all of it, unless seeds are mapped."""
    if not config.map_seeds:
        return {config.seed: tree}
    return {config.seed + i: pick(tree, i) for i in range(config.seeds)}


def _infos(config: Config, infos: RoundInfo, i: int) -> dict[int, RoundInfo]:
    """Seed -> row ``i`` of the infos."""
    row = jax.tree.map(lambda x: x[i], infos)
    return _members(config, row, lambda t, s: jax.tree.map(lambda x: x[s], t))


def check_alive(
    experiment: Experiment, infos: RoundInfo, round: int, piece: int, log: MetricsLog
) -> None:
    """Raises if a round accepted no client; the log names those rejected up to there.

    Args:
      experiment: The run's.
      infos: Of one call of ``FederatedAlgorithm.run``, on the host.
      round: Rounds done before the call.
      piece: Rounds of the call.
      log: The run's log.

    Raises:
      DivergedError: A round, of any seed, accepted no client.
    """
    config = experiment.config
    for i in range(piece):
        members = _infos(config, infos, i)
        lost = [seed for seed, info in members.items() if not info.accepted.any()]
        if not lost:
            continue
        for j in range(i + 1):
            if rejected := _rejected(config, _infos(config, infos, j)):
                log.append({"round": round + j + 1} | rejected)
        cohort = len(members[lost[0]].cohort)
        what = f"none of {cohort} clients sent a finite update"
        raise _diverged(experiment, lost, round + i + 1, what, log)


def is_finite(state: FederationState) -> bool:
    """Whether parameters and statistics of one seed's model are all numbers."""
    return bool(jax.jit(all_finite)((state.params, state.batch_stats)))


def check_finite(
    experiment: Experiment, state: FederationState, round: int, log: MetricsLog
) -> None:
    """Raises if a model holds numbers that are none.

    Args:
      experiment: The run's.
      state: After ``round`` rounds.
      round: Rounds done.
      log: The run's log.

    Raises:
      DivergedError: Parameters or statistics, of any seed, are not finite.
    """
    members = _members(experiment.config, state, one_seed)
    lost = [seed for seed, own in members.items() if not is_finite(own)]
    if lost:
        raise _diverged(experiment, lost, round, "the model is not finite", log)


def _diverged(
    experiment: Experiment, lost: list[int], round: int, what: str, log: MetricsLog
) -> DivergedError:
    """The error of the seeds that are lost."""
    config, folder = experiment.config, log.path.parent
    saved = checkpoint.rounds(folder / CHECKPOINTS)
    kept = f"round {saved[-1]} is saved" if saved else "nothing was saved yet"
    rate, scale = config.local.learning_rate, experiment.rate_scale
    now = f"{rate}" if scale == 1 else f"{rate * scale:.3g} = {rate} x {scale:.3g}"
    remedies = f"lower --local.learning-rate (now {now})"
    if hasattr(config.method, "min_temperature"):
        remedies += ", raise --method.min-temperature"
    where = f"seed {', '.join(map(str, lost))}, " if config.map_seeds else ""
    return DivergedError(
        f"{where}round {round}, method {config.method.name}: {what}; {remedies} or set "
        f"--clip-norm ({kept} in {folder})"
    )


def _rejected(config: Config, infos: dict[int, RoundInfo]) -> dict[str, Any]:
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


def records(
    experiment: Experiment,
    state: FederationState,
    infos: RoundInfo,
    before: int,
    piece: int,
) -> Iterator[dict[str, Any]]:
    """Metrics lines of a call: rounds with rejected clients, and the evaluated one.

    Args:
      experiment: The experiment.
      state: After the call.
      infos: Of the call, on the host.
      before: Rounds done before the call.
      piece: Rounds of the call.

    Yields:
      Lines for the log; of mapped seeds their ``seed_axis.pool``.
    """
    config = experiment.config
    for i in range(piece):
        round = before + i + 1
        members = _infos(config, infos, i)
        record = {"round": round} | _rejected(config, members)
        if i == piece - 1 and is_due(config.eval_every, round, config.rounds):
            states = _members(config, state, one_seed)
            rows = {
                seed: measure(experiment, states[seed]) | _training(info)
                for seed, info in members.items()
            }
            record |= pool(rows) if config.map_seeds else rows[config.seed]
        if len(record) > 1:
            yield record


def _training(info: RoundInfo) -> dict[str, Any]:
    """What an evaluated round says of the training."""
    return {
        **read_sums(info.metrics),
        "learning_rate": float(info.learning_rate),
        "num_examples": float(info.num_examples),
        "cohort": len(info.cohort),
    }
