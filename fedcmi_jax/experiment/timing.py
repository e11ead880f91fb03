"""Timing compiled programs: warm, interleaved, medians and spreads."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.federation import Federation
from fedcmi_jax.types import Batch, Model

PEAK_SIDE = 2048
"""Side of the square matrices whose product is the yardstick of FLOP/s."""
PEAK_FLOP = 2.0 * PEAK_SIDE**3
"""FLOP of that product."""


class Timed(NamedTuple):
    """A compiled round that can be run again and again.

    Attributes:
      round: Runs one round; its seconds.
      compile_seconds: Tracing, lowering and compiling.
      temp_bytes: The program's temporary memory; None where XLA does not say.
    """

    round: Callable[[], float]
    compile_seconds: float
    temp_bytes: int | None


def compile_round(
    algorithm: FederatedAlgorithm, federation: Federation, key: jax.Array
) -> Timed:
    """Compiles one round and runs it once, so that later ones are warm."""
    state = jax.jit(algorithm.init)(key, federation)
    one = np.int32(1)
    begun = time.perf_counter()
    program = algorithm.run.lower(state, federation, one).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - begun
    memory = program.memory_analysis()
    held = [state]

    def round() -> float:
        begun = time.perf_counter()
        held[0], info = program(held[0], federation, one)
        jax.block_until_ready((held[0], info))
        return time.perf_counter() - begun

    round()
    temp = getattr(memory, "temp_size_in_bytes", None)
    return Timed(round, compile_seconds, temp)


def interleaved(
    rounds: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every entry, A B A B, so that a slow minute hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name, round in rounds.items():
            seconds[name].append(round())
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Median and extremes of ours / theirs, pair by pair."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def timed(function: Callable[..., Any], *args: jax.Array) -> Callable[[], float]:
    """Runs a function once, so that it is warm; what runs it again, its seconds."""
    jax.block_until_ready(function(*args))

    def run() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(function(*args))
        return time.perf_counter() - begun

    return run


def matmul() -> Callable[[], float]:
    """Runs a large float32 matrix product of ``PEAK_FLOP`` on one device; seconds."""
    a = jnp.ones((PEAK_SIDE, PEAK_SIDE))
    return timed(jax.jit(lambda a: a @ a), a)


def matmul_peak() -> float:
    """FLOP/s of that product, by the median of five."""
    product = matmul()
    return PEAK_FLOP / statistics.median(product() for _ in range(5))


def training_flops(model: Model, federation: Federation, epochs: int) -> float:
    """FLOP of training all clients once, padding and teacher left out.

    XLA's count of one sample's forward and backward pass, times samples and epochs.
    """
    samples = 4
    batch = Batch(
        jax.tree.map(
            lambda x: jnp.zeros((samples, *x.shape[1:]), x.dtype), federation.inputs
        ),
        labels=jnp.zeros(samples, jnp.int32),
        valid=jnp.ones(samples),
        available=jnp.ones((samples, len(federation.modalities))),
        positions=jnp.arange(samples),
        key=jax.random.key(0),
    )

    def loss(params, stats):
        outputs, _ = model.apply(params, stats, batch, True)
        return sum((x**2).sum() for x in jax.tree.leaves(outputs))

    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    cost: Any = jax.jit(jax.grad(loss)).lower(params, stats).cost_analysis()
    per_sample = cost["flops"] / samples
    return per_sample * float(federation.sizes.sum()) * epochs


def peak_rss() -> int:
    """Peak resident memory of this process in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
