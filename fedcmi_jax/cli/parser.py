"""Arguments to a command: tyro's parser, with every mistake as one line."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union

import tyro
from tyro.conf import Positional, Suppress, subcommand

from fedcmi_jax.cli.command import FLAT, Command, Group
from fedcmi_jax.cli.commands import COMMANDS


class Flag(NamedTuple):
    """A field as an argument.

    Attributes:
      default: Its default.
      positional: Whether it is one by its place, and no flag.
    """

    default: Any
    positional: bool


def parse(args: Sequence[str]) -> Command:
    """Reads the arguments of the process.

    Args:
      args: Arguments without the program's name.

    Returns:
      The command, with its options.

    Raises:
      ValueError: Unknown command, preset, name or flag, or a bad value; one line.
      SystemExit: Help was asked for, and is printed.

    Example:
      >>> parse(["train", "--method.name=fedprox", "--method.mu=0.5"]).config.method
      FedproxMethod(name='fedprox', mu=0.5)
    """
    path, chosen, rest = _find(args)
    default: Command | None = None
    if isinstance(chosen, Group):
        takes = f"one of {', '.join(chosen.commands)}"
        rest, flags = rest or ["--help"], {}
    else:
        with _in_one_line(path, {}, chosen.takes, rest):
            default, rest = chosen.settle(rest)
        takes, flags = chosen.takes, flags_of(default or chosen)
    spelled = _spelled_for_tyro(rest, flags)
    with _in_one_line(path, flags, takes, rest):
        command = tyro.cli(
            _union(COMMANDS, {type(default): default}, brief=not path),
            args=[*path, *spelled],
            prog="fedcmi",
            description=COMMANDS.help,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    if default is not None:
        _check_places(path, flags, flags_of(command), takes)
    return command


def _find(
    args: Sequence[str],
) -> tuple[list[str], type[Command] | Group, list[str]]:
    """Names of the command, the command, and the arguments behind its name."""
    path: list[str] = []
    found: Group | type[Command] = COMMANDS
    rest = list(args)
    while isinstance(found, Group) and rest and not rest[0].startswith("-"):
        name = rest[0]
        if name not in found.commands and found.default and _is_path(name):
            name = found.default
        else:
            if name not in found.commands:
                what = path[-1] if path else "command"
                name = _lookup(what, name, found.commands)
            del rest[0]
        path.append(name)
        found = found.commands[name]
    return path, found, rest


def _is_path(text: str) -> bool:
    """Whether an argument is a file or a folder rather than a command's name."""
    return any(mark in text for mark in "./~") or pathlib.Path(text).exists()


def _union(group: Group, defaults: Mapping[type, Any], brief: bool) -> Any:
    """A group as tyro's type of subcommands; described in one line each, if brief."""
    members: list[Any] = [Annotated[None, Suppress]]  # one member alone is no union
    for name, member in group.commands.items():
        if isinstance(member, Group):
            config = subcommand(name, description=member.help)
            members.append(Annotated[_union(member, defaults, brief), config])
        else:
            config = subcommand(
                name,
                default=defaults.get(member, tyro.MISSING_NONPROP),
                description=(member.__doc__ or "").splitlines()[0] if brief else None,
            )
            members.append(Annotated[member, config])
    return Union[tuple(members)]  # noqa: UP007


def flags_of(options: Any, prefix: str = "") -> dict[str, Flag]:
    """The arguments of a command or, before it has defaults, of its class.

    Args:
      options: The command.
      prefix: Before every name.

    Returns:
      ``section.name`` -> flag.

    Example:
      >>> from fedcmi_jax.cli.commands import Bench
      >>> flags_of(Bench())["repeats"]
      Flag(default=7, positional=False)
    """
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name, None)
        marks = getattr(field.type, "__metadata__", ())
        if dataclasses.is_dataclass(value):
            inner = prefix if FLAT in marks else f"{prefix}{field.name}."
            found |= flags_of(value, inner)
        elif Suppress not in marks and FLAT not in marks:
            names = [name for mark in marks if (name := getattr(mark, "name", None))]
            name = names[0] if names else field.name
            found[f"{prefix}{name}"] = Flag(value, Positional in marks)
    return found


def _path_of(flag: str) -> str:
    """``--local.batch-size`` -> ``local.batch_size``."""
    return flag.removeprefix("--").replace("-", "_")


def _spelled_for_tyro(args: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """``--a=x,y`` as ``--a x y`` for lists, ``--a=True`` as ``--a`` for booleans."""
    spelled = []
    for text in args:
        flag, equals, value = text.partition("=")
        known = flags.get(_path_of(flag)) if equals else None
        if known is not None and isinstance(known.default, tuple):
            spelled += [flag, *(part for part in value.split(",") if part)]
        elif known is not None and isinstance(known.default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"{flag}: {value!r} is neither true nor false")
            section, dot, name = flag.removeprefix("--").rpartition(".")
            negation = "" if value.lower() == "true" else "no-"
            spelled.append(f"--{section}{dot}{negation}{name}")
        else:
            spelled.append(text)
    return spelled


@contextlib.contextmanager
def _in_one_line(
    path: Sequence[str], flags: Mapping[str, Flag], takes: str, args: Sequence[str]
) -> Iterator[None]:
    """Raises tyro's refusals as ValueError.

    tyro tells what is wrong, as a record, to one hook of its module ``_errors`` (1.0.15
    and later). The module is not public: should it change, tyro prints its own message
    of several lines, and the exit code is the same.
    """
    hook = getattr(getattr(tyro, "_errors", None), "on_parse_error", None)
    prog = " ".join(["fedcmi", *path])

    def refuse(event: Any) -> None:
        kind = type(event).__name__
        if kind == "UnrecognizedArgs":
            raise ValueError(_unknown(event.tokens, path, flags, takes))
        if kind == "MissingArgs":
            raise ValueError(f"{' '.join(path)}: takes {takes}")
        argument = getattr(event, "argument", None)
        if argument is None:
            return
        flag, metavar = argument.lowered.name_or_flags[-1], argument.lowered.metavar
        if kind == "InvalidChoice":
            what = flag if flag.startswith("-") else path[-1]
            raise ValueError(_lookup(what, event.value, event.choices))
        if kind == "BadValue":
            raise ValueError(f"{flag}: has no value; give {flag}={metavar}")
        if kind == "InstantiationFailure":
            example = _example(flag, flags)
            raise ValueError(
                f"{flag}: {_given(flag, args)!r} is no {metavar}{example}; see {prog} "
                "--help"
            )

    with hook(refuse) if hook else contextlib.nullcontext():
        yield


def _lookup(what: str, name: str, known: Any) -> str:
    # Imported where something is wrong only: configurations take JAX along.
    from fedcmi_jax.experiment.config import lookup

    return lookup(what, name, known)


def _given(flag: str, args: Sequence[str]) -> str:
    """The value that a flag was given last, in either form."""
    value = ""
    for text, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, after = text.partition("=")
        if _path_of(name) == _path_of(flag):
            value = after if equals else following
    return value


def _example(flag: str, flags: Mapping[str, Flag]) -> str:
    """The default as a hint, where it says something."""
    default = flags[_path_of(flag)].default if _path_of(flag) in flags else None
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return "" if default in (None, "") else f"; give e.g. {flag}={default}"


def _unknown(
    tokens: Sequence[str], path: Sequence[str], flags: Mapping[str, Flag], takes: str
) -> str:
    """What to say of arguments that nothing takes."""
    text = next((t for t in tokens if t.startswith("-")), tokens[0])
    if not text.startswith("--"):
        return f"{' '.join(path) or 'fedcmi'}: unknown {text!r}; takes {takes}"
    name = _path_of(text.partition("=")[0])
    kind = name.partition(".")[0]
    chosen = flags.get(f"{kind}.name") if "." in name else None
    of = f" of {kind} {chosen.default!r}" if chosen else ""
    known = [path for path, flag in flags.items() if not flag.positional]
    prog = " ".join(["fedcmi", *path])
    hint = f"{prog} takes {takes}"
    hint = hint if hint.endswith("--help") else f"{hint}; see {prog} --help"
    try:
        _lookup("flag", name, known)
    except ValueError as error:
        near = str(error).partition("; ")[2]
        hint = near if near.startswith("did you mean") else hint
    return f"flag: unknown {text!r}{of}; {hint}"


def _check_places(
    path: Sequence[str],
    expected: Mapping[str, Flag],
    parsed: Mapping[str, Flag],
    takes: str,
) -> None:
    """Refuses a second or late positional argument; the first has decided the flags."""
    for name, flag in expected.items():
        if flag.positional and parsed[name].default != flag.default:
            stray = parsed[name].default
            raise ValueError(f"{' '.join(path)}: unknown {stray!r}; takes {takes}")
