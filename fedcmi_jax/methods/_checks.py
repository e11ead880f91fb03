"""Refusals of options, in one line each."""

import numpy as np
from jax.core import Tracer

from fedcmi_jax.types import Array, Model


def check_not_negative(**values: float | Array) -> None:
    """Refuses negative or NaN coefficients; traced values pass unchecked.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name}: {value} is not >= 0; give 0 or more")


def check_window(first_round: int, last_round: int | None) -> None:
    """Refuses an empty window of rounds; ``last_round`` None is the run's last.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    if first_round < 0:
        raise ValueError(f"first_round: {first_round} is negative; give 0 or more")
    if last_round is not None and last_round < first_round:
        raise ValueError(
            f"last_round: {last_round} comes before first_round {first_round}; give "
            f"at least {first_round}, or None for the end"
        )


def check_momentum(momentum: float, remedy: str) -> None:
    """Refuses a momentum outside [0, 1).

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum} is outside [0, 1); {remedy}")


def check_features(name: str, model: Model) -> None:
    """Refuses a model that shows no features for a method that looks at them.

    Raises:
      ValueError: Names the method and the remedy.
    """
    if model.widths is None:
        raise ValueError(
            f"model: {name} looks at features, and Model.widths is None; give their "
            "widths, and the features in Outputs.features"
        )


def check_two_modalities(name: str, model: Model) -> None:
    """Refuses a model of other than two modalities for a method that compares two.

    Raises:
      ValueError: Names the method, the modalities and the remedy.
    """
    if len(model.modalities) != 2:
        raise ValueError(
            f"model: {name} is defined for two modalities, not for "
            f"{len(model.modalities)}; choose another method"
        )
