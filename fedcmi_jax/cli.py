"""The ``fedcmi`` command: train, resume, list.

Exit codes: 0 done, 1 the training diverged, 2 a user's mistake (one line on standard
error, nothing written), 130 / 143 stopped by SIGINT / SIGTERM with everything saved.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import rich.console
import tyro

from fedcmi_jax import config as configs
from fedcmi_jax import report, run
from fedcmi_jax.experiment import Experiment, build
from fedcmi_jax.presets import DEFAULT, PRESETS, preset
from fedcmi_jax.run_folder import check_free, check_run, create, default_folder, lock

RUNS = pathlib.Path("runs")
"""Where run folders go unless --output says otherwise."""

UNLIMITED_WIDTH = 1000
"""Columns of a table that goes to a file or a pipe."""

USAGE = """\
usage: fedcmi COMMAND ...

  train [PRESET] [--FLAG=VALUE ...]   train; without a preset: {default}
  resume RUN                          go on with an interrupted run
  list [WHAT]                         {lists}

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


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE.format(default=DEFAULT, lists=" | ".join(LISTS)), end="")
        return 0
    if args[0] == "--version":
        print(importlib.metadata.version("fedcmi_jax"))
        return 0
    return COMMANDS[configs.lookup("command", args[0], COMMANDS)](args[1:])


def _train(args: list[str]) -> int:
    config = parse(args)
    if config is None:
        return 0
    if config.output is None:
        name = f"{config.dataset.name} {config.method.name}"
        folder = default_folder(RUNS, name, config.seed)
    else:
        folder = pathlib.Path(config.output)
    check_free(folder)
    experiment = build(config)
    create(folder)
    with lock(folder):
        run.write_config(folder, config)
        return _run(experiment, folder)


def _resume(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print("usage: fedcmi resume RUN\n\nGoes on with a run, by its own config.json.")
        return 0
    if len(args) != 1:
        raise ValueError(
            "resume: takes a run folder and nothing else (a run's configuration is "
            "fixed); `fedcmi list runs` shows what is here"
        )
    folder = pathlib.Path(args[0])
    check_run(folder)
    with lock(folder):
        config = run.read_config(folder)
        if (folder / run.SUMMARY).exists():
            print(f"{folder} is finished: {config.rounds} rounds; nothing to do")
            return 0
        return _run(build(config), folder)


def _run(experiment: Experiment, folder: pathlib.Path) -> int:
    interactive = sys.stdout.isatty()
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
    "list": _list,
}


def parse(args: Sequence[str]) -> configs.Config | None:
    """Reads the arguments of ``fedcmi train``.

    Args:
      args: ``[PRESET] [--FLAG=VALUE ...]``.

    Returns:
      The configuration, or None if help was asked for and printed.

    Raises:
      ValueError: Unknown preset, name or flag, or a value of the wrong type; one line.

    Example:
      >>> parse(["noisy-digits", "--method.name=fedprox", "--method.mu=0.5"]).method
      FedproxMethod(name='fedprox', mu=0.5)
    """
    flags = list(args)
    name = flags.pop(0) if flags and not flags[0].startswith("-") else DEFAULT
    base = preset(name)
    # The names come first: they decide which other flags there are.
    for kind in configs.REGISTRIES:
        chosen = _value_of(flags, f"--{kind}.name")
        if chosen is not None and chosen != getattr(base, kind).name:
            base = dataclasses.replace(base, **{kind: configs.section(kind, chosen)()})
    flags = _without_names(flags)
    if any(flag in ("-h", "--help") for flag in flags):
        text = f"Presets: {', '.join(PRESETS)}. Values shown are those of {name}."
        with contextlib.suppress(SystemExit):
            _tyro(base, ["--help"], text)
        return None
    _check_flags(flags, base)
    flags = _spelled_for_tyro(flags, base)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = _tyro(base, flags, "")
    except SystemExit:
        raise ValueError(_one_line(errors.getvalue())) from None
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
    return configs.Config(**values)


def _tyro(base: configs.Config, args: list[str], text: str) -> configs.Config:
    return tyro.cli(
        configs.typed(base),
        args=args,
        default=configs.typed(base)(**vars(base)),
        prog="fedcmi train [PRESET]",
        description=text,
        use_underscores=False,
    )


def _value_of(flags: list[str], flag: str) -> str | None:
    """The last value given to a flag, in either form."""
    value = None
    for i, text in enumerate(flags):
        if text == flag:
            if i + 1 == len(flags) or flags[i + 1].startswith("--"):
                raise ValueError(f"{flag}: has no value; give {flag}=NAME")
            value = flags[i + 1]
        elif text.startswith(f"{flag}="):
            value = text.partition("=")[2]
    return value


def _without_names(flags: list[str]) -> list[str]:
    """The flags but for the sections' names, which are settled."""
    kept, skip = [], False
    for text in flags:
        name = text.partition("=")[0]
        if skip:
            skip = False
        elif name in {f"--{kind}.name" for kind in configs.REGISTRIES}:
            skip = "=" not in text
        else:
            kept.append(text)
    return kept


def _check_flags(flags: list[str], base: configs.Config) -> None:
    known = set(_field_names(base, "")) - {"preset"} | {"help"}
    for text in flags:
        if not text.startswith("--"):
            continue
        name = text.partition("=")[0].removeprefix("--").replace("-", "_")
        *path, leaf = name.split(".")
        positive = ".".join([*path, leaf.removeprefix("no_")])
        if name not in known and positive not in known:
            chosen = {k: getattr(base, k).name for k in configs.REGISTRIES}
            kind = path[0] if path else ""
            of = f" of {kind} {chosen[kind]!r}" if kind in chosen else ""
            try:
                configs.lookup("flag", name, known)
            except ValueError as error:
                hint = str(error).partition("; ")[2]
                if "choose from" in hint:
                    hint = "see fedcmi train --help"
                raise ValueError(f"flag: unknown {text!r}{of}; {hint}") from None


def _spelled_for_tyro(flags: list[str], base: configs.Config) -> list[str]:
    """``--a=x,y`` as ``--a x y`` for lists, ``--a=True`` as ``--a`` for booleans."""
    spelled = []
    for text in flags:
        flag, equals, value = text.partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        default = _value_at(base, path) if equals else None
        if isinstance(default, tuple):
            spelled += [flag, *(part for part in value.split(",") if part)]
        elif isinstance(default, bool) and value.lower() in ("true", "false"):
            section, dot, name = flag.removeprefix("--").rpartition(".")
            negation = "" if value.lower() == "true" else "no-"
            spelled.append(f"--{section}{dot}{negation}{name}")
        else:
            spelled.append(text)
    return spelled


def _value_at(config: object, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _field_names(config: object, prefix: str) -> list[str]:
    names = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += _field_names(value, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name}")
    return names


def _one_line(box: str) -> str:
    """The message inside tyro's box of lines."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    message = []
    for line in lines:
        if line.startswith(("╭", "╰")):
            continue
        if line.startswith("─"):
            break
        message.append(line)
    return f"{' '.join(message)}; see fedcmi train --help"


def _fail(message: str, code: int) -> int:
    print(f"fedcmi: error: {' '.join(message.split())}", file=sys.stderr)
    return code
