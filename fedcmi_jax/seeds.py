"""Several seeds of one configuration in one compiled program.

The federations share data and partition (those of the configuration's seed) and differ
in initial weights, cohorts and batches. They are mapped (``vmap``), or run one after
the other inside the program, whichever a timed round shows to be faster.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.evaluation import summarise
from fedcmi_jax.experiment import Experiment
from fedcmi_jax.run_folder import MetricsLog, write_json
from fedcmi_jax.types import FederationState, PyTree

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"


def seed_keys(first: int, count: int) -> jax.Array:
    """[count] PRNG keys of the seeds first, first + 1...

    Raises:
      ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"seeds: {count} is below 1; give at least 1")
    return jnp.stack([jax.random.key(first + i) for i in range(count)])


def mapped(experiment: Experiment) -> Callable[..., FederationState]:
    """(states, rounds) -> states, all seeds at once; jitted, states donated."""

    def run(states: FederationState, rounds: jax.Array) -> FederationState:
        return jax.vmap(lambda s: _run(experiment, s, rounds))(states)

    return jax.jit(run, donate_argnums=0)


def in_turn(experiment: Experiment) -> Callable[..., FederationState]:
    """The same, one seed after the other in one program."""

    def run(states: FederationState, rounds: jax.Array) -> FederationState:
        return jax.lax.map(lambda s: _run(experiment, s, rounds), states)

    return jax.jit(run, donate_argnums=0)


def _run(experiment: Experiment, state: FederationState, rounds: jax.Array):
    return experiment.algorithm.run(state, experiment.federation, rounds)[0]


def faster(
    experiment: Experiment, keys: jax.Array
) -> tuple[Callable[..., FederationState], str]:
    """The faster of ``mapped`` and ``in_turn`` by one timed round, and a line on it."""
    count = len(keys)
    seconds = {}
    ways = {"mapped": mapped(experiment), "in turn": in_turn(experiment)}
    for name, run in ways.items():
        states = start(experiment, keys)
        states = jax.block_until_ready(run(states, np.int32(1)))
        begun = time.perf_counter()
        jax.block_until_ready(run(states, np.int32(1)))
        seconds[name] = time.perf_counter() - begun
    best = min(seconds, key=lambda name: seconds[name])
    gain = seconds["in turn"] / seconds["mapped"]
    verdict = "pays" if best == "mapped" else "does not pay"
    return ways[best], (
        f"{count} seeds in one program: mapping them {verdict} here "
        f"({gain:.2f} x the speed of one after the other)"
    )


def start(experiment: Experiment, keys: jax.Array) -> FederationState:
    """The first state of every seed, leaves [seeds, ...]."""
    init = experiment.algorithm.init
    return jax.jit(jax.vmap(lambda key: init(key, experiment.federation)))(keys)


def train_seeds(
    experiment: Experiment,
    count: int,
    folder: pathlib.Path,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains ``count`` seeds; metrics.jsonl has mean and deviation over them.

    There are no checkpoints: an interrupted run starts again.

    Args:
      experiment: On one device.
      count: Seeds, from the configuration's on.
      folder: The run's folder; must exist.
      say: Hears of progress.

    Returns:
      The summary, also written to summary.json.

    Raises:
      ValueError: count is below 1, or the experiment has several devices.
    """
    if experiment.mesh is not None:
        raise ValueError(
            "seeds: several seeds run on one device; give --devices=1 with --seeds"
        )
    config = experiment.config
    keys = seed_keys(config.seed, count)
    run, line = faster(experiment, keys)
    say(line)
    states = start(experiment, keys)
    log = MetricsLog(folder / METRICS)
    log.truncate_after(0)
    round, record = 0, {}
    while round < config.rounds:
        piece = min(config.eval_every, config.rounds - round)
        states = run(states, np.int32(piece))
        round += piece
        record = {"round": round, "seeds": count} | _evaluate(experiment, states, count)
        log.append(record)
        say(
            f"round {round}/{config.rounds}  acc {100 * record['acc']:.1f} "
            f"+- {100 * record['acc_std']:.1f} %"
        )
    summary = {"rounds": round, "seeds": count, "choice": line, "final": record}
    write_json(folder / SUMMARY, summary, null_non_finite=True)
    return summary


def _evaluate(
    experiment: Experiment, states: FederationState, count: int
) -> dict[str, Any]:
    """Mean and (population) standard deviation of every metric over the seeds."""

    def one(i: int) -> PyTree:
        state = jax.tree.map(lambda x: x[i], states)
        params = experiment.algorithm.deploy(state, experiment.federation)
        return summarise(experiment.evaluate(params, state.batch_stats, state.memory))

    rows = [one(i) for i in range(count)]
    result: dict[str, Any] = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        result[name] = values.mean(0).tolist()
        result[f"{name}_std"] = values.std(0).tolist()
    return result
