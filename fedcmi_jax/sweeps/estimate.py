"""What a sweep will take, from one measured round of every distinct program."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.experiment import seeds
from fedcmi_jax.experiment.config import from_dict, to_dict
from fedcmi_jax.experiment.experiment import Experiment, build, measure, rounds_per_call
from fedcmi_jax.experiment.resume import evaluations
from fedcmi_jax.experiment.seed_axis import one_seed
from fedcmi_jax.experiment.sharing import Shared, algorithm_key
from fedcmi_jax.sweeps.fields import trial_of, tried
from fedcmi_jax.sweeps.plan import Plan
from fedcmi_jax.sweeps.run import rounds_of

ROUNDS = 3
"""Timed rounds of a program, after two that warm it; the median counts."""


class Measured(NamedTuple):
    """A program, measured.

    Attributes:
      cell: Name of the first cell that has it.
      cells: How many have it.
      compile: Seconds to compile it and its evaluation; near 0 if the cache of programs
        has them.
      round: Seconds of a round.
      evaluation: Seconds of an evaluation.
      setup: Seconds to split the data and build, once for every seed.
      seconds: Of all its cells together.
    """

    cell: str
    cells: int
    compile: float
    round: float
    evaluation: float
    setup: float
    seconds: float


def programs(plan: Plan) -> dict[str, list[int]]:
    """The cells, by number, that have one program but for shapes and rate scales."""
    found: dict[str, list[int]] = {}
    for i, cell in enumerate(plan.cells):
        key = repr(cell.config.dataset) + algorithm_key(
            cell.config, rounds_per_call(cell.config)
        )
        found.setdefault(key, []).append(i)
    return found


def estimate(
    plan: Plan,
    mesh: Mesh | None = None,
    spread: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[Measured]:
    """Builds, compiles and times the first cell of every program; writes nothing.

    Counted are compiling, building, rounds and evaluations of all seeds and tuning
    trials. Not counted: checkpoints, and that other cells' clients may have more or
    fewer batches.

    Args:
      plan: The plan.
      mesh: Devices.
      spread: ``experiment.build``.
      log: ``experiment.build``.

    Yields:
      Every program, as soon as it is measured.

    Raises:
      ValueError: A cell's experiment cannot be built; names the cell.
    """
    shared = Shared()
    for numbers in programs(plan).values():
        cell = plan.cells[numbers[0]]
        try:
            one = seeds.alone(cell.config, cell.config.seed)
            if cell.config.map_seeds:
                one = cell.config
            build(one, mesh, log, shared, spread)  # loads the data, once for all
            begun = time.perf_counter()
            experiment = build(one, mesh, log, shared, spread)
            setup = time.perf_counter() - begun
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from None
        first, *rounds = _rounds(experiment)
        round = statistics.median(rounds)
        new, again = _evaluation(experiment), _evaluation(experiment)
        compiling = max(0.0, first - 2 * round) + max(0.0, new - again)
        seconds = compiling * _compiled(plan, numbers)
        for i in numbers:
            config = plan.cells[i].config
            runs = rounds_of(plan, plan.cells[i]) / config.rounds
            if config.map_seeds:  # one run is all seeds; of a trial as many as it has
                runs /= config.seeds
            evaluated = len(
                evaluations(config.eval_every, config.rounds, config.rounds)
            )
            each = setup + config.rounds * round + evaluated * again
            seconds += runs * each
        measured = (compiling, round, again, setup, seconds)
        yield Measured(cell.name, len(numbers), *measured)


def _compiled(plan: Plan, numbers: Sequence[int]) -> int:
    """How many programs cells of one program have with those of their trials."""
    found = set()
    for cell in (plan.cells[i] for i in numbers):
        values = to_dict(cell.config)
        for point in tried(cell.tune):
            config = cell.config
            if point:
                config = from_dict(trial_of(values, point, plan.tune_seeds))
            found.add(algorithm_key(config, rounds_per_call(config)))
    return len(found)


def _rounds(experiment: Experiment) -> list[float]:
    """Seconds of the first two rounds, which compile, and of ``ROUNDS`` more."""
    algorithm, federation = experiment.algorithm, experiment.federation_at(0)
    state = jax.jit(algorithm.init)(experiment.key, experiment.federation)
    jax.block_until_ready(state)
    seconds = []
    for _ in range(2 + ROUNDS):
        begun = time.perf_counter()
        state, infos = algorithm.run(state, federation, np.int32(1))
        jax.block_until_ready((state, infos))
        seconds.append(time.perf_counter() - begun)
    # A state that comes out laid out otherwise than it went in compiles once more.
    return [seconds[0] + seconds[1], *seconds[2:]]


def _evaluation(experiment: Experiment) -> float:
    """Seconds of an evaluation of the initial model."""
    state = jax.jit(experiment.algorithm.init)(experiment.key, experiment.federation)
    jax.block_until_ready(state)
    begun = time.perf_counter()
    if experiment.config.map_seeds:
        for i in range(experiment.config.seeds):
            measure(experiment, one_seed(state, i))
    else:
        measure(experiment, state)
    return time.perf_counter() - begun
