"""One check, and one message, for every option with a fixed set of values."""

import typing
from collections.abc import Iterable
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
