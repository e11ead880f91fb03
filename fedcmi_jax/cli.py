"""The ``fedcmi`` command: train, resume, list.

Exit codes: 0 done, 1 the training diverged, 2 a user's mistake (one line on standard
error, nothing written), 130 / 143 stopped by SIGINT / SIGTERM with everything saved.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import rich.console

from fedcmi_jax import config as configs
from fedcmi_jax import hosts, launch, report, run
from fedcmi_jax.bench import command
from fedcmi_jax.experiment import Experiment, build
from fedcmi_jax.flags import parse
from fedcmi_jax.presets import DEFAULT
from fedcmi_jax.run_folder import check_free, check_run, create, default_folder, lock

RUNS = pathlib.Path("runs")
"""Where run folders go unless --output says otherwise."""

UNLIMITED_WIDTH = 1000
"""Columns of a table that goes to a file or a pipe."""

USAGE = """\
usage: fedcmi COMMAND ...

  train [PRESET] [--FLAG=VALUE ...]   train; without a preset: {default}
  resume RUN                          go on with an interrupted run
  bench [--FLAG=VALUE ...]            time compiled rounds; see bench --help
  list [WHAT]                         {lists}

{launch}
fedcmi train --help documents every flag; fedcmi --version prints the version.
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
    _use_compilation_cache()
    try:
        return _dispatch(args)
    except ValueError as error:
        return _fail(str(error), 2)
    except run.DivergedError as error:
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
    experiment = build(config, mesh)
    if not hosts.is_main():
        return _run(experiment, folder)
    create(folder)
    with lock(folder):
        run.write_config(folder, config)
        return _run(experiment, folder)


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
        config = run.read_config(folder)
        if (folder / run.SUMMARY).exists():
            print(f"{folder} is finished: {config.rounds} rounds; nothing to do")
            return 0
        return _run(build(config, mesh), folder)


def _run(experiment: Experiment, folder: pathlib.Path) -> int:
    interactive = sys.stdout.isatty()
    if not hosts.is_main():
        try:
            run.train(experiment, folder)
        except run.Interrupted as stop:
            return 128 + stop.signal_number
        return 0
    with (
        report.BarProgress()
        if interactive
        else contextlib.nullcontext(report.PlainProgress()) as observer
    ):
        try:
            summary = run.train(experiment, folder, observer)
        except run.Interrupted as stop:
            observer.note(
                f"saved round {stop.round}; continue with: fedcmi resume {folder}"
            )
            return 128 + stop.signal_number
    print(report.final_block(summary))
    return 0


def _bench(args: list[str]) -> int:
    where, args = launch.split_flags(args)
    return command.main(args, lambda: launch.start(where))


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
    "datasets": lambda: report.list_registry("dataset"),
    "methods": lambda: report.list_registry("method"),
    "partitions": lambda: report.list_registry("partition"),
    "encoders": lambda: report.list_registry("encoder"),
    "runs": lambda: report.list_runs(RUNS),
}

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "bench": _bench,
    "list": _list,
}


def _fail(message: str, code: int) -> int:
    print(f"fedcmi: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
