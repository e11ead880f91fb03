"""Values of a configuration's fields, checked against the fields' types."""

import dataclasses
import math
import sys
import types
import typing
from typing import Any, Literal

from fedcmi_jax.choices import check_choice

LARGEST = 2**31 - 1
"""Compiled programs count in int32."""

MOST_OF_A_FLOAT = int(sys.float_info.max)
"""Python's whole numbers have no end."""

MAY_BE_INFINITE = ("guard_factor",)
"""Fields for which infinity says something, though it is not their default."""

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
}

_BY_NAME = ("inf", "-inf", "nan")
"""Floats that JSON lacks, as ``config.to_dict`` writes them."""


def typed(where: str, value: Any, hint: Any) -> Any:
    """A value as a field of that type holds it.

    Args:
      where: The field, dotted.
      value: From JSON or Python: lists become tuples, and "inf" a number.
      hint: The field's type: bool, int, float, str, None, tuple[X, ...], Literal, their
        unions, or Any.

    Returns:
      The value.

    Raises:
      ValueError: It is of another type, or a whole number that int32 cannot hold.

    Example:
      >>> typed("counts", [1, 2], tuple[int, ...])
      (1, 2)
      >>> typed("rounds", "ten", int)
      Traceback (most recent call last):
      ValueError: rounds: 'ten' is not a whole number
    """
    if hint is Any:
        return value
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not isinstance(value, str):
            raise ValueError(f"{where}: {value!r} is not one of {list(parts)}")
        check_choice(where, value, hint)
        return value
    if origin is tuple:
        if isinstance(value, list | tuple):
            items = (parts[0] for _ in value)
            return tuple(map(typed, [where] * len(value), value, items))
        raise ValueError(f"{where}: {value!r} is not {_words(hint)}")
    if origin in (typing.Union, types.UnionType):
        fitting = [part for part in parts if _fits(value, part)]
        if not fitting:
            raise ValueError(f"{where}: {value!r} is not {_words(hint)}")
        return typed(where, value, fitting[0])
    if not _fits(value, hint):
        raise ValueError(f"{where}: {value!r} is not {_words(hint)}")
    if hint is int and abs(value) > LARGEST:
        raise ValueError(
            f"{where}: {value} is too large; give at most {LARGEST} (int32)"
        )
    if hint is float and isinstance(value, int) and abs(value) > MOST_OF_A_FLOAT:
        raise ValueError(f"{where}: {value} is too large for a number")
    return float(value) if hint is float and isinstance(value, str) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, but for items and choices."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple)
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number or value in _BY_NAME
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list, each item {_words(parts[0])}"
    if origin is Literal:
        return f"one of {list(parts)}"
    if parts:
        return " or ".join(map(_words, parts))
    return _WORDS[hint]


def check_values(config: Any, where: str = "") -> None:
    """Checks every field of a dataclass of settings, and of those in it.

    Args:
      config: The dataclass.
      where: Before every name.

    Raises:
      ValueError: See ``typed``; or a number is infinite or none where its default is
        not. Names the field.

    Example:
      >>> from fedcmi_jax.experiment.config import LocalConfig
      >>> check_values(LocalConfig(weight_decay=math.inf), "local.")
      Traceback (most recent call last):
      ValueError: local.weight_decay: inf is not finite; the default is 0.0001
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            check_values(value, f"{path}.")
            continue
        typed(path, value, hints[field.name])
        for number in value if isinstance(value, tuple) else (value,):
            is_odd = isinstance(number, float) and not math.isfinite(number)
            says = value == field.default or (
                number == math.inf and path in MAY_BE_INFINITE
            )
            if is_odd and not says:
                raise ValueError(
                    f"{path}: {value} is not finite; the default is {field.default}"
                )
