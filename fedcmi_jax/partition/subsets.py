"""Which modalities a client has: any subset, by counts, probabilities or a table."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_TOTAL_TOLERANCE = 1e-6
"""Decimal fractions such as three times 0.333333 do not add up to 1 exactly."""

EXAMPLE = "clean=5,noisy=10,clean+noisy=5"


class Subsets(NamedTuple):
    """How many clients have which subset of the modalities.

    Attributes:
      amounts: Subset, as "clean+noisy" -> clients, or probability.
      exact: Whether the amounts are counts.
    """

    amounts: Mapping[str, float]
    exact: bool


def read_subsets(text: str) -> Subsets:
    """Reads ``clean=5,noisy=10,clean+noisy=5`` or ``clean=0.25,clean+noisy=0.75``.

    Args:
      text: Subsets and amounts; whole numbers are counts of clients, numbers with a
        decimal point probabilities.

    Returns:
      The subsets.

    Raises:
      ValueError: It has another form, mixes counts and probabilities, an amount is
        negative, or probabilities do not add up to 1.

    Example:
      >>> read_subsets("a=1,a+b=2")
      Subsets(amounts={'a': 1.0, 'a+b': 2.0}, exact=True)
    """
    amounts: dict[str, float] = {}
    whole = set()
    for entry in text.split(","):
        subset, _, number = (part.strip() for part in entry.rpartition("="))
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if not subset or not 0 <= amount < np.inf:
            raise ValueError(
                f"modalities: {entry!r} is no subset and amount; give e.g. {EXAMPLE}, "
                "or a file .csv or .npz"
            )
        if subset in amounts:
            raise ValueError(f"modalities: {subset!r} stands twice; give it once")
        amounts[subset] = amount
        whole.add(number.isdecimal())
    if len(whole) > 1:
        raise ValueError(
            f"modalities: {text!r} mixes counts and probabilities; give whole numbers, "
            "or numbers with a point that add up to 1"
        )
    total = sum(amounts.values())
    exact = whole == {True}
    if not exact and abs(total - 1) > _TOTAL_TOLERANCE:
        raise ValueError(
            f"modalities: probabilities add up to {total:g}; give 1 in all"
        )
    return Subsets(amounts, exact)


def draw_subsets(
    subsets: Subsets,
    modalities: Sequence[str],
    num_clients: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws which client has which subset of the modalities.

    Counts: clients in random order get the subsets in theirs. Probabilities: every
    client draws its subset.

    Args:
      subsets: See ``read_subsets``.
      modalities: M names, in the data set's order.
      num_clients: Number of clients N.
      rng: Source of the draw.

    Returns:
      [N, M] bool, True where the client has the modality.

    Raises:
      ValueError: A modality is unknown or named twice, or counts do not add up to N.

    Example:
      >>> rng, subsets = np.random.default_rng(0), read_subsets("a=1,b+c=3")
      >>> draw_subsets(subsets, ("a", "b", "c"), 4, rng).sum(axis=0).tolist()
      [1, 3, 3]
    """
    rows = np.stack([_row(subset, modalities) for subset in subsets.amounts])
    amounts = np.array(list(subsets.amounts.values()))
    if not subsets.exact:
        return rows[rng.choice(len(rows), size=num_clients, p=amounts / amounts.sum())]
    if amounts.sum() != num_clients:
        raise ValueError(
            f"modalities: counts add up to {amounts.sum():g}, the partition gives "
            f"{num_clients} clients; give {num_clients} in all"
        )
    available = np.zeros((num_clients, len(modalities)), bool)
    available[rng.permutation(num_clients)] = np.repeat(rows, amounts.astype(int), 0)
    return available


def _row(subset: str, modalities: Sequence[str]) -> np.ndarray:
    """[M] bool of "a+b"."""
    names = [subset] if subset in modalities else [m.strip() for m in subset.split("+")]
    for name in names:
        if name not in modalities:
            raise ValueError(
                f"modalities: no modality {name!r}; choose from {', '.join(modalities)}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"modalities: {subset!r} names one twice; give it once")
    return np.isin(modalities, names)


def table_by_client(
    columns: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    num_clients: int,
    where: str,
) -> np.ndarray:
    """The [N, M] table of named columns, in the data set's order.

    Args:
      columns: Modality -> [N] numbers 0 and 1.
      modalities: M names.
      num_clients: Number of clients N.
      where: The table's file, for the message.

    Returns:
      [N, M] bool.

    Raises:
      ValueError: Names or lengths are others, an entry is neither 0 nor 1, or a client
        has no modality.

    Example:
      >>> table_by_client({"b": [1, 1], "a": [0, 1]}, ("a", "b"), 2, "t.csv").tolist()
      [[False, True], [True, True]]
    """
    if set(columns) != set(modalities):
        raise ValueError(
            f"{where}: columns {sorted(columns)}, the data set has "
            f"{sorted(modalities)}; give a column for each"
        )
    table = np.stack([np.asarray(columns[m]) for m in modalities], axis=1)
    if len(table) != num_clients:
        raise ValueError(
            f"{where}: {len(table)} rows, the partition gives {num_clients} clients; "
            "give a row for each"
        )
    bad = np.argwhere(~np.isin(table, (0, 1)))
    if len(bad):
        i, m = bad[0]
        raise ValueError(
            f"{where}: client {i}, {modalities[m]}: {table[i, m]} is neither 0 nor 1"
        )
    available = table.astype(bool)
    if not available.any(axis=1).all():
        raise ValueError(
            f"{where}: client {np.flatnonzero(~available.any(axis=1))[0]} has no "
            "modality; give it one or drop the client"
        )
    return available
