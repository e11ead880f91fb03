"""A number over the rounds, as mean and deviation over the seeds."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedcmi_jax.results.collect import Entry, columns_of, is_number


class Curve(NamedTuple):
    """A column of an entry over its evaluated rounds, E of them.

    Attributes:
      rounds: [E] int64.
      mean: [E] mean over the seeds that evaluated the round.
      std: [E] their sample deviation (n - 1); NaN of a single one.
      seeds: [E] int64, how many they are.
    """

    rounds: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    seeds: np.ndarray


def curve(entry: Entry, column: str) -> Curve | None:
    """A column over the rounds; None if no line has it.

    Args:
      entry: The entry.
      column: Of the metrics lines.
    """
    values: dict[int, list[float]] = {}
    for lines in entry.seeds.values():
        for line in lines:
            if is_number(line.get(column)):
                values.setdefault(line["round"], []).append(float(line[column]))
    if not values:
        return None
    rounds = sorted(values)
    deviations = [
        float(np.std(values[r], ddof=1)) if len(values[r]) > 1 else np.nan
        for r in rounds
    ]
    return Curve(
        np.array(rounds),
        np.array([np.mean(values[r]) for r in rounds]),
        np.array(deviations),
        np.array([len(values[r]) for r in rounds]),
    )


def modalities(entries: Iterable[Entry]) -> list[str]:
    """Modalities that any entry was evaluated alone with (``acc_{m}_zero``)."""
    found = (re.fullmatch("acc_(.+)_zero", name) for name in columns_of(entries))
    return [match[1] for match in found if match]
