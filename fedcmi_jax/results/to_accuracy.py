"""Rounds, seconds and bytes until an accuracy is reached."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedcmi_jax.results.collect import Entry, is_number


class Reached(NamedTuple):
    """When a seed reached the target.

    Attributes:
      round: First evaluated round at which it had.
      seconds: Wall-clock time up to there, compiling and evaluating included; None: the
        lines do not say.
      bytes: Received and sent by all clients of all cohorts up to there, by
        ``bytes_per_client`` of the summary; None: the run has not finished.
    """

    round: int
    seconds: float | None
    bytes: float | None


def reached(entry: Entry, column: str, target: float) -> dict[int, Reached | None]:
    """When each seed first had at least the target.

    Bytes are B K t: B what a client receives and sends in a round (the mean over
    clients), K clients per round, t rounds.

    Args:
      entry: The entry.
      column: Of the metrics lines.
      target: In the column's units.

    Returns:
      Seed -> when; None: it never had.
    """
    return {seed: _reached(entry, seed, column, target) for seed in entry.seeds}


def _reached(entry: Entry, seed: int, column: str, target: float) -> Reached | None:
    seconds: float | None = 0.0
    for line in entry.seeds[seed]:
        time, value = line.get("seconds"), line.get(column)
        seconds = seconds + time if seconds is not None and is_number(time) else None
        if is_number(value) and value >= target:
            return Reached(line["round"], seconds, _bytes(entry, seed, line["round"]))
    return None


def _bytes(entry: Entry, seed: int, rounds: int) -> float | None:
    """What all cohorts have received and sent in that many rounds."""
    found = traffic(entry.summaries.get(seed, {}))
    cohort = entry.config.get("clients_per_round")
    if found is None or not is_number(cohort):
        return None
    return sum(found) * float(cohort) * rounds


def traffic(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """Bytes that a client receives and sends in a round; None where it is not said.

    Args:
      summary: A run's; runs before version 0.2 have none.

    Example:
      >>> traffic({"bytes_per_client": {"down": {"head": 8.0}, "up": {"head": 8.0}}})
      (8.0, 8.0)
    """
    found = summary.get("bytes_per_client")
    sizes = []
    for way in ("down", "up"):
        blocks = found.get(way) if isinstance(found, dict) else None
        values = blocks.values() if isinstance(blocks, dict) else [None]
        sizes.append([float(x) for x in values if is_number(x)])
        if len(sizes[-1]) < len(values):
            return None
    return sum(sizes[0]), sum(sizes[1])
