"""``chunk_size=auto``: a few candidates, timed on the compiled program itself."""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.hosts import agree, is_main
from fedcmi_jax.federation import Federation

RECORD = "chunk_size.json"
"""The choice, in the run folder: a resumed run does not measure again."""

CANDIDATES = {"cpu": (1, 20, 100)}
"""Backend -> chunk sizes to try: on CPU big clients want 1, small ones 20 to 100."""
ACCELERATOR_CANDIDATES = (16, 128, 1024)
"""To fill an accelerator's memory; none was at hand to narrow them."""
REPETITIONS = 2


class Choice(NamedTuple):
    """What was measured.

    Attributes:
      chunk_size: The fastest.
      seconds: Candidate -> seconds of a round, those that did not fit left out.
    """

    chunk_size: int
    seconds: dict[int, float]


def candidates(cohort: int, mesh: Mesh | None) -> list[int]:
    """Chunk sizes worth trying, none above a device's share of the cohort.

    Args:
      cohort: K.
      mesh: Devices that share it; None: one.

    Example:
      >>> candidates(5, None)[-1] <= 5
      True
    """
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
    share = -(-cohort // (mesh.size if mesh else 1))
    sizes = CANDIDATES.get(platform, ACCELERATOR_CANDIDATES)
    return sorted({min(size, share) for size in sizes})


def measure(
    build: Callable[[int], FederatedAlgorithm],
    federation: Federation,
    key: jax.Array,
    sizes: list[int],
) -> Choice:
    """Times one round of the compiled program per candidate.

    Args:
      build: Chunk size -> algorithm.
      federation: What to train on.
      key: For the state; it is thrown away.
      sizes: Candidates.

    Returns:
      The choice; a candidate that does not fit the memory is left out.

    Raises:
      ValueError: None fits.
    """
    seconds: dict[int, float] = {}
    for size in sizes:
        algorithm = build(size)
        try:
            state = jax.jit(algorithm.init)(key, federation)
            times = []
            for _ in range(REPETITIONS + 1):  # the first one compiles
                begun = time.perf_counter()
                state, info = algorithm.run(state, federation, np.int32(1))
                jax.block_until_ready((state, info))
                times.append(time.perf_counter() - begun)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        seconds[size] = statistics.median(times[1:])
    if not seconds:
        raise ValueError(f"chunk_size: none of {sizes} fits the memory; give 1")
    fastest = min(seconds, key=lambda size: seconds[size])
    return Choice(int(agree(np.int32(fastest))), seconds)


def choose(
    folder: pathlib.Path,
    build: Callable[[int], FederatedAlgorithm],
    federation: Federation,
    key: jax.Array,
    sizes: list[int],
) -> tuple[int, str]:
    """The chunk size of a run: the recorded one, else the fastest, which is recorded.

    Returns:
      The size and a line for the user.

    Raises:
      ValueError: The record is damaged.
    """
    path = folder / RECORD
    recorded = _recorded(path) if is_main() and path.exists() else 0
    recorded = int(agree(np.int32(recorded)))
    if recorded:
        return recorded, f"chunk size {recorded} (chosen when the run began)"
    choice = measure(build, federation, key, sizes)
    if is_main():
        record: dict[str, Any] = {
            "chunk_size": choice.chunk_size,
            "seconds_per_round": {str(k): v for k, v in choice.seconds.items()},
            "backend": jax.default_backend(),
            "devices": jax.device_count(),
        }
        write_json(path, record)
    times = ", ".join(f"{k}: {1e3 * v:.3g} ms" for k, v in choice.seconds.items())
    return choice.chunk_size, f"chunk size {choice.chunk_size} (round times {times})"


def tuned(
    experiment: Experiment, folder: pathlib.Path, note: Callable[[str], None]
) -> Experiment:
    """The experiment with its chunk size settled, ``chunk_size="auto"`` or not.

    Args:
      experiment: Any.
      folder: The run's folder, where a choice is recorded.
      note: Receives the choice.

    Raises:
      ValueError: The record is damaged, or no size fits the memory.
    """
    mesh, config = experiment.mesh, experiment.config
    if config.chunk_size != "auto":
        return experiment
    sizes = candidates(config.clients_per_round, mesh)
    size, line = choose(
        folder,
        experiment.with_chunk_size,
        experiment.federation_at(0),
        experiment.key,
        sizes,
    )
    note(line)
    return experiment._replace(algorithm=experiment.with_chunk_size(size))


def _recorded(path: pathlib.Path) -> int:
    values = read_json(path)
    size = values.get("chunk_size") if isinstance(values, dict) else None
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{path}: holds no chunk size; delete it to measure again")
    return size
