"""What a call of the compiled rounds says: metrics lines, or that training diverged."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from fedcmi_jax import checkpoint
from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.config import Config
from fedcmi_jax.evaluation import read_sums
from fedcmi_jax.experiment import Experiment
from fedcmi_jax.resume import is_due
from fedcmi_jax.run_folder import CHECKPOINTS, MetricsLog
from fedcmi_jax.seed_axis import one_seed, pool
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
    config: Config, infos: RoundInfo, round: int, piece: int, log: MetricsLog
) -> None:
    """Raises if a round accepted no client; the log names those rejected up to there.

    Args:
      config: The run's configuration.
      infos: Of one call of ``FederatedAlgorithm.run``, on the host.
      round: Rounds done before the call.
      piece: Rounds of the call.
      log: The run's log.

    Raises:
      DivergedError: A round, of any seed, accepted no client.
    """
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
        raise _diverged(config, lost, round + i + 1, what, log)


def check_finite(
    config: Config, state: FederationState, round: int, log: MetricsLog
) -> None:
    """Raises if a model holds numbers that are none.

    Args:
      config: The run's configuration.
      state: After ``round`` rounds.
      round: Rounds done.
      log: The run's log.

    Raises:
      DivergedError: Parameters or statistics, of any seed, are not finite.
    """
    finite = jax.jit(all_finite)
    members = _members(config, state, one_seed)
    lost = [n for n, s in members.items() if not finite((s.params, s.batch_stats))]
    if lost:
        raise _diverged(config, lost, round, "the model is not finite", log)


def _diverged(
    config: Config, lost: list[int], round: int, what: str, log: MetricsLog
) -> DivergedError:
    """The error of the seeds that are lost."""
    folder = log.path.parent
    saved = checkpoint.rounds(folder / CHECKPOINTS)
    kept = f"round {saved[-1]} is saved" if saved else "nothing was saved yet"
    remedies = f"lower --local.learning-rate (now {config.local.learning_rate})"
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
    evaluate: Callable[[Experiment, FederationState], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Metrics lines of a call: rounds with rejected clients, and the evaluated one.

    Args:
      experiment: The experiment.
      state: After the call.
      infos: Of the call, on the host.
      before: Rounds done before the call.
      piece: Rounds of the call.
      evaluate: (experiment, state of one seed) -> metrics.

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
                seed: evaluate(experiment, states[seed]) | _training(info)
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
