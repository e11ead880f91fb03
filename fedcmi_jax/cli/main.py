"""The ``fedcmi`` command: train, resume, sweep, bench, data, list, doctor.

Exit codes: 0 done, 1 the training diverged or a check of doctor fails, 2 a user's
mistake (one line on standard error, nothing written), 130 / 143 stopped by SIGINT /
SIGTERM with everything saved.
"""

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import rich.console
from jax.sharding import Mesh

from fedcmi_jax import backend
from fedcmi_jax.cli import bench as command
from fedcmi_jax.cli import data as data_command
from fedcmi_jax.cli import doctor, launch, report
from fedcmi_jax.cli.flags import parse, parse_options
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import hosts, resume, seeds, sweep, training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.presets import DEFAULT
from fedcmi_jax.experiment.run_folder import (
    check_free,
    check_run,
    create,
    default_folder,
    lock,
)

RUNS = pathlib.Path("runs")
"""Where run folders go unless --output says otherwise."""

UNLIMITED_WIDTH = 1000
"""Columns of a table that goes to a file or a pipe."""

USAGE = """\
usage: fedcmi COMMAND ...

  train [PRESET] [--FLAG=VALUE ...]   train; without a preset: {default}
                                      --seeds=S: S seeds in one run
  resume RUN                          go on with an interrupted run
  sweep clients [PRESET]              seconds, memory, accuracy at 10 ... 100,000
  bench [--FLAG=VALUE ...]            time compiled rounds; see bench --help
  data prepare NAME                   download and prepare a data set; see data --help
  list [WHAT]                         {lists}
  doctor                              what is installed, and whether it computes right

{launch}
fedcmi train --help documents every flag; fedcmi --version prints the version.
"""


SWEEP_USAGE = """\
usage: fedcmi sweep clients [PRESET] [--counts=10,100,...] [--participation=SHARE]
                            [--FLAG=VALUE ...]

The same work per client (32 samples) at growing client counts; writes sweep.json,
sweep.md and sweep.png. Without a preset: synthetic data, everybody multimodal, one
epoch. All flags of fedcmi train apply; --rounds is 5 unless given.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: Arguments without the program's name; None: those of the process.

    Returns:
      The exit code.

    Example:
      >>> main(["train", "no-such-preset"])
      2
    """
    args = list(sys.argv[1:] if argv is None else argv)
    backend.guard()
    _use_compilation_cache()
    try:
        return _dispatch(args)
    except ValueError as error:
        return _fail(str(error), 2)
    except training.DivergedError as error:
        return _fail(str(error), 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever reads us has gone; leave nothing for the interpreter to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(f"{error.strerror or error}: {error.filename or ''}", 1)
    except KeyboardInterrupt:
        return 130


def _use_compilation_cache() -> None:
    """Keeps compiled programs under the user's cache folder, unless told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(root) / "fedcmi_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    if args[0] == "--version":
        print(importlib.metadata.version("fedcmi_jax"))
        return 0
    return COMMANDS[configs.lookup("command", args[0], COMMANDS)](args[1:])


def _usage() -> str:
    lists = " | ".join(LISTS)
    return USAGE.format(default=DEFAULT, lists=lists, launch=launch.HELP)


def _train(args: list[str]) -> int:
    where, args = launch.split_flags(args)
    config = parse(args)
    if config is None:
        return 0
    if config.output is None:
        name = f"{config.dataset.name} {config.method.name}"
        folder = default_folder(RUNS, name, config.seed)
    else:
        folder = pathlib.Path(config.output)
    check_free(folder)
    mesh = launch.start(where)
    train = _prepared(config, mesh)
    if not hosts.is_main():
        return _run(train, folder)
    create(folder)
    with lock(folder):
        training.write_config(folder, config)
        return _run(train, folder)


def _resume(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print("usage: fedcmi resume RUN\n\nGoes on with a run, by its own config.json.")
        return 0
    where, args = launch.split_flags(args)
    if len(args) != 1:
        raise ValueError(
            "resume: takes a run folder and nothing else (a run's configuration is "
            "fixed); `fedcmi list runs` shows what is here"
        )
    folder = pathlib.Path(args[0])
    check_run(folder)
    mesh = launch.start(where)
    with lock(folder) if hosts.is_main() else contextlib.nullcontext():
        config = training.read_config(folder)
        if (folder / training.SUMMARY).exists():
            return _finished(config, folder)
        return _run(_prepared(config, mesh), folder)


def _finished(config: configs.Config, folder: pathlib.Path) -> int:
    """Nothing is left to train; a damaged log is."""
    in_turn = configs.trains_in_turn(config)
    notes = seeds.mend(config, folder) if in_turn else [resume.mend_log(folder, config)]
    for note in filter(None, notes):
        _say(note)
    summary = read_json(folder / training.SUMMARY)
    early = ", stopped early" if summary.get("stopped_early") else ""
    rounds = f"{summary.get('rounds', config.rounds)} rounds{early}"
    print(f"{folder} is finished: {rounds}; nothing to do")
    return 0


Train = Callable[[pathlib.Path, training.Observer], str]
"""Trains in a folder; the result in a few lines, for process 0 to print."""


def _prepared(config: configs.Config, mesh: Mesh | None) -> Train:
    """Builds everything, which refuses what is impossible, but trains nothing yet."""
    say = functools.cache(_say)  # each seed's experiment has the same notes
    in_turn = configs.trains_in_turn(config)
    one = seeds.alone(config, config.seed) if in_turn else config
    experiment = build(one, mesh, say)
    if in_turn:

        def train_seeds(folder: pathlib.Path, observer: training.Observer) -> str:
            done = seeds.train(config, folder, mesh, observer, say, experiment)
            if not done:
                return ""
            return seeds.final_block(done["final"], done["best"], folder, config)

        return train_seeds

    def train(folder: pathlib.Path, observer: training.Observer) -> str:
        done = training.train(experiment, folder, observer)
        if not done.final:
            return ""
        if config.map_seeds:
            return seeds.final_block(done.final, done.best, folder, config)
        return report.final_block(done)

    return train


def _run(train: Train, folder: pathlib.Path) -> int:
    if not hosts.is_main():
        try:
            train(folder, training.Observer())
        except training.Interrupted as stop:
            return 128 + stop.signal_number
        return 0
    with (
        report.BarProgress()
        if sys.stdout.isatty()
        else contextlib.nullcontext(report.PlainProgress()) as observer
    ):
        try:
            block = train(folder, observer)
        except training.Interrupted as stop:
            observer.note(f"{stop}; continue with: fedcmi resume {folder}")
            return 128 + stop.signal_number
    print(block)
    return 0


def _sweep(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(SWEEP_USAGE, end="")
        return 0
    configs.lookup("sweep", args[0], ["clients"])
    where, args = launch.split_flags(args[1:])
    counts, args = _take(args, "--counts")
    share, args = _take(args, "--participation")
    if not args or args[0].startswith("-"):
        args = ["synthetic", "--multi-ratio=1", "--local.epochs=1", *args]
    defaults = [*sweep.DEFAULTS, f"--chunk-size={sweep.CHUNK_SIZE}"]
    config = parse([args[0], *defaults, *args[1:]])
    if config is None:
        return 0
    try:
        numbers = [int(n) for n in counts.split(",")] if counts else sweep.COUNTS
        participation = float(share or 1.0)
    except ValueError as error:
        raise ValueError(f"sweep: {error}; give e.g. --counts=10,100") from None
    for n in numbers:
        configs.check_config(sweep.sized(config, n, participation))
    folder = (
        pathlib.Path(config.output)
        if config.output
        else default_folder(RUNS, "sweep clients", config.seed)
    )
    check_free(folder)
    mesh = launch.start(where)
    create(folder)
    sweep.sweep_clients(
        config,
        folder,
        counts=numbers,
        participation=participation,
        mesh=mesh,
        log=lambda line: print(line, flush=True),
    )
    print(f"written: {folder}/sweep.json, sweep.md, sweep.png")
    return 0


def _take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``--flag=value`` and the other arguments."""
    values: list[str | None] = [
        a.partition("=")[2] for a in args if a.startswith(f"{flag}=")
    ]
    if flag in args:
        raise ValueError(f"{flag}: has no value; give {flag}=VALUE")
    return values[-1] if values else None, [
        a for a in args if not a.startswith(f"{flag}=")
    ]


def _bench(args: list[str]) -> int:
    where, args = launch.split_flags(args)
    options = parse_options(command.Options, args, "fedcmi bench")
    if options is None:
        return 0
    command.check_options(options)
    command.run(options, launch.start(where), lambda line: print(line, flush=True))
    return 0


def _data(args: list[str]) -> int:
    return data_command.main(args, lambda line: print(line, flush=True))


def _doctor(args: list[str]) -> int:
    return doctor.main(args, lambda line: print(line, flush=True))


def _list(args: list[str]) -> int:
    if len(args) > 1:
        raise ValueError(f"list: takes one of {list(LISTS)}, not {args}")
    # In a pipe there is no width to fit, and cut names are of no use to a script.
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    console = rich.console.Console(soft_wrap=True, width=width)
    if args:
        console.print(LISTS[configs.lookup("list", args[0], LISTS)]())
        return 0
    for name, table in LISTS.items():
        console.print(f"[bold]{name}[/bold]")
        console.print(table(), "")
    return 0


LISTS: dict[str, Callable] = {
    "presets": report.list_presets,
    "datasets": report.list_datasets,
    "methods": lambda: report.list_registry("method"),
    "partitions": lambda: report.list_registry("partition"),
    "encoders": lambda: report.list_registry("encoder"),
    "runs": lambda: report.list_runs(RUNS),
}

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "sweep": _sweep,
    "bench": _bench,
    "data": _data,
    "list": _list,
    "doctor": _doctor,
}


def _say(text: str) -> None:
    if hosts.is_main():
        print(f"fedcmi: {text}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    print(f"fedcmi: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
