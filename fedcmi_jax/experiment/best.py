"""The best round on validation, and when to stop waiting for a better one."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

COLUMN = "val_acc"
"""The metric that chooses: fused accuracy on the validation split."""


class Best(NamedTuple):
    """The evaluated round with the highest validation accuracy; the earliest of equals.

    Attributes:
      round: Its round; 0: there is none yet.
      value: Its accuracy.

    Example:
      >>> lines = [{"round": r, "val_acc": a} for r, a in ((5, 0.5), (10, 0.5))]
      >>> best_of(lines)
      Best(round=5, value=0.5)
    """

    round: int = 0
    value: float = float("-inf")

    def is_beaten_by(self, record: Mapping[str, Any]) -> bool:
        """Whether a metrics line has a higher validation accuracy."""
        value = record.get(COLUMN)
        return value is not None and value > self.value


def best_of(records: Iterable[Mapping[str, Any]]) -> Best:
    """The best of metrics lines in the order of their rounds.

    Args:
      records: Lines; those without validation accuracy are passed over.

    Returns:
      The best, of round 0 where no line has a validation accuracy.
    """
    best = Best()
    for record in records:
        if best.is_beaten_by(record):
            best = Best(record["round"], record[COLUMN])
    return best


def should_stop(best: Best, round: int, patience: int | None) -> bool:
    """Whether the last ``patience`` rounds brought no better one.

    round - best.round >= patience; to be asked at evaluated rounds only.

    Args:
      best: The best round up to ``round``.
      round: An evaluated round.
      patience: Rounds to wait for a better one; None: for ever.

    Example:
      >>> should_stop(Best(5, 0.5), 15, 10), should_stop(Best(6, 0.5), 15, 10)
      (True, False)
    """
    return patience is not None and round - best.round >= patience
