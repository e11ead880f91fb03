"""What a sweep refuses before any work; one line for each mistake."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedcmi_jax.evaluation.glossary import is_result
from fedcmi_jax.experiment.resume import leaves
from fedcmi_jax.sweeps.fields import tried
from fedcmi_jax.sweeps.plan import METHOD, Cell

if TYPE_CHECKING:
    from fedcmi_jax.sweeps.blocks import Block

OWN_FIELDS = ("seed", "seeds", "map_seeds", "output", "imports", "preset")
"""Fields that no grid, variant or tuning may change: they are the sweep's."""

OF_THE_END = ("rounds", "early_stop_rounds", "eval_every")
"""Fields that say when a run ends; what is tuned ends as its cell does."""

SET_APART = {
    "val_": "validation_fraction",
    "client_test_": "client_test_fraction",
    "holdout_": "holdout_clients",
}
"""Beginning of a column -> the field that gives it samples."""

METHOD_NAME = f"{METHOD}.name"
"""The field that a variant is called by."""


def check_block(block: "Block") -> None:
    """Refuses fields that two parts of a block set, and unequal budgets of tuning."""
    for where, fields in (("grid", block.grid), ("tune", block.tune)):
        for field, values in fields.items():
            _check_values(f"{where}.{field}", field, values)
    _check_apart("grid", block.grid)
    for own in block.variants:
        where = f"methods.{own.name}"
        changes = leaves(own.changes)
        for field, values in own.tune.items():
            _check_values(f"{where}.tune.{field}", field, values)
        for field in changes:
            if field in OWN_FIELDS:
                raise ValueError(f"{where}.{field}: is the sweep's; put it in base")
        tuned = (*block.tune, *own.tune)
        for field in block.grid:
            both = [f for f in (*changes, *tuned) if _overlap(field, f)]
            if both:
                raise ValueError(
                    f"grid.{field}: {own.name or 'tune'} sets {both[0]}, too; keep one "
                    "of them"
                )
        for field in tuned:
            if field in OF_THE_END:
                raise ValueError(
                    f"tune.{field}: says when a run ends, the same in all trials; put "
                    "it in grid or base"
                )
            if METHOD_NAME in changes and _overlap(field, METHOD_NAME):
                raise ValueError(
                    f"tune.{field}: {own.name} sets {METHOD_NAME}, too; tune its "
                    "options, e.g. method.mu"
                )
        for field in own.tune:
            if field in block.tune:
                raise ValueError(f"{where}.tune.{field}: tune has it, too; keep one")
        _check_apart("tune", tuned)
    counts = Counter(v.name for v in block.variants)
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"methods: {name!r} is there {count} times; keep one")
    trials = {v.name: len(list(tried(v.tune | block.tune))) for v in block.variants}
    if len(set(trials.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in trials.items())
        raise ValueError(
            f"tune: methods have different numbers of trials ({told}); give each as "
            "many values, one budget for all"
        )


def _overlap(field: str, other: str) -> bool:
    return f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}.")


def _check_apart(where: str, fields: Iterable[str]) -> None:
    """Refuses a section beside a field of it: the later one would hide the other."""
    for one, other in itertools.combinations(fields, 2):
        if _overlap(one, other):
            raise ValueError(f"{where}.{one}: overlaps with {other}; keep one of them")


def _check_values(where: str, field: str, values: Sequence[Any]) -> None:
    if field.split(".")[0] in OWN_FIELDS:
        raise ValueError(f"{where}: is the sweep's and the same in all cells; leave it")
    if not values:
        raise ValueError(f"{where}: is empty; give at least one value")
    texts = [repr(value) for value in values]
    for text in texts:
        if texts.count(text) > 1:
            raise ValueError(f"{where}: {text} is there twice; keep one")


def check_common(cells: Sequence[Cell]) -> None:
    """Refuses cells of other seeds: differences are between equal seeds."""
    first = cells[0]
    for cell in cells:
        for field in ("seed", "seeds"):
            ours, theirs = (getattr(c.config, field) for c in (cell, first))
            if ours != theirs:
                raise ValueError(
                    f"{field}: {ours} in cell {cell.name}, {theirs} in {first.name}; a "
                    "sweep has the same seeds everywhere, set them once"
                )


def check_measure(measure: str) -> None:
    """Refuses to compare what is no result of a run: counts of clients, times, lists.

    Raises:
      ValueError: It is; or no run has such a column.

    Example:
      >>> check_measure("acc"), check_measure("val_macro_f1")
      (None, None)
    """
    try:
        usable = is_result(measure)
    except ValueError:
        raise ValueError(
            f"measure: {measure!r} is no column of a run's metrics; give e.g. acc, "
            "macro_f1 or worst_class (docs/glossary.md)"
        ) from None
    if not usable:
        raise ValueError(
            f"measure: {measure!r} is no result that methods can be compared by; give "
            "e.g. acc, macro_f1 or worst_class"
        )


def check_measured(measure: str, cells: Sequence[Cell]) -> None:
    """Refuses a measure on samples that a cell does not set apart.

    Raises:
      ValueError: A cell will not have it; names the field that is 0 there.
    """
    for prefix, field in SET_APART.items():
        for cell in cells if measure.startswith(prefix) else ():
            if not getattr(cell.config, field) > 0:
                raise ValueError(
                    f"measure: {measure!r} needs {field}, which is 0 in cell "
                    f"{cell.name}; set it in base"
                )
