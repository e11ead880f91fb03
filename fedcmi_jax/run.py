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

from fedcmi_jax import autotune, checkpoint, hosts, streaming
from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.clients import place_state, shards_memory
from fedcmi_jax.config import Config, check_config, from_dict, to_dict
from fedcmi_jax.evaluation import read_sums
from fedcmi_jax.experiment import Experiment, measure, rounds_per_call
from fedcmi_jax.run_folder import MetricsLog, read_json, write_json
from fedcmi_jax.types import FederationState, PyTree, RoundInfo

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"

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
    """

    folder: pathlib.Path
    final: dict[str, Any]
    state: FederationState


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint of ``round``."""

    def __init__(self, signal_number: int, round: int):
        """Keeps what the caller needs to report."""
        super().__init__(f"stopped after round {round}")
        self.signal_number = signal_number
        self.round = round


class DivergedError(Exception):
    """No client's update was finite, or the model is not; names the remedy."""


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    packages = ("fedcmi_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = {name: importlib.metadata.version(name) for name in (*packages, "numpy")}
    return found | {"python": platform.python_version()}


def write_config(folder: pathlib.Path, config: Config) -> None:
    """Writes the run's config.json, complete, with versions."""
    values = {"config": to_dict(config), "versions": versions()}
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
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def train(
    experiment: Experiment, folder: pathlib.Path, observer: Observer | None = None
) -> Summary:
    """Trains, or goes on from the folder's newest good checkpoint, to the last round.

    Args:
      experiment: What to run; ``experiment.build``.
      folder: The run's folder; it must exist.
      observer: Hears of progress.

    Returns:
      The run's summary, also written to summary.json.

    Raises:
      ValueError: The folder cannot be used, the checkpoints belong to another
        configuration, none of several can be used, or the log lacks lines that no
        checkpoint holds. Nothing has been changed then.
      Interrupted: SIGINT or SIGTERM; the last finished round is saved.
      DivergedError: No client of a round sent a finite update, or the model is no
        longer finite; the last checkpoint is that of an earlier round. Metric lines
        name the clients that were rejected up to there.
    """
    observer = observer or Observer()
    config = experiment.config
    if hosts.is_main():
        check_usable(folder)
    log = MetricsLog(folder / METRICS) if hosts.is_main() else _NoLog(folder / METRICS)
    experiment = _tuned(experiment, folder, observer)
    state = _start(experiment, folder, log, observer)
    round = int(state.round)
    observer.started(round, config.rounds)
    finite = jax.jit(all_finite)
    begun = time.perf_counter()
    with _stop_requests(observer) as stop:
        while round < config.rounds:
            piece = _next_stop(config, round) - round
            state, infos = experiment.algorithm.run(
                state, experiment.federation_at(round), np.int32(piece)
            )
            _wait(infos)
            infos = jax.device_get(infos)
            _check_alive(config, infos, round, piece, log)
            # Finite updates can add up to more than a float holds. Checked before
            # anything is saved, so that every checkpoint can be gone on from.
            if not finite((state.params, state.batch_stats)):
                raise _diverged(config, round + piece, "the model is not finite", log)
            round += piece
            for record in _records(experiment, state, infos, round - piece, piece):
                if "acc" in record:
                    now = time.perf_counter()
                    record["seconds"], begun = now - begun, now
                log.append(record)
                if "acc" in record:
                    observer.evaluated(record)
            stopping = hosts.any_process(bool(stop))
            if _is_due(config.checkpoint_every, round, config.rounds) or stopping:
                _save(folder, state, log)
            if stopping and round < config.rounds:
                raise Interrupted(stop[0] if stop else signal.SIGTERM, round)
    if experiment.stream is not None:
        observer.note(streaming.describe(experiment.stream.report()))
    return _finish(experiment, folder, log, state)


def _start(
    experiment: Experiment, folder: pathlib.Path, log: MetricsLog, observer: Observer
) -> FederationState:
    """A fresh state, or the newest good checkpoint's; the log is cut to match."""
    init = jax.jit(experiment.algorithm.init)
    checkpoints = folder / CHECKPOINTS
    found = bool(checkpoint.rounds(checkpoints)) if hosts.is_main() else False
    if not hosts.any_process(found):
        if hosts.is_main():
            _start_log(log, experiment.config, observer)
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
            lambda s: place_state(s, experiment.mesh, experiment.config.clients)
        )
        restored = restored._replace(state=place(hosts.share(restored.state)))
    for line in restored.skipped:
        observer.note(line)
    if hosts.is_main():
        _restore_log(log, experiment.config, restored, observer)
    return restored.state


def check_usable(folder: pathlib.Path) -> None:
    """Refuses a run folder in which training would fail; changes nothing.

    Args:
      folder: A run's folder.

    Raises:
      ValueError: A file stands where a folder must be or the reverse, or this user may
        not write.
    """
    checkpoints, log = folder / CHECKPOINTS, folder / METRICS
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise ValueError(f"{checkpoints}: is no folder; move it away to go on")
    if os.path.lexists(log) and not log.is_file():
        raise ValueError(f"{log}: is no file; move it away to go on")
    for path in (folder, checkpoints, log):
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path}: cannot be written; change its permissions")


def mend_log(folder: pathlib.Path) -> str:
    """Rebuilds the log of a finished run if it is not what its last checkpoint holds.

    Args:
      folder: A run's folder.

    Returns:
      A line for the user if the log was rebuilt, else "".
    """
    saved = checkpoint.newest_log(folder / CHECKPOINTS)
    if saved is None:
        return ""
    return MetricsLog(folder / METRICS).restore(*saved)


def _evaluations(config: Config, round: int) -> list[int]:
    """The rounds up to this one that are evaluated."""
    numbers = range(1, round + 1)
    return [r for r in numbers if _is_due(config.eval_every, r, config.rounds)]


def _start_log(log: MetricsLog, config: Config, observer: Observer) -> None:
    """Empties the log of a run without checkpoints.

    What a process killed before its first checkpoint leaves is dropped; what it cannot
    have left is moved aside.
    """
    first = min(config.checkpoint_every, config.rounds)
    try:
        records = log.read()
        evaluated = [r["round"] for r in records if "acc" in r]
        is_ours = evaluated == _evaluations(config, first)[: len(evaluated)]
        is_ours = is_ours and (not records or records[-1]["round"] <= first)
    except ValueError:
        is_ours = False
    if not is_ours:
        observer.note(
            f"{log.path} is none of a run without checkpoints: the run starts over; "
            f"what was there is {log.set_aside()}"
        )
    log.truncate_after(0)


def _restore_log(
    log: MetricsLog,
    config: Config,
    restored: checkpoint.Restored,
    observer: Observer,
) -> None:
    """Makes the log what it was when the restored checkpoint was saved."""
    if restored.log is not None:
        note = log.restore(restored.round, restored.log)
        if note:
            observer.note(note)
        return
    # Version 0.1 saved no copy.
    found = [r["round"] for r in log.read() if "acc" in r]
    found = [r for r in found if r <= restored.round]
    if found != (expected := _evaluations(config, restored.round)):
        odd = min(set(found) ^ set(expected))
        raise ValueError(
            f"{log.path}: has {'no' if odd in expected else 'an odd'} line of round "
            f"{odd}, and checkpoint {restored.round} holds no copy; put the file back "
            "or start the run again in a new folder"
        )
    log.truncate_after(restored.round)


def _save(folder: pathlib.Path, state: FederationState, log: MetricsLog) -> None:
    """Writes a checkpoint; all processes call it, process 0 writes."""
    state = hosts.fetch(state)
    if hosts.is_main():
        checkpoint.save(folder / CHECKPOINTS, state, log=log.content)


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
    if mesh is not None and memory and not shards_memory(mesh, config.clients):
        observer.note(
            f"clients: {config.clients} is no multiple of {mesh.size} devices, so "
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


def _is_due(every: int, round: int, rounds: int) -> bool:
    return round % every == 0 or round == rounds


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


def _check_alive(
    config: Config, infos: RoundInfo, round: int, piece: int, log: MetricsLog
) -> None:
    for i in range(piece):
        if infos.accepted[i].any():
            continue
        for j in range(i + 1):
            if infos.rejected[j]:
                log.append({"round": round + j + 1, "rejected": _rejected(infos, j)})
        what = f"none of {len(infos.cohort[i])} clients sent a finite update"
        raise _diverged(config, round + i + 1, what, log)


def _diverged(config: Config, round: int, what: str, log: MetricsLog) -> DivergedError:
    folder = log.path.parent
    saved = checkpoint.rounds(folder / CHECKPOINTS)
    kept = f"round {saved[-1]} is saved" if saved else "nothing was saved yet"
    remedies = f"lower --local.learning-rate (now {config.local.learning_rate})"
    if hasattr(config.method, "min_temperature"):
        remedies += ", raise --method.min-temperature"
    return DivergedError(
        f"round {round}, method {config.method.name}: {what}; {remedies} or set "
        f"--clip-norm ({kept} in {folder})"
    )


def _rejected(infos: RoundInfo, i: int) -> list[int]:
    """Ids of the clients rejected in row ``i`` of the infos."""
    return [int(c) for c in infos.cohort[i][~infos.accepted[i]]]


def _records(
    experiment: Experiment,
    state: FederationState,
    infos: RoundInfo,
    before: int,
    piece: int,
) -> Iterator[dict[str, Any]]:
    """Metrics lines of a piece: rounds with rejected clients, and the evaluated one."""
    config = experiment.config
    for i in range(piece):
        round = before + i + 1
        record: dict[str, Any] = {"round": round}
        if infos.rejected[i]:
            record["rejected"] = _rejected(infos, i)
        if i == piece - 1 and _is_due(config.eval_every, round, config.rounds):
            record |= evaluate(experiment, state)
            info = jax.tree.map(lambda x, i=i: x[i], infos)
            record |= read_sums(info.metrics)
            record["learning_rate"] = float(info.learning_rate)
            record["num_examples"] = float(info.num_examples)
            record["cohort"] = len(info.cohort)
        if len(record) > 1:
            yield record


def evaluate(experiment: Experiment, state: FederationState) -> dict[str, Any]:
    """All metrics of a state's deployed model, on the host."""
    return measure(experiment, state)


def _finish(
    experiment: Experiment, folder: pathlib.Path, log: MetricsLog, state
) -> Summary:
    if not hosts.is_main():
        return Summary(folder, {}, state)
    records = [r for r in log.read() if "acc" in r]
    best = max(records, key=lambda r: r["acc"] if r["acc"] is not None else -1.0)
    summary = {
        "rounds": experiment.config.rounds,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "final": records[-1],
        "best": best,
        "seconds": sum(r["seconds"] for r in records),
        "versions": versions(),
    }
    if experiment.stream is not None:
        summary["stream"] = experiment.stream.report()
    write_json(folder / SUMMARY, summary, null_non_finite=True)
    return Summary(folder, records[-1], state)


@contextlib.contextmanager
def _stop_requests(observer: Observer) -> Iterator[list[int]]:
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
