"""One check, and one message, for every option with a fixed set of values."""

import fnmatch
import typing
from collections.abc import Iterable, Sequence
from typing import Any


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuses a value that an option does not have.

    Args:
      name: The option, for the message.
      value: What was given.
      choices: A ``Literal``, or the values themselves.

    Raises:
      ValueError: Names the option, the value and the choices.

    Example:
      >>> check_choice("form", "mse", typing.Literal["mse", "l1"])
      >>> check_choice("form", "huber", ("mse", "l1"))
      Traceback (most recent call last):
      ValueError: form: unknown 'huber'; choose from ['mse', 'l1']
    """
    known: Iterable[str] = typing.get_args(choices) or choices
    if value not in known:
        raise ValueError(f"{name}: unknown {value!r}; choose from {list(known)}")


def matching(name: str, patterns: Iterable[str], paths: Sequence[str]) -> set[str]:
    """Paths that a pattern names, itself or by what it lies in.

    A pattern has a part for each of a path's first parts, in which ``*``, ``?`` and
    ``[...]`` stand for any text within the part: ``encoder/*`` is all of every encoder,
    ``encoder/*/Dense_0`` a layer of each.

    Args:
      name: The option, for the message.
      patterns: The patterns.
      paths: ``part/part/...``, all that there are.

    Returns:
      Those that at least one pattern names.

    Raises:
      ValueError: A pattern names none.

    Example:
      >>> paths = ["encoder/a/bias", "encoder/b/bias", "fusion/bias"]
      >>> sorted(matching("freeze", ["encoder/*"], paths))
      ['encoder/a/bias', 'encoder/b/bias']
      >>> matching("freeze", ["head"], paths)
      Traceback (most recent call last):
      ValueError: freeze: 'head' names no block; choose from encoder/a, encoder/b, ...
    """
    found: set[str] = set()
    for pattern in patterns:
        named = {path for path in paths if begins(path, pattern)}
        if not named:
            blocks = dict.fromkeys("/".join(path.split("/")[:2]) for path in paths)
            raise ValueError(
                f"{name}: {pattern!r} names no block; choose from {', '.join(blocks)}, "
                "or a layer or an array in one"
            )
        found |= named
    return found


def begins(path: str, pattern: str) -> bool:
    """Whether the first parts of a path match a pattern's, one by one.

    Example:
      >>> begins("encoder/a/bias", "encoder/*"), begins("encoder", "encoder/*")
      (True, False)
    """
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) >= len(patterns) and all(
        fnmatch.fnmatchcase(part, of_it)
        for part, of_it in zip(parts, patterns, strict=False)
    )
