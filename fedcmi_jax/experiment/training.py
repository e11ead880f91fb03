"""The training loop around the compiled rounds: evaluate, log, checkpoint, stop.

Results depend on the configuration alone: a run that was interrupted at any moment and
resumed ends with the same parameters bit for bit and the same metric lines. For that,
a round's metrics are on disk before its checkpoint, which holds a copy of the log up to
there. A run that goes on compares the two: lines of later rounds are dropped and
written again, and a log that is not the checkpoint's is moved aside and rebuilt.
"""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax import streaming
from fedcmi_jax.experiment import (
    autotune,
    checkpoint,
    health,
    hosts,
    measures,
    resume,
    traffic,
)
from fedcmi_jax.experiment.best import Best, best_of, best_so_far, should_stop
from fedcmi_jax.experiment.best import load_best as load_best
from fedcmi_jax.experiment.callbacks import Begun, Callback, Callbacks
from fedcmi_jax.experiment.client_log import ClientLog
from fedcmi_jax.experiment.config import (
    Config,
    shares_partition,
    to_dict,
    trains_in_turn,
)
from fedcmi_jax.experiment.config_file import located
from fedcmi_jax.experiment.config_file import read_config as read_config
from fedcmi_jax.experiment.config_file import versions as versions
from fedcmi_jax.experiment.config_file import write_config as write_config
from fedcmi_jax.experiment.curve import write_curve
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.loop import Call, calls, records
from fedcmi_jax.experiment.loop import DivergedError as DivergedError
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.run_folder import BEST as BEST
from fedcmi_jax.experiment.run_folder import CHECKPOINTS as CHECKPOINTS
from fedcmi_jax.experiment.run_folder import CLIENTS as CLIENTS
from fedcmi_jax.experiment.run_folder import CONFIG as CONFIG
from fedcmi_jax.experiment.run_folder import METRICS as METRICS
from fedcmi_jax.experiment.run_folder import SUMMARY as SUMMARY
from fedcmi_jax.experiment.seed_axis import split_summary, summary_fields
from fedcmi_jax.experiment.stopping import Interrupted as Interrupted
from fedcmi_jax.experiment.stopping import stop_requests as stop_requests
from fedcmi_jax.placement import own_rows
from fedcmi_jax.types import FederationState


class Summary(NamedTuple):
    """How a run ended.

    Attributes:
      folder: Its folder.
      final: Its last metrics line.
      state: Its final state.
      best: The metrics line of the best round on validation; None without validation.
      stopped_early: The round at which early stopping ended it; None: it did not.
      fixed_partition: Whether it trained on the partition of seed 0.
      signs: That it went wrong nevertheless, one line each (``health.signs``).
    """

    folder: pathlib.Path
    final: dict[str, Any]
    state: FederationState
    best: dict[str, Any] | None = None
    stopped_early: int | None = None
    fixed_partition: bool = False
    signs: tuple[str, ...] = ()


def train(
    experiment: Experiment,
    folder: pathlib.Path,
    callbacks: Sequence[Callback] = (),
    stop: list[int] | None = None,
) -> Summary:
    """Trains, or goes on from the folder's newest good checkpoint, to the last round.

    With a validation split, the best round so far (``best``) is kept as a checkpoint
    in ``best/``, and ``early_stop_rounds`` may end the run before its last
    round. Where seeds are mapped, both look at the mean over the seeds.

    Args:
      experiment: What to run; ``experiment.build``.
      folder: The run's folder; it must exist.
      callbacks: What follows the run.
      stop: Gets a signal from a caller who collects SIGINT and SIGTERM
        (``stop_requests``); None: collected here.

    Returns:
      The run's summary, also written to summary.json.

    Raises:
      ValueError: The folder cannot be used, or the checkpoints belong to another
        configuration or version, or none of them is intact. Log and checkpoints have
        not been touched then.
      Interrupted: SIGINT or SIGTERM; the last finished round is saved.
      DivergedError: No client of a round sent a finite update, or the model is no
        longer finite; the last checkpoint is that of an earlier round. Metric lines
        name the clients that were rejected up to there.
      CallbackError: A callback failed; the last finished round is saved.
    """
    told, config = Callbacks(callbacks), experiment.config
    if trains_in_turn(config):
        raise ValueError(f"seeds: {config.seeds} is not one run; use seeds.train")
    if hosts.is_main():
        resume.check_usable(folder)
    log = MetricsLog(folder / METRICS) if hosts.is_main() else _NoLog(folder / METRICS)
    experiment = autotune.tuned(experiment, folder, told.note)
    state = resume.start(experiment, folder, log, told.note)
    norm = None if int(state.round) else health.norm(state.params)
    like = state
    if experiment.mesh is not None:  # a checkpoint holds the clients' own rows only
        n = experiment.federation.num_clients
        like = jax.eval_shape(lambda s: own_rows(s, n), state)
    best = best_so_far(folder, like, log, told.note)
    clients = _client_log(experiment, folder, int(state.round), told.note)
    with contextlib.ExitStack() as stack:
        stack.enter_context(told.run(Begun(config, folder, int(state.round))))
        if stop is None:
            stop = stack.enter_context(stop_requests(told.note))
        state, stopped = _loop(
            experiment, folder, state, best, log, clients, told, stop
        )
        if experiment.stream is not None:
            told.note(streaming.describe(experiment.stream.report()))
        summary = _finish(experiment, folder, log, state, stopped, norm)
        for sign in summary.signs:
            told.note(sign)
    told.finished(stopped)
    return summary


def _loop(
    experiment: Experiment,
    folder: pathlib.Path,
    state: FederationState,
    best: Best,
    log: MetricsLog,
    clients: ClientLog | None,
    told: Callbacks,
    stop: list[int],
) -> tuple[FederationState, bool]:
    """The last state, and whether the training ended before its last round."""
    config, round = experiment.config, int(state.round)
    if _is_over(config, best, round):
        return state, round < config.rounds
    begun = time.perf_counter()
    # Process 0 has the callbacks; all must run the same calls.
    each = hosts.any_process(told.wants_rounds)
    for call in _calls(experiment, folder, state, log, told if each else None):
        state, round, told.round = call.state, call.round, call.round
        if each:
            told.round_end(round, jax.tree.map(lambda x: x[0], call.infos), state)
        last = hosts.any_process(told.wants_stop)
        accuracies = None
        for record in records(experiment, call, last):
            accuracies = record.pop(measures.CLIENTS, None)
            if "acc" in record:
                now = time.perf_counter()
                record["seconds"], begun = now - begun, now
            log.append(record)
            if "acc" in record:
                told.evaluated(record)
            # Process 0 decides: another's last digit may differ.
            if hosts.any_process(hosts.is_main() and best.is_beaten_by(record)):
                best = Best(round, record["val_acc"])
                _save(experiment, folder / BEST, state, log, keep=1)
        if clients is not None:
            clients.append(range(call.before + 1, round + 1), call.infos, accuracies)
        last = hosts.any_process(told.wants_stop) or _is_over(config, best, round)
        stopping = hosts.any_process(bool(stop or told.failure))
        is_due = resume.is_due(config.checkpoint_every, round, config.rounds)
        if is_due or stopping or last:
            _save(experiment, folder / CHECKPOINTS, state, log)
            told.saved(round)
        if last:
            break
        told.check(
            f"round {round} is saved, go on with: {experiment.parts.resume} {folder}"
        )
        if stopping:
            raise Interrupted(stop[0] if stop else signal.SIGTERM, round)
    return state, round < config.rounds


def _calls(
    experiment: Experiment,
    folder: pathlib.Path,
    state: FederationState,
    log: MetricsLog,
    told: Callbacks | None,
) -> Iterator[Call]:
    """`calls`; if training diverges, the log names the clients rejected up to there."""
    try:
        yield from calls(experiment, state, told.round_start if told else None)
    except DivergedError as error:
        for record in error.rejected:
            log.append(record)
        saved = checkpoint.rounds(folder / CHECKPOINTS)
        kept = f"round {saved[-1]} is saved" if saved else "nothing was saved yet"
        raise DivergedError(f"{error} ({kept} in {folder})") from None


def _is_over(config: Config, best: Best, round: int) -> bool:
    """Whether the last round is done, or validation ended the run early."""
    is_evaluated = round > 0 and resume.is_due(config.eval_every, round, config.rounds)
    stops = is_evaluated and should_stop(best, round, config.early_stop_rounds)
    return stops or round >= config.rounds


def _save(
    experiment: Experiment,
    folder: pathlib.Path,
    state: FederationState,
    log: MetricsLog,
    keep: int = 3,
) -> None:
    """Writes a checkpoint; all processes call it, process 0 writes."""
    if experiment.mesh is not None:
        state = own_rows(hosts.fetch(state), experiment.federation.num_clients)
    if hosts.is_main():
        config = to_dict(located(experiment.config))
        checkpoint.save(folder, state, keep=keep, log=log.content, config=config)


def _client_log(
    experiment: Experiment,
    folder: pathlib.Path,
    round: int,
    note: Callable[[str], None],
) -> ClientLog | None:
    """The log of who takes part, as after a round; None: there is none."""
    if experiment.config.log_clients == "none" or not hosts.is_main():
        return None
    n = experiment.federation.num_clients
    sizes = np.asarray(experiment.federation.sizes)[:n]
    losses = experiment.config.log_clients == "all"
    log = ClientLog(folder / CLIENTS, sizes, losses)
    if line := log.start(round):
        note(line)
    return log


class _NoLog(MetricsLog):
    """The metrics log of a process that does not write."""

    def append(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def truncate_after(self, round: int) -> None:
        """Does nothing."""


def _finish(
    experiment: Experiment,
    folder: pathlib.Path,
    log: MetricsLog,
    state: FederationState,
    stopped: bool,
    norm: float | None,
) -> Summary:
    config, round = experiment.config, int(state.round)
    if not hosts.is_main():
        return Summary(folder, {}, state)
    records = log.evaluated()
    number = best_of(records).round
    best = next((r for r in records if r["round"] == number), None)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    summary = {
        "rounds": round,
        "stopped_early": round if stopped else None,
        "bytes_per_client": traffic.mean(experiment.traffic())._asdict(),
        "parameters": parameters // (config.seeds if config.map_seeds else 1),
        "final": records[-1],
        "best": best,
        "chosen_on": "validation" if best else None,
        "fixed_partition": shares_partition(config),
        "seconds": sum(r.get("seconds") or 0.0 for r in records),
        "versions": versions(),
    }
    if experiment.holdout_ids:
        summary["holdout_clients"] = list(experiment.holdout_ids)
    if experiment.guarantee is not None:
        summary["privacy"] = experiment.guarantee.summary(round)
    if config.map_seeds:
        summary |= summary_fields(split_summary(summary), shares_partition(config))
    growth = health.growth(experiment, state, norm)
    signs = health.signs(records, experiment.model.num_classes, growth)
    if signs:
        summary["signs"] = list(signs)
    if experiment.stream is not None:
        summary["stream"] = experiment.stream.report()
    write_curve(folder, records)
    write_json(folder / SUMMARY, summary, null_non_finite=True)
    return Summary(
        folder,
        records[-1],
        state,
        best,
        summary["stopped_early"],
        summary["fixed_partition"],
        signs,
    )
