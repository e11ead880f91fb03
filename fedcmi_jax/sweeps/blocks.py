"""From variants and grids to a plan: every cell's configuration, checked."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcmi_jax import methods
from fedcmi_jax.experiment.checks import check_config, check_effects
from fedcmi_jax.experiment.config import Config, create, from_dict, lookup, to_dict
from fedcmi_jax.experiment.one_call import overlaid
from fedcmi_jax.experiment.presets import ABLATIONS
from fedcmi_jax.experiment.resume import leaves
from fedcmi_jax.experiment.run_name import text_of
from fedcmi_jax.sweeps import checks
from fedcmi_jax.sweeps.fields import (
    Values,
    changed,
    short_names,
    shown,
    slug_of,
    trial_of,
    tried,
)
from fedcmi_jax.sweeps.plan import METHOD, Cell, Plan

ABLATED = "fedcmi"
"""The method that ``presets.ABLATIONS`` changes."""


class Variant(NamedTuple):
    """A method with its options, and anything else that goes with it.

    Attributes:
      name: What tables call it; "" where there is nothing to tell apart.
      changes: Nested tables of configuration fields.
      tune: What is tuned for this one, beside the block's.
    """

    name: str
    changes: dict[str, Any] = {}  # noqa: RUF012 (nobody writes into it)
    tune: Values = {}  # noqa: RUF012


class Block(NamedTuple):
    """Cells that share a base: all variants at all points of a grid.

    Attributes:
      label: What tables call it; "" where there is one block only.
      base: Nested tables: the configuration before variants and grid.
      variants: The variants; at least one.
      grid: What is crossed, the slowest first.
      tune: What is tuned in every cell.
    """

    label: str
    base: dict[str, Any]
    variants: tuple[Variant, ...] = (Variant(""),)
    grid: Values = {}  # noqa: RUF012
    tune: Values = {}  # noqa: RUF012


def variant(
    name: str, changes: Mapping[str, Any] | None = None, tune: Values | None = None
) -> Variant:
    """A variant: ``changes`` name its method, or else its own name does.

    Args:
      name: With ``method.name`` in the changes any; else a method's, or one of FedCMI's
        ablations, ``fedcmi-heads-only`` or ``heads-only``.
      changes: Nested tables of configuration fields.
      tune: See ``Variant``.

    Raises:
      ValueError: There is no such method.

    Example:
      >>> variant("heads-only").changes
      {'method': {'name': 'fedcmi', 'lam': 0.0}}
      >>> variant("strong", {"method": {"name": "fedprox", "mu": 1.0}}).name
      'strong'
    """
    changes, tune = dict(changes or {}), tune or {}
    if not isinstance(changes.get(METHOD, {}), Mapping):
        raise ValueError(
            f"methods.{name}.method: {changes[METHOD]!r} is no table of options; write "
            "e.g. method.name = 'fedprox'"
        )
    if "name" in changes.get(METHOD, {}):
        return Variant(name, changes, tune)
    short = name.removeprefix(f"{ABLATED}-")
    ablated = [n for n in (short, short.replace("_", "-")) if n in ABLATIONS]
    if ablated:
        own = {METHOD: {"name": ABLATED}}
        own = overlaid(own, ABLATIONS[ablated[0]][1])
    else:
        known = [*methods.REGISTRY, *(f"{ABLATED}-{n}" for n in ABLATIONS)]
        own = {METHOD: {"name": lookup("methods", name, known)}}
    return Variant(name, overlaid(own, changes), tune)


def plan_of(
    blocks: Sequence[Block],
    *,
    source: str,
    block_axis: str = "block",
    measure: str = "acc",
    baseline: str | None = None,
    tune_seeds: int = 1,
) -> Plan:
    """Crosses variants and grids of every block, and checks every configuration.

    Args:
      blocks: At least one.
      source: See ``Plan``.
      block_axis: Name of the axis that blocks are on, where there are several.
      measure: A column of metrics.jsonl.
      baseline: A variant that the others are compared with; None: the first one, if
        there are several.
      tune_seeds: Seeds of every tuning trial.

    Returns:
      The plan.

    Raises:
      ValueError: A field, name, value or combination is impossible; one line that names
        it, and of a cell's configuration the cell.

    Example:
      >>> base = {"dataset": {"name": "synthetic"}, "seeds": 2}
      >>> variants = (variant("fedavg"), variant("fedcmi"))
      >>> grid = {"partition.alpha": (0.1, 5.0)}
      >>> plan = plan_of([Block("", base, variants, grid)], source="")
      >>> [cell.name for cell in plan.cells][:2], plan.baseline
      (['fedavg,alpha=0.1', 'fedavg,alpha=5'], 'fedavg')
    """
    names = [v.name for v in blocks[0].variants if v.name]
    everywhere = {v.name for block in blocks for v in block.variants}
    if baseline is None and len(names) > 1:
        baseline = names[0]
    if baseline is not None:
        baseline = lookup("baseline", baseline, sorted(everywhere - {""}))
    checks.check_measure(measure)
    if tune_seeds < 1:
        raise ValueError(f"tune_seeds: {tune_seeds} is below 1; give at least 1")
    has_blocks, cells = len(blocks) > 1, []
    for block in blocks:
        checks.check_block(block)
        short = short_names(block.grid)
        for own, point in itertools.product(block.variants, tried(block.grid)):
            values = {block_axis: block.label} if has_blocks else {}
            values |= {METHOD: own.name} if own.name else {}
            values |= {field: shown(value) for field, value in point.items()}
            parts = [block.label] if has_blocks else []
            parts += [own.name] if own.name else []
            parts += [f"{short[f]}={text_of(shown(v))}" for f, v in point.items()]
            name = slug_of(",".join(parts)) or "all"
            tune = own.tune | block.tune
            config = _config(name, block, own, point, tune, tune_seeds)
            cells.append(Cell(name, values, config, tune))
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            raise ValueError(f"cell {name!r}: is there {count} times; keep one")
    checks.check_common(cells)
    checks.check_measured(measure, cells)
    axes = dict.fromkeys(axis for cell in cells for axis in cell.values)
    return Plan(source, measure, baseline, tuple(axes), tuple(cells), tune_seeds)


def _config(
    name: str,
    block: Block,
    own: Variant,
    point: Mapping[str, Any],
    tune: Values,
    tune_seeds: int,
) -> Config:
    """A cell's configuration; all its tuning trials' are checked, too."""
    values = overlaid(block.base, own.changes)
    try:
        _check_known("grid", values, point)
        _check_known("tune", values, tune)
        values = changed(values, point)
        config = checked(values)
        for trial in tried(tune):
            if trial:
                checked(trial_of(values, trial, tune_seeds))
        if tune and not config.validation_fraction > 0:
            raise ValueError(
                "tune: needs a validation split to choose by; set validation_fraction "
                "to 0.1"
            )
    except ValueError as error:
        raise ValueError(f"cell {name}: {error}") from None
    return config


def _check_known(
    where: str, values: Mapping[str, Any], fields: Mapping[str, Any]
) -> None:
    """Refuses what is no field of a configuration, and suggests one that ends alike."""
    known = to_dict(from_dict(dict(values)))
    paths = [*known, *leaves(known)]
    for field in fields:
        if field in paths:
            continue
        last = field.rpartition(".")[2]
        close = [path for path in paths if path.rpartition(".")[2] == last]
        if close:
            raise ValueError(f"{where}: unknown {field!r}; did you mean {close[0]!r}?")
        meant = lookup(where, field, paths)
        raise ValueError(f"{where}: unknown {field!r}; did you mean {meant!r}?")


def checked(values: Mapping[str, Any]) -> Config:
    """A configuration that ``check_config`` and ``check_effects`` pass.

    Raises:
      ValueError: They do not, or the method refuses its options.
    """
    try:
        config = from_dict(dict(values))
    except (AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None
    check_config(config)
    check_effects(config)
    create("method", config.method)
    return config
