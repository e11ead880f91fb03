"""The flags of ``fedcmi train``: tyro's parser, its errors in one line."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.presets import DEFAULT, PRESETS, preset

Options = TypeVar("Options")


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
        text = f"Presets: {', '.join(PRESETS)}. Values shown are those of {name}. "
        text += "Devices and processes: fedcmi --help."
        with contextlib.suppress(SystemExit):
            _tyro(base, ["--help"], text)
        return None
    _check_flags(flags, base)
    flags = _spelled_for_tyro(flags, base)
    parsed = _in_one_line(lambda: _tyro(base, flags, ""), "fedcmi train")
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
    return configs.Config(**values)


def parse_options(cls: type[Options], args: Sequence[str], prog: str) -> Options | None:
    """Reads the flags of a command whose options are one flat dataclass.

    Args:
      cls: The dataclass; every field has a default.
      args: ``[--FLAG=VALUE ...]``.
      prog: The command, for its help.

    Returns:
      The options, or None if help was asked for and printed.

    Raises:
      ValueError: Unknown flag or bad value; one line.

    Example:
      >>> from fedcmi_jax.cli.bench import Options
      >>> parse_options(Options, ["--repeats=3"], "fedcmi bench").repeats
      3
    """
    if any(flag in ("-h", "--help") for flag in args):
        with contextlib.suppress(SystemExit):
            tyro.cli(cls, args=["--help"], prog=prog)
        return None
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for text in args:
        name = text.partition("=")[0].removeprefix("--").replace("-", "_")
        if text.startswith("--"):
            configs.lookup("flag", name, known)
    flags = _spelled_for_tyro(args, cls())
    return _in_one_line(lambda: tyro.cli(cls, args=flags, prog=prog), prog)


def _in_one_line(parse: Callable[[], Options], prog: str) -> Options:
    """The parser's result; its errors as one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return parse()
    except SystemExit:
        raise ValueError(_one_line(errors.getvalue(), prog)) from None


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


def _spelled_for_tyro(flags: Sequence[str], base: object) -> list[str]:
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


def _one_line(box: str, prog: str) -> str:
    """The message inside tyro's box of lines."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    message = []
    for line in lines:
        if line.startswith(("╭", "╰")):
            continue
        if line.startswith("─"):
            break
        message.append(line)
    return f"{' '.join(message)}; see {prog} --help"
