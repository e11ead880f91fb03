"""``fedcmi train`` and ``fedcmi resume``: a run in a folder, with its progress."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable

from jax.sharding import Mesh

from fedcmi_jax.cli import launch, report
from fedcmi_jax.cli.commands import RUNS, Resume, Train
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import hosts, seeds, training
from fedcmi_jax.experiment import resume as resuming
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.run_folder import (
    check_free,
    check_run,
    default_folder,
    lock,
    make_folder,
)

Trainer = Callable[[pathlib.Path, training.Observer], str]
"""Trains in a folder; the result in a few lines, for process 0 to print."""


def train(options: Train) -> int:
    """Runs ``fedcmi train``.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: A user's mistake, before anything is written.
      DivergedError: Training did.
    """
    config = options.config
    if config.output is None:
        name = f"{config.dataset.name} {config.method.name}"
        folder = default_folder(RUNS, name, config.seed)
    else:
        folder = pathlib.Path(config.output)
    check_free(folder)
    mesh = launch.start(options.launch, spreads=not config.map_seeds)
    trainer = _prepared(config, mesh, options.launch.spread_samples)
    if not hosts.is_main():
        return _run(trainer, folder)
    make_folder(folder)
    with lock(folder):
        training.write_config(folder, config)
        return _run(trainer, folder)


def resume(options: Resume) -> int:
    """Runs ``fedcmi resume``.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: The folder is no run, or cannot be gone on with.
      DivergedError: Training did.
    """
    folder = options.run_folder
    check_run(folder)
    config = training.read_config(folder)
    mesh = launch.start(options.launch, spreads=not config.map_seeds)
    with lock(folder) if hosts.is_main() else contextlib.nullcontext():
        if (folder / training.SUMMARY).exists():
            return _finished(config, folder)
        return _run(_prepared(config, mesh, options.launch.spread_samples), folder)


def _finished(config: configs.Config, folder: pathlib.Path) -> int:
    """Nothing is left to train; a damaged log is."""
    if configs.trains_in_turn(config):
        notes = seeds.mend(config, folder)
    else:
        notes = [resuming.mend_log(folder, config)]
    for note in filter(None, notes):
        _log(note)
    summary = read_json(folder / training.SUMMARY)
    early = ", stopped early" if summary.get("stopped_early") else ""
    rounds = f"{summary.get('rounds', config.rounds)} rounds{early}"
    print(f"{folder} is finished: {rounds}; nothing to do")
    return 0


def _prepared(config: configs.Config, mesh: Mesh | None, spread: bool) -> Trainer:
    """Builds everything, which refuses what is impossible, but trains nothing yet."""
    log = functools.cache(_log)  # each seed's experiment has the same notes
    in_turn = configs.trains_in_turn(config)
    one = seeds.alone(config, config.seed) if in_turn else config
    experiment = build(one, mesh, log, spread=spread)
    if in_turn:

        def train_seeds(folder: pathlib.Path, observer: training.Observer) -> str:
            done = seeds.train(config, folder, mesh, observer, log, experiment)
            if not done:
                return ""
            return seeds.final_block(done["final"], done["best"], folder, config)

        return train_seeds

    def train_one(folder: pathlib.Path, observer: training.Observer) -> str:
        done = training.train(experiment, folder, observer)
        if not done.final:
            return ""
        if config.map_seeds:
            return seeds.final_block(done.final, done.best, folder, config)
        return report.final_block(done)

    return train_one


def _run(trainer: Trainer, folder: pathlib.Path) -> int:
    if not hosts.is_main():
        try:
            trainer(folder, training.Observer())
        except training.Interrupted as stop:
            return 128 + stop.signal_number
        return 0
    with (
        report.BarProgress()
        if sys.stdout.isatty()
        else contextlib.nullcontext(report.PlainProgress()) as observer
    ):
        try:
            block = trainer(folder, observer)
        except training.Interrupted as stop:
            observer.note(f"{stop}; continue with: fedcmi resume {folder}")
            return 128 + stop.signal_number
    print(block)
    return 0


def _log(text: str) -> None:
    if hosts.is_main():
        print(f"fedcmi: {text}", file=sys.stderr, flush=True)
