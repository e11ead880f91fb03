"""The training loop around the compiled rounds: evaluate, log, checkpoint, stop.

Results depend on the configuration alone: a run that was interrupted at any moment and
resumed ends with the same parameters bit for bit and the same metric lines. For that,
a round's metrics are on disk before its checkpoint, which holds a copy of the log up to
there. A run that goes on compares the two: lines of later rounds are dropped and
written again, and a log that is not the checkpoint's is moved aside and rebuilt.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax import streaming
from fedcmi_jax.clients import place_state, shards_memory
from fedcmi_jax.experiment import autotune, checkpoint, hosts, resume
from fedcmi_jax.experiment.best import Best, best_of, should_stop
from fedcmi_jax.experiment.config import (
    Config,
    check_config,
    from_dict,
    shares_partition,
    to_dict,
    trains_in_turn,
)
from fedcmi_jax.experiment.experiment import Experiment, build, rounds_per_call
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.records import DivergedError as DivergedError
from fedcmi_jax.experiment.records import check_alive, check_finite, records
from fedcmi_jax.experiment.run_folder import BEST, CHECKPOINTS, CONFIG, METRICS, SUMMARY
from fedcmi_jax.experiment.seed_axis import split_summary, summary_fields
from fedcmi_jax.types import FederationState, PyTree

LONGEST_POLL = 0.05
"""Seconds between looks at the device while a round runs, at most."""


class Observer:
    """Hears about a run; the base class ignores everything."""

    def started(self, round: int, rounds: int) -> None:
        """Training starts or goes on behind this round."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """A metrics line was written."""

    def note(self, text: str) -> None:
        """Something the user should read."""


class Summary(NamedTuple):
    """How a run ended.

    Attributes:
      folder: Its folder.
      final: Its last metrics line.
      state: Its final state.
      best: The metrics line of the best round on validation; None without validation.
      stopped_early: The round at which early stopping ended it; None: it did not.
      fixed_partition: Whether it trained on the partition of seed 0.
    """

    folder: pathlib.Path
    final: dict[str, Any]
    state: FederationState
    best: dict[str, Any] | None = None
    stopped_early: int | None = None
    fixed_partition: bool = False


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint of ``round``."""

    def __init__(self, signal_number: int, round: int, seed: int | None = None):
        """Keeps what the caller needs to report."""
        of = "" if seed is None else f" of seed {seed}"
        super().__init__(f"saved round {round}{of}")
        self.signal_number = signal_number
        self.round = round


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    packages = ("fedcmi_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = {name: importlib.metadata.version(name) for name in (*packages, "numpy")}
    return found | {"python": platform.python_version()}


def write_config(folder: pathlib.Path, config: Config) -> None:
    """Writes the run's config.json, complete, with versions and compiler flags."""
    values = {
        "config": to_dict(config),
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    write_json(folder / CONFIG, values)


def read_config(folder: pathlib.Path) -> Config:
    """Reads a run's config.json.

    Raises:
      ValueError: It is damaged or of another version's making.
    """
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "config" not in values:
        raise ValueError(f"{folder / CONFIG}: has no 'config'; restore the file")
    try:
        config = from_dict(values["config"])
        check_config(config)
        return config
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}{_writer(values)}") from None


def _writer(values: dict[str, Any]) -> str:
    """The remedy for a run that another version wrote; "" for our own."""
    found = values.get("versions")
    writer = found.get("fedcmi_jax") if isinstance(found, dict) else None
    if writer in (None, versions()["fedcmi_jax"]):
        return ""
    return f"; fedcmi_jax {writer} wrote this run: finish it with that version"


def train(
    experiment: Experiment,
    folder: pathlib.Path,
    observer: Observer | None = None,
    stop: list[int] | None = None,
) -> Summary:
    """Trains, or goes on from the folder's newest good checkpoint, to the last round.

    With a validation split, the best round so far (``best``) is kept as a checkpoint
    in ``best/``, and ``early_stop_rounds`` may end the run before its last
    round. Where seeds are mapped, both look at the mean over the seeds.

    Args:
      experiment: What to run; ``experiment.build``.
      folder: The run's folder; it must exist.
      observer: Hears of progress.
      stop: Filled with a signal by a caller who collects SIGINT and SIGTERM
        (``stop_requests``); None: collected here.

    Returns:
      The run's summary, also written to summary.json.

    Raises:
      ValueError: The folder cannot be used, the checkpoints belong to another
        configuration, none of several can be used, or the log lacks lines that no
        checkpoint holds. Log and checkpoints have not been touched then.
      Interrupted: SIGINT or SIGTERM; the last finished round is saved.
      DivergedError: No client of a round sent a finite update, or the model is no
        longer finite; the last checkpoint is that of an earlier round. Metric lines
        name the clients that were rejected up to there.
    """
    observer = observer or Observer()
    config = experiment.config
    if trains_in_turn(config):
        raise ValueError(f"seeds: {config.seeds} is not one run; use seeds.train")
    if hosts.is_main():
        resume.check_usable(folder)
    log = MetricsLog(folder / METRICS) if hosts.is_main() else _NoLog(folder / METRICS)
    experiment = _tuned(experiment, folder, observer)
    state = _start(experiment, folder, log, observer)
    best = _best_so_far(folder, state, log, observer)
    observer.started(int(state.round), config.rounds)
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(stop_requests(observer))
        state, stopped = _loop(experiment, folder, state, best, log, observer, stop)
    if experiment.stream is not None:
        observer.note(streaming.describe(experiment.stream.report()))
    return _finish(experiment, folder, log, state, stopped)


def _loop(
    experiment: Experiment,
    folder: pathlib.Path,
    state: FederationState,
    best: Best,
    log: MetricsLog,
    observer: Observer,
    stop: list[int],
) -> tuple[FederationState, bool]:
    """The last state, and whether early stopping ended the training."""
    config, round = experiment.config, int(state.round)
    begun = time.perf_counter()
    done = _is_over(config, best, round)
    while not done:
        piece = _next_stop(config, round) - round
        state, infos = experiment.algorithm.run(
            state, experiment.federation_at(round), np.int32(piece)
        )
        _wait(infos)
        infos = jax.device_get(infos)
        check_alive(experiment, infos, round, piece, log)
        # Finite updates can add up to more than a float holds. Checked before anything
        # is saved, so that every checkpoint can be gone on from.
        check_finite(experiment, state, round + piece, log)
        round += piece
        before = round - piece
        for record in records(experiment, state, infos, before, piece):
            if "acc" in record:
                now = time.perf_counter()
                record["seconds"], begun = now - begun, now
            log.append(record)
            if "acc" in record:
                observer.evaluated(record)
            # Process 0 decides: another's last digit may differ.
            if hosts.any_process(hosts.is_main() and best.is_beaten_by(record)):
                best = Best(round, record["val_acc"])
                _save(folder / BEST, state, log, keep=1)
        stopping = hosts.any_process(bool(stop))
        done = _is_over(config, best, round)
        if resume.is_due(config.checkpoint_every, round, config.rounds) or (
            stopping or done
        ):
            _save(folder / CHECKPOINTS, state, log)
        if stopping and not done:
            raise Interrupted(stop[0] if stop else signal.SIGTERM, round)
    return state, round < config.rounds


def _is_over(config: Config, best: Best, round: int) -> bool:
    """Whether the last round is done, or early stopping says so after an evaluation."""
    is_evaluated = round > 0 and resume.is_due(config.eval_every, round, config.rounds)
    stops = is_evaluated and should_stop(best, round, config.early_stop_rounds)
    return stops or round >= config.rounds


def _best_so_far(
    folder: pathlib.Path, state: FederationState, log: MetricsLog, observer: Observer
) -> Best:
    """The best round of the log; notes if its checkpoint is gone."""
    best = best_of(log.read()) if hosts.is_main() else Best()
    if best.round:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        try:
            # One of a later round comes from a killed process and will come again.
            is_there = checkpoint.restore(folder / BEST, like).round >= best.round
        except ValueError:
            is_there = False
        if not is_there:
            observer.note(
                f"{folder / BEST} has lost round {best.round}, the best so far; the "
                "next better round is kept there"
            )
    return best._replace(round=int(hosts.agree(np.int32(best.round))))


def load_best(
    folder: str | pathlib.Path, experiment: Experiment | None = None
) -> checkpoint.Restored:
    """The state of the best round on validation.

    Args:
      folder: A run's folder; of seeds one after the other, that of one (``seed-S``).
      experiment: Its experiment, on one device; None: built from its config.json.

    Returns:
      The state and its round. Of mapped seeds: all their states
      (``seed_axis.one_seed``).

    Raises:
      ValueError: There is none, it is damaged, or the folder is that of several seeds.

    Example:
      >>> load_best("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder/config.json: there is no such file; give a run's folder
    """
    folder = pathlib.Path(folder)
    if not (folder / CONFIG).is_file():
        path = folder / CONFIG
        raise ValueError(f"{path}: there is no such file; give a run's folder")
    config = read_config(folder)
    if trains_in_turn(config):
        raise ValueError(
            f"{folder} is a run of {config.seeds} seeds, each with a best round of its "
            f"own; give one of its seed-S folders, e.g. {folder}/seed-{config.seed}"
        )
    best = best_of(MetricsLog(folder / METRICS).read())
    if not best.round:
        raise ValueError(
            f"{folder} has no best round: none was evaluated on a validation split; "
            "train with --validation-fraction=0.1"
        )
    experiment = experiment or build(config)
    init = experiment.algorithm.init
    like = jax.eval_shape(init, experiment.key, experiment.federation)
    restored = checkpoint.restore(folder / BEST, like)
    if (folder / SUMMARY).exists() and restored.round != best.round:
        raise ValueError(
            f"{folder / BEST} holds round {restored.round}, but the best is round "
            f"{best.round}; its checkpoint was lost"
        )
    return restored


def _start(
    experiment: Experiment, folder: pathlib.Path, log: MetricsLog, observer: Observer
) -> FederationState:
    """A fresh state, or the newest good checkpoint's; the log is cut to match."""
    init = jax.jit(experiment.algorithm.init)
    checkpoints = folder / CHECKPOINTS
    found = bool(checkpoint.rounds(checkpoints)) if hosts.is_main() else False
    if not hosts.any_process(found):
        if hosts.is_main():
            _tell(observer, resume.start_log(log, experiment.config))
        return init(experiment.key, experiment.federation)
    if experiment.mesh is None:
        like = jax.eval_shape(init, experiment.key, experiment.federation)
        restored = checkpoint.restore(checkpoints, like)
    else:
        # A checkpoint holds whole arrays, whatever devices they came from.
        state = hosts.fetch(init(experiment.key, experiment.federation))
        restored = checkpoint.Restored(state, 0, ())
        if hosts.is_main():
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            restored = checkpoint.restore(checkpoints, like)
        place = jax.jit(
            lambda s: place_state(s, experiment.mesh, experiment.federation.num_clients)
        )
        restored = restored._replace(state=place(hosts.share(restored.state)))
    for line in restored.skipped:
        observer.note(line)
    if hosts.is_main():
        _tell(observer, log.restore(restored.round, restored.log))
    return restored.state


def _tell(observer: Observer, note: str) -> None:
    if note:
        observer.note(note)


def _save(
    folder: pathlib.Path, state: FederationState, log: MetricsLog, keep: int = 3
) -> None:
    """Writes a checkpoint; all processes call it, process 0 writes."""
    state = hosts.fetch(state)
    if hosts.is_main():
        checkpoint.save(folder, state, keep=keep, log=log.content)


def _tuned(
    experiment: Experiment, folder: pathlib.Path, observer: Observer
) -> Experiment:
    """The experiment with its chunk size settled."""
    mesh, config = experiment.mesh, experiment.config
    memory = jax.tree.leaves(
        jax.eval_shape(
            experiment.algorithm.init, experiment.key, experiment.federation
        ).memory
    )
    clients = experiment.federation.num_clients
    if mesh is not None and memory and not shards_memory(mesh, clients):
        observer.note(
            f"clients: {clients} is no multiple of {mesh.size} devices, so "
            "every device holds the memory of all clients"
        )
    if config.chunk_size != "auto":
        return experiment
    devices = mesh.size if mesh else 1
    sizes = autotune.candidates(config.clients_per_round, devices)
    size, line = autotune.choose(
        folder,
        experiment.with_chunk_size,
        experiment.federation_at(0),
        experiment.key,
        sizes,
    )
    observer.note(line)
    return experiment._replace(algorithm=experiment.with_chunk_size(size))


class _NoLog(MetricsLog):
    """The metrics log of a process that does not write."""

    def append(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def truncate_after(self, round: int) -> None:
        """Does nothing."""


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


def _finish(
    experiment: Experiment,
    folder: pathlib.Path,
    log: MetricsLog,
    state: FederationState,
    stopped: bool,
) -> Summary:
    config, round = experiment.config, int(state.round)
    if not hosts.is_main():
        return Summary(folder, {}, state)
    records = [r for r in log.read() if "acc" in r]
    number = best_of(records).round
    best = next((r for r in records if r["round"] == number), None)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    summary = {
        "rounds": round,
        "stopped_early": round if stopped else None,
        "parameters": parameters // (config.seeds if config.map_seeds else 1),
        "final": records[-1],
        "best": best,
        "chosen_on": "validation" if best else None,
        "fixed_partition": shares_partition(config),
        "seconds": sum(r["seconds"] for r in records),
        "versions": versions(),
    }
    if experiment.holdout_ids:
        summary["holdout_clients"] = list(experiment.holdout_ids)
    if config.map_seeds:
        summary |= summary_fields(split_summary(summary), shares_partition(config))
    if experiment.stream is not None:
        summary["stream"] = experiment.stream.report()
    write_json(folder / SUMMARY, summary, null_non_finite=True)
    return Summary(
        folder,
        records[-1],
        state,
        best,
        summary["stopped_early"],
        summary["fixed_partition"],
    )


@contextlib.contextmanager
def stop_requests(observer: Observer) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one ends the process at once.

    Yields:
      A list that holds the signal once one has come.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        for s in signals:
            signal.signal(s, signal.SIG_DFL)
        observer.note("stopping after this round; once more to stop at once")

    before = {s: signal.signal(s, handle) for s in signals}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
