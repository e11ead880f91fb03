"""``fedcmi train`` and ``fedcmi resume``: a run in a folder, with its progress."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from fedcmi_jax.cli import launch, sweeps
from fedcmi_jax.cli.final_block import final_block
from fedcmi_jax.cli.run_commands import RUNS, Resume, Train
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import hosts, seeds, traffic, training
from fedcmi_jax.experiment import resume as resuming
from fedcmi_jax.experiment.callbacks import Callback
from fedcmi_jax.experiment.curve import CURVE
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.initial import described
from fedcmi_jax.experiment.loggers import loggers
from fedcmi_jax.experiment.output import say
from fedcmi_jax.experiment.progress import progress
from fedcmi_jax.experiment.run_folder import (
    check_free,
    check_run,
    claim_folder,
    default_folder,
    lock,
    make_folder,
)
from fedcmi_jax.experiment.run_name import run_name
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.experiment.summary_file import read_summary
from fedcmi_jax.sweeps.plan import is_sweep

Trainer = Callable[[pathlib.Path, Sequence[Callback]], str]
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
    configs.check_config(config)
    configs.check_effects(config)
    if config.output is None:
        folder = default_folder(RUNS, run_name(config), config.seed)
    else:
        folder = pathlib.Path(config.output)
    check_free(folder)
    followers = loggers(options.follow.log)
    mesh = launch.start(options.launch, spreads=not config.map_seeds)
    trainer = _prepared(config, mesh, options.launch.spread_samples, is_new=True)
    if not hosts.is_main():
        return _run(trainer, folder, followers)
    if config.output is None:
        folder = claim_folder(folder)
    else:
        make_folder(folder)
    with lock(folder):
        check_free(folder)  # another process may have had it until now
        training.write_config(folder, config)
        return _run(trainer, folder, followers)


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
    if is_sweep(folder):
        return sweeps.go_on(folder, options.launch, loggers(options.follow.log))
    check_run(folder)
    config = training.read_config(folder)
    followers = loggers(options.follow.log)
    mesh = launch.start(options.launch, spreads=not config.map_seeds)
    with lock(folder) if hosts.is_main() else contextlib.nullcontext():
        if resuming.is_finished(folder, config):
            return _finished(config, folder)
        spread = options.launch.spread_samples
        return _run(_prepared(config, mesh, spread, is_new=False), folder, followers)


def _finished(config: configs.Config, folder: pathlib.Path) -> int:
    """Nothing is left to train; a damaged log is."""
    if configs.trains_in_turn(config):
        notes = seeds.mend(config, folder)
    else:
        notes = [resuming.mend_log(folder, config)]
    for note in filter(None, notes):
        _log(note)
    summary = read_summary(folder)
    early = ", stopped early" if summary.get("stopped_early") else ""
    rounds = f"{summary.get('rounds', config.rounds)} rounds{early}"
    print(f"{folder} is finished: {rounds}; nothing to do")
    return 0


def _prepared(
    config: configs.Config, mesh: Mesh | None, spread: bool, is_new: bool
) -> Trainer:
    """Builds everything, which refuses what is impossible, but trains nothing yet.

    A run that goes on has no need of what it once started from.
    """
    log = functools.cache(_log)  # each seed's experiment has the same notes
    in_turn = configs.trains_in_turn(config)
    one = seeds.alone(config, config.seed) if in_turn else config
    shared = Shared()
    experiment = build(one, mesh, log, shared, spread)
    if is_new and (start := experiment.start()) is not None:
        log(described(start, str(config.init_from)))
    is_frozen = any(jax.tree.leaves(experiment.model.frozen.params))
    if is_frozen or one.compression.name != "none":
        log(traffic.described(traffic.mean(experiment.traffic())))
    if in_turn:

        def train_seeds(folder: pathlib.Path, callbacks: Sequence[Callback]) -> str:
            done = seeds.train(config, folder, mesh, callbacks, log, shared, spread)
            if not done:
                return ""
            return seeds.final_block(done["final"], done["best"], folder, config)

        return train_seeds

    def train_one(folder: pathlib.Path, callbacks: Sequence[Callback]) -> str:
        done = training.train(experiment, folder, callbacks)
        if not done.final:
            return ""
        if config.map_seeds:
            return seeds.final_block(done.final, done.best, folder, config)
        return final_block(done)

    return train_one


def _run(trainer: Trainer, folder: pathlib.Path, callbacks: list[Callback]) -> int:
    if not hosts.is_main():
        try:
            trainer(folder, ())
        except training.Interrupted as stop:
            return 128 + stop.signal_number
        return 0
    shown = progress()
    try:
        block = trainer(folder, [shown, *callbacks])
    except training.Interrupted as stop:
        shown.note(f"{stop}; continue with: fedcmi resume {folder}")
        return 128 + stop.signal_number
    say(block)
    if (folder / CURVE).is_file():
        say(f"picture {folder / CURVE}")
    return 0


def _log(text: str) -> None:
    if hosts.is_main():
        say(f"fedcmi: {text}", sys.stderr)
