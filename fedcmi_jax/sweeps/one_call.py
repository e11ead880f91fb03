"""Sweeps and comparisons in one call from Python."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from fedcmi_jax.experiment.callbacks import Callback
from fedcmi_jax.experiment.config import Config, to_dict
from fedcmi_jax.experiment.one_call import config_of
from fedcmi_jax.sweeps import run
from fedcmi_jax.sweeps.blocks import Block, plan_of, variant
from fedcmi_jax.sweeps.plan import Plan, is_sweep
from fedcmi_jax.sweeps.table import Row
from fedcmi_jax.sweeps.toml_file import read_toml


def sweep(
    plan: Plan | str | pathlib.Path,
    output: str | pathlib.Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Trains all cells of a plan, as ``fedcmi sweep`` does, or goes on with it.

    Args:
      plan: ``comparison``'s; a TOML file (docs/sweeps.md); or the folder of a sweep to
        go on with.
      output: The sweep's folder: new, or of this very plan, which then goes on; None
        only for a folder.
      callbacks: What follows every run.
      mesh: ``placement.client_mesh``: devices that share every cohort; None: one.
      log: Receives a line per cell.

    Returns:
      The table, a row per cell: ``values`` by axis, ``metrics`` by column with a value
      of every seed, ``difference`` to the baseline.

    Raises:
      ValueError: Something in the plan is impossible, or the folder is another's.
      Interrupted: SIGINT or SIGTERM; call again to go on.

    Example:
      >>> sweep("no/such/file.toml", "runs/sweep")
      Traceback (most recent call last):
      ValueError: no/such/file.toml: No such file or directory
    """
    if not isinstance(plan, Plan) and is_sweep(plan):
        folder = pathlib.Path(plan)
    elif output is None:
        raise ValueError("output: is None; name the folder of the sweep")
    else:
        folder = pathlib.Path(output)
        run.begin(plan if isinstance(plan, Plan) else read_toml(plan), folder)
    done = run.carry_on(folder, mesh, callbacks=callbacks, log=log, note=log)
    return done.rows


def compare(
    config: Config | Mapping[str, Any] | str | None = None,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    output: str | pathlib.Path,
    seeds: int | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    tune_seeds: int = 1,
    baseline: str | None = None,
    measure: str = "acc",
    callbacks: Sequence[Callback] = (),
    mesh: Mesh | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Compares methods on one problem, or on a grid of them, as ``fedcmi compare``.

    Args:
      config: What is common, as ``fc.train`` takes it.
      methods: Names, of methods or of FedCMI's ablations (``fedcmi-heads-only``); or
        name -> nested dicts of the fields that it changes.
      output: See ``sweep``.
      seeds: Of every cell; None: the configuration's.
      grid: Dotted field -> values, crossed.
      tune: Dotted field -> values, of which each method gets the best on validation.
      tune_seeds: Seeds of every tuning trial.
      baseline: Whom the others are compared with; None: the first method.
      measure: Column that is compared.
      callbacks: See ``sweep``.
      mesh: See ``sweep``.
      log: See ``sweep``.

    Returns:
      See ``sweep``.

    Raises:
      ValueError: See ``sweep``.

    Example:
      >>> import tempfile, fedcmi_jax as fc
      >>> data = {"name": "synthetic", "train_samples": 200, "test_samples": 50}
      >>> rows = fc.compare({"dataset": data, "rounds": 1},
      ...     methods=["fedavg", "fedprox"], seeds=2,
      ...     output=tempfile.mkdtemp())
      >>> [(row.cell, len(row.metrics["acc"])) for row in rows]
      [('fedavg', 2), ('fedprox', 2)]
    """
    base = to_dict(config_of(config))
    if seeds is not None:
        base["seeds"] = seeds
    plan = comparison(
        base,
        methods,
        source="fc.compare",
        grid=grid,
        tune=tune,
        tune_seeds=tune_seeds,
        baseline=baseline,
        measure=measure,
    )
    return sweep(plan, output, callbacks=callbacks, mesh=mesh, log=log)


def comparison(
    base: Mapping[str, Any],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    source: str = "",
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    tune_seeds: int = 1,
    baseline: str | None = None,
    measure: str = "acc",
) -> Plan:
    """The plan of ``compare``: nothing is trained.

    Args:
      base: Nested tables of a configuration.
      methods: See ``compare``.
      source: What plan.json says that it comes from.
      grid: See ``compare``.
      tune: See ``compare``.
      tune_seeds: See ``compare``.
      baseline: See ``compare``.
      measure: See ``compare``.

    Raises:
      ValueError: A field, name or value is impossible.

    Example:
      >>> plan = comparison({}, ["fedavg", "fedcmi"], grid={"rounds": [10, 20]})
      >>> [cell.name for cell in plan.cells]
      ['fedavg,rounds=10', 'fedavg,rounds=20', 'fedcmi,rounds=10', 'fedcmi,rounds=20']
    """
    if not methods or isinstance(methods, str):
        raise ValueError(f"methods: {methods!r}; give a list of at least one name")
    named = methods if isinstance(methods, Mapping) else dict.fromkeys(methods)
    if len(named) < len(methods):
        raise ValueError(f"methods: {list(methods)} has one twice; keep one")
    block = Block(
        "",
        dict(base),
        tuple(variant(name, changes) for name, changes in named.items()),
        {field: tuple(values) for field, values in (grid or {}).items()},
        {field: tuple(values) for field, values in (tune or {}).items()},
    )
    return plan_of(
        [block],
        source=source,
        measure=measure,
        baseline=baseline,
        tune_seeds=tune_seeds,
    )
