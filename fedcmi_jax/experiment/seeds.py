"""Several seeds of one configuration, one after the other.

Seeds whose arrays have the same shapes, the usual case, share one compiled program.

A run of several seeds is a run folder like any other, with a folder ``seed-S`` for each
seed that is what ``--seed=S`` alone writes. The files beside
them, metrics.jsonl and summary.json, follow from them alone and are written anew
whenever a seed has finished.
"""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from fedcmi_jax.experiment import autotune, hosts, resume, training
from fedcmi_jax.experiment.callbacks import Callback, Callbacks
from fedcmi_jax.experiment.config import Config, shares_partition, to_dict
from fedcmi_jax.experiment.curve import write_curve
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import read_json, write_json, write_lines
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.run_folder import METRICS, SUMMARY, is_run, lock
from fedcmi_jax.experiment.seed_axis import pool, summary_fields
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.experiment.summary_file import read_summary


def numbers(config: Config) -> range:
    """The seeds of a configuration.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> list(numbers(from_dict({"seed": 5, "seeds": 2})))
      [5, 6]
    """
    return range(config.seed, config.seed + config.seeds)


def folder_of(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Where a seed's own run is.

    Example:
      >>> str(folder_of(pathlib.Path("runs/a"), 3))
      'runs/a/seed-3'
    """
    return folder / f"seed-{seed}"


def alone(config: Config, seed: int) -> Config:
    """The configuration of one seed's own run."""
    return dataclasses.replace(config, seed=seed, seeds=1, map_seeds=False)


def train(
    config: Config,
    folder: pathlib.Path,
    mesh: Mesh | None = None,
    callbacks: Sequence[Callback] = (),
    log: Callable[[str], None] = lambda text: None,
    shared: Shared | None = None,
    spread: bool = False,
    stop: list[int] | None = None,
) -> dict[str, Any]:
    """Trains every seed that has not finished, and writes their common results.

    A seed that diverges does not keep the others from training.

    Args:
      config: With ``seeds`` above 1.
      folder: The run's folder; it must exist.
      mesh: Devices; ``experiment.build``.
      callbacks: What follows the runs, seed after seed.
      log: ``experiment.build``.
      shared: ``experiment.build``; None: the seeds share with each other only.
      spread: ``experiment.build``.
      stop: As in ``training.train``.

    Returns:
      The summary, also written to summary.json.

    Raises:
      ValueError: See ``training.train`` and ``resume.mend_log``, or a seed's folder is
        of another configuration.
      training.Interrupted: SIGINT or SIGTERM; the last finished round is saved.
      training.DivergedError: Some seeds diverged; names them. The others have finished.
    """
    note = Callbacks(callbacks).note
    lost: list[str] = []
    shared = shared or Shared()
    if hosts.is_main():
        for line in _mend_finished(config, folder):
            note(line)
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(training.stop_requests(note))
        for i, seed in enumerate(numbers(config), 1):
            sub = folder_of(folder, seed)
            if hosts.any_process(hosts.is_main() and resume.is_finished(sub, config)):
                continue
            last = 0
            note(f"seed {seed} ({i} of {config.seeds})")
            experiment = build(alone(config, seed), mesh, log, shared, spread)
            with _prepared(folder, config, seed):
                try:
                    done = training.train(experiment, sub, callbacks, stop)
                    last = int(done.state.round)
                except training.Interrupted as error:
                    where = (error.signal_number, error.round, seed)
                    raise training.Interrupted(*where) from None
                except training.DivergedError as error:
                    lost.append(f"seed {seed}: {error}")
            if hosts.is_main():
                write_metrics(config, folder)
            if i < config.seeds and hosts.any_process(bool(stop)):
                number = stop[0] if stop else signal.SIGTERM
                raise training.Interrupted(number, last, seed)
    if lost:
        raise training.DivergedError("; ".join(lost))
    return write_summary(config, folder) if hosts.is_main() else {}


@contextlib.contextmanager
def _prepared(folder: pathlib.Path, config: Config, seed: int) -> Iterator[None]:
    """A seed's folder with its configuration, locked; process 0's business."""
    if not hosts.is_main():
        yield
        return
    sub = folder_of(folder, seed)
    sub.mkdir(exist_ok=True)
    with lock(sub):
        if not is_run(sub):
            training.write_config(sub, alone(config, seed))
        elif to_dict(training.read_config(sub)) != to_dict(alone(config, seed)):
            raise ValueError(
                f"{sub}: its config.json is not that of seed {seed} of this run; put "
                "the file back, or remove the folder to train the seed again"
            )
        _share_chunk_size(config, folder, sub)
        yield


def _share_chunk_size(config: Config, folder: pathlib.Path, sub: pathlib.Path) -> None:
    """One measured chunk size for all seeds: it decides the order of summation."""
    paths = [folder_of(folder, n) / autotune.RECORD for n in numbers(config)]
    for path in filter(pathlib.Path.exists, paths):
        if not (sub / autotune.RECORD).exists():
            write_json(sub / autotune.RECORD, read_json(path))


def write_metrics(config: Config, folder: pathlib.Path) -> bool:
    """Writes metrics.jsonl over the seeds that have finished, from their own.

    A line for every evaluated round, of the seeds that evaluated it: see
    ``seed_axis.pool``.

    Args:
      config: The run's configuration.
      folder: The run's folder.

    Returns:
      Whether the file was not that already.
    """
    logs: dict[int, dict[int, dict[str, Any]]] = {}
    for seed in numbers(config):
        sub = folder_of(folder, seed)
        if (sub / SUMMARY).exists():
            records = MetricsLog(sub / METRICS).read()
            logs[seed] = {r["round"]: r for r in records if "acc" in r}
    lines = []
    for round in sorted({round for log in logs.values() for round in log}):
        rows = {seed: log[round] for seed, log in logs.items() if round in log}
        lines.append({"round": round} | pool(rows))
    return write_lines(folder / METRICS, lines)


def write_summary(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Writes metrics.jsonl and summary.json of a run whose seeds have all finished.

    Args:
      config: The run's configuration.
      folder: The run's folder.

    Returns:
      ``final`` and ``best`` (on validation; None without) over the seeds, each seed at
      its own last and best round, and ``per_seed``, the fields of each seed's summary.
    """
    write_metrics(config, folder)
    own = {n: read_summary(folder_of(folder, n)) for n in numbers(config)}
    has_best = all(s.get("best") for s in own.values())
    best = pool({n: s["best"] for n, s in own.items()}) if has_best else None
    summary = {
        "rounds": max(s.get("rounds", config.rounds) for s in own.values()),
        "parameters": own[config.seed].get("parameters"),
        "final": pool({n: s["final"] for n, s in own.items()}),
        "best": best,
        "chosen_on": "validation" if best else None,
        **summary_fields(own, shares_partition(config)),
        "seconds": sum(s.get("seconds", 0.0) for s in own.values()),
        "versions": training.versions(),
    }
    write_curve(folder, MetricsLog(folder / METRICS).read())
    write_json(folder / SUMMARY, summary, null_non_finite=True)
    return summary


def mend(config: Config, folder: pathlib.Path) -> list[str]:
    """Rebuilds the logs of a finished run that are not what was written.

    Returns:
      A line for the user for each of them.

    Raises:
      ValueError: A log is not that of the run, and no checkpoint holds a copy; or a
        seed has lost its summary.
    """
    for seed in numbers(config):
        own = folder_of(folder, seed) / SUMMARY
        if not own.exists():
            raise ValueError(
                f"{own}: there is no such file; put it back, or remove "
                f"{folder / SUMMARY} to go on with that seed"
            )
    notes = _mend_finished(config, folder)
    if write_metrics(config, folder):
        notes.append(f"{folder / METRICS} was written anew from the seeds' own")
    return notes


def _mend_finished(config: Config, folder: pathlib.Path) -> list[str]:
    """``resume.mend_log`` of the seeds that have finished; its lines."""
    subs = {seed: folder_of(folder, seed) for seed in numbers(config)}
    notes = [
        resume.mend_log(sub, alone(config, seed))
        for seed, sub in subs.items()
        if (sub / SUMMARY).exists()
    ]
    return [note for note in notes if note]


def final_block(
    final: dict[str, Any],
    best: dict[str, Any] | None,
    folder: pathlib.Path,
    config: Config,
) -> str:
    """The result of several seeds in a few lines, and what the seeds share.

    Args:
      final: A line of ``seed_axis.pool``.
      best: The same of the best rounds on validation, if there are any.
      folder: The run's folder.
      config: The run's configuration.

    Example:
      >>> final = {"acc": 0.5, "acc_std": 0.1, "seeds": [0, 1],
      ...          "per_seed": {"acc": [0.4, 0.6]}}
      >>> print(final_block(final, None, pathlib.Path("runs/a"), Config(seeds=2)))
      test accuracy 50.0 +- 10.0 % over 2 seeds (40.0, 60.0)
        each seed has its own partition
      run folder runs/a
    """

    def line(record: dict[str, Any]) -> str:
        own = ", ".join(f"{100 * value:.1f}" for value in record["per_seed"]["acc"])
        mean, deviation = 100 * record["acc"], 100 * record["acc_std"]
        seeds = f"{len(record['seeds'])} seeds ({own})"
        return f"test accuracy {mean:.1f} +- {deviation:.1f} % over {seeds}"

    lines = [line(final)]
    if best is not None:
        lines.append(f"  at the best round on validation: {line(best)}")
    common = "all seeds share the partition of seed 0 (fixed_partition)"
    own = "each seed has its own partition"
    lines.append(f"  {common if shares_partition(config) else own}")
    if config.map_seeds:
        lines.append(
            "  all in one program (map_seeds): separate runs with --fixed-partition "
            "give the same only up to rounding, 1e-5 after one round"
        )
    return "\n".join([*lines, f"run folder {folder}"])
