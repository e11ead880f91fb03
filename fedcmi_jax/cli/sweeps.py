"""``fedcmi sweep FILE.toml`` and ``fedcmi compare``: plans, carried out."""

import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fedcmi_jax.cli import launch
from fedcmi_jax.cli.command import Launch
from fedcmi_jax.cli.run_commands import RUNS
from fedcmi_jax.cli.sweep_commands import Compare, SweepRun
from fedcmi_jax.experiment.callbacks import Callback
from fedcmi_jax.experiment.config import to_dict
from fedcmi_jax.experiment.output import say
from fedcmi_jax.experiment.run_folder import check_free, default_folder
from fedcmi_jax.experiment.training import Interrupted
from fedcmi_jax.sweeps import run as running
from fedcmi_jax.sweeps.estimate import estimate
from fedcmi_jax.sweeps.one_call import comparison
from fedcmi_jax.sweeps.plan import Plan, check_same, is_sweep, read_plan
from fedcmi_jax.sweeps.table import TABLE_MD
from fedcmi_jax.sweeps.toml_file import read_toml

_LIMITS = ("coordinator", "num_processes", "process_id")


def run(options: SweepRun) -> int:
    """Runs ``fedcmi sweep``.

    Args:
      options: Its options.

    Returns:
      The exit code: 1 if a cell failed.

    Raises:
      ValueError: A user's mistake, before anything is written.
    """
    source = options.source
    if is_sweep(source):
        if options.output is not None:
            raise ValueError(f"--output: {source} is a sweep already; leave it out")
        return go_on(source, options.launch, dry=options.dry_run)
    if source.is_dir():
        raise ValueError(
            f"{source}: is no sweep, for it has no plan.json; give a TOML file or the "
            "folder of a sweep"
        )
    plan = read_toml(source)
    return _new(plan, source.stem, options.output, options.launch, options.dry_run)


def compare(options: Compare) -> int:
    """Runs ``fedcmi compare``.

    Args:
      options: Its options.

    Returns:
      The exit code: 1 if a cell failed.

    Raises:
      ValueError: A user's mistake, before anything is written.
    """
    config = options.config
    base = to_dict(config) | {"output": None}
    plan = comparison(
        base,
        list(options.methods),
        source=options.source,
        grid=values_of("--grid", options.grid),
        tune=values_of("--tune", options.tune),
        tune_seeds=options.tune_seeds,
        baseline=options.baseline,
        measure=options.measure,
    )
    output = None if config.output is None else pathlib.Path(config.output)
    name = f"compare {config.preset or config.dataset.name}"
    return _new(plan, name, output, options.launch, options.dry_run)


def values_of(flag: str, words: Sequence[str]) -> dict[str, list[Any]]:
    """``FIELD=VALUE`` and further values, as fields with their values.

    Raises:
      ValueError: The first word has no field, or a field is there twice.

    Example:
      >>> values_of("--grid", ["partition.alpha=0.1", "5", "method.student=self"])
      {'partition.alpha': [0.1, 5], 'method.student': ['self']}
    """
    found: dict[str, list[Any]] = {}
    last: list[Any] | None = None
    for word in words:
        field, equals, value = word.partition("=")
        if equals:
            field = field.replace("-", "_")
            if field in found:
                raise ValueError(f"{flag}: {field} is there twice; keep one")
            last = found.setdefault(field, [])
        elif last is None:
            raise ValueError(
                f"{flag}: {word!r} names no field; give e.g. partition.alpha=0.1,5"
            )
        last.append(_value(value if equals else word))
    return found


def _value(text: str) -> Any:
    """A number, a truth value, null or else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
    return text if isinstance(found, list | dict | str) else found


def _new(
    plan: Plan,
    name: str,
    output: pathlib.Path | None,
    where: Launch,
    dry: bool,
) -> int:
    """A sweep in a folder of its own, or of the same plan."""
    if dry:
        return _estimate(plan, where)
    folder = output
    if folder is None:
        folder = default_folder(RUNS, f"sweep {name}", plan.seeds[0])
    if is_sweep(folder):
        check_same(folder, plan)
    else:
        check_free(folder)
    mesh = _start(plan, where)
    running.begin(plan, folder)
    return _carry_on(plan, folder, mesh, where)


def go_on(
    folder: pathlib.Path,
    where: Launch,
    callbacks: Sequence[Callback] = (),
    dry: bool = False,
) -> int:
    """Goes on with a sweep, for ``fedcmi sweep DIR`` and ``fedcmi resume DIR``.

    Args:
      folder: The sweep's.
      where: Devices.
      callbacks: What follows the runs.
      dry: Whether to print an estimate only, of the cells that are not finished.

    Returns:
      The exit code: 1 if a cell failed.

    Raises:
      ValueError: The folder is damaged.
    """
    plan = read_plan(folder)
    if dry:
        return _estimate(running.unfinished(plan, folder), where)
    return _carry_on(plan, folder, _start(plan, where), where, callbacks)


def _start(plan: Plan, where: Launch) -> Mesh | None:
    given = [name for name in _LIMITS if getattr(where, name) is not None]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')}: the cells of a sweep are trained in one "
            "process; start the same command again to share them, without the flag"
        )
    if launch.is_cluster():
        raise ValueError(
            "SLURM_NTASKS, TPU_WORKER_HOSTNAMES: name several processes, but the cells "
            "of a sweep are trained in one; unset them, and start the command on each "
            "machine to share the cells"
        )
    maps = any(cell.config.map_seeds for cell in plan.cells)
    mesh = launch.start(where, spreads=not maps)
    if jax.process_count() > 1:
        raise ValueError(
            f"jax.distributed: joins {jax.process_count()} processes, but the cells of "
            "a sweep are trained in one; start it without"
        )
    return mesh


def _carry_on(
    plan: Plan,
    folder: pathlib.Path,
    mesh: Mesh | None,
    where: Launch,
    callbacks: Sequence[Callback] = (),
) -> int:
    say(f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {folder}")
    try:
        done = running.carry_on(
            folder,
            mesh,
            spread=where.spread_samples,
            callbacks=callbacks,
            log=say,
            note=_note,
        )
    except Interrupted as stop:
        _note(f"stopped, all is saved; continue with: fedcmi sweep {folder}")
        return 128 + stop.signal_number
    print((folder / TABLE_MD).read_text("utf-8"), end="")
    for name in done.elsewhere:
        _note(f"{name} is trained by another process, which will write the tables")
    for name, message in done.failures.items():
        _note(f"{name} failed: {message}")
    print(f"sweep folder {folder}")
    return 1 if done.failures else 0


def _estimate(plan: Plan, where: Launch) -> int:
    """Prints the cells, and what they will take."""
    for cell in plan.cells:
        rounds, seeds = cell.config.rounds, cell.config.seeds
        extra = running.rounds_of(plan, cell) - rounds * seeds
        tuning = f", tuning {extra} rounds" if extra else ""
        print(f"{cell.name}: {rounds} rounds x {seeds} seeds{tuning}")
    print(f"{len(plan.cells)} cells to train", flush=True)
    print("program of, cells, compile s, round s, evaluation s, all its cells")
    found = []
    for m in estimate(plan, _start(plan, where), where.spread_samples, _note_once()):
        found.append(m)
        figures = ", ".join(f"{x:.3g}" for x in (m.compile, m.round, m.evaluation))
        say(f"{m.cell}, {m.cells}, {figures}, {running.duration(m.seconds)}")
    total = running.duration(sum(m.seconds for m in found))
    print(
        f"estimate: {total}, from {len(found)} measured programs, without checkpoints; "
        "nothing was written"
    )
    return 0


def _note(text: str) -> None:
    say(f"fedcmi: {text}", sys.stderr)


def _note_once() -> Any:
    return functools.cache(_note)
