"""Resident against streamed samples, with and without prefetching, seconds per round.

    python experiments/streaming_study.py
    python experiments/streaming_study.py --latency=0.3

Random samples of two modalities in memory-mapped files, FedAvg, 100 clients of equal
size, 5 a round. --latency adds what a slow disk or network takes for each cohort.
Prints a table; the first round of each way, which compiles, is left out.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import fedcmi_jax as fc
from fedcmi_jax import streaming

CLIENTS, COHORT, CLASSES = 100, 5, 10
SEED = 0
WRITTEN_AT_ONCE = 256
"""Rows of a file written at a time."""


class Way(NamedTuple):
    """A way to feed the rounds.

    Attributes:
      federation_at: Round -> federation.
      report: What a stream did; {} without one.
    """

    federation_at: Callable[[int], fc.Federation]
    report: Callable[[], dict]


def write(path: pathlib.Path, samples: int, features: int) -> np.ndarray:
    """Random rows in a new .npy file, memory-mapped for reading."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (samples, features))
    for start in range(0, samples, WRITTEN_AT_ONCE):
        rows = file[start : start + WRITTEN_AT_ONCE]
        rows[:] = rng.standard_normal(rows.shape, np.float32)
    file.flush()
    return np.load(path, mmap_mode="r")


def resident(data: fc.data.Dataset, parts: fc.partition.Partition) -> Way:
    """All samples on the device."""
    federation = fc.build_federation(data, parts)
    return Way(lambda round: federation, dict)


class SlowStream(streaming.CohortStream):
    """A stream whose storage takes ``latency`` seconds more for every cohort."""

    latency = 0.0

    def _prepare(self, ids: np.ndarray) -> tuple[fc.Federation, float]:
        time.sleep(self.latency)
        federation, seconds = super()._prepare(ids)
        return federation, self.latency + seconds


def streamed(
    data: fc.data.Dataset,
    parts: fc.partition.Partition,
    *,
    prefetch: bool,
    latency: float,
) -> Way:
    """The cohort's samples on the device."""
    skeleton = streaming.build_skeleton(data, parts)
    key = jax.random.key(SEED)
    stream = SlowStream(data, parts, skeleton, key, COHORT, prefetch=prefetch)
    stream.latency = latency
    return Way(stream.federation, stream.report)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=60, help="of each client")
    parser.add_argument("--features", type=int, default=49_152, help="128 x 128 x 3")
    parser.add_argument("--rounds", type=int, default=15, help="that are measured")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.0, help="of storage, s")
    parser.add_argument("--folder", help="where the files go; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        n = CLIENTS * args.samples
        names = ("one", "two")
        inputs = {
            m: write(pathlib.Path(folder, f"{m}.npy"), n, args.features) for m in names
        }
        labels = np.random.default_rng(1).integers(0, CLASSES, n, np.int32)
        split = fc.data.Split(inputs, labels)
        data = fc.data.Dataset("random", names, tuple("0123456789"), split, split)
        parts = fc.partition.iid(split, CLIENTS, np.random.default_rng(2))
        encoders = {m: fc.models.mlp(features=32, hidden=(32,)) for m in names}
        model = fc.models.classifier(encoders, data.shapes, CLASSES)
        local = fc.LocalTraining(args.epochs, 20, 0.01)
        algorithm = fc.build_algorithm(
            fc.methods.fedavg(), model, clients_per_round=COHORT, local=local
        )
        size = sum(x.nbytes for x in inputs.values()) / 1e6
        print(f"{size:,.0f} MB of samples; {jax.default_backend()}")
        print("| way | s per round (min-max) | samples on device | hidden |")
        print("|---|---|---|---|")
        slow = functools.partial(streamed, latency=args.latency)
        ways = {
            "resident": resident,
            "streamed": functools.partial(slow, prefetch=False),
            "streamed, prefetched": functools.partial(slow, prefetch=True),
        }
        for name, make in ways.items():
            way = make(data, parts)
            cells = [name, *measured(algorithm, way, args.rounds)]
            print(f"| {' | '.join(cells)} |", flush=True)


def measured(
    algorithm: fc.FederatedAlgorithm, way: Way, rounds: int
) -> tuple[str, str, str]:
    """The cells of a row: seconds, samples on the device, what was hidden."""
    state, seconds, size = None, [], 0
    for round in range(rounds + 1):  # the first one compiles
        begun = time.perf_counter()
        federation = way.federation_at(round)
        if state is None:
            state = jax.jit(algorithm.init)(jax.random.key(SEED), federation)
            size = sum(x.nbytes for x in federation.inputs.values())
        state, info = algorithm.run(state, federation, np.int32(1))
        jax.block_until_ready((state, info))
        seconds.append(time.perf_counter() - begun)
    middle, least, most = (f(seconds[1:]) for f in (statistics.median, min, max))
    report, hidden = way.report(), "-"
    if report:
        share = max(0.0, 1 - report["wait_seconds"] / report["prepare_seconds"])
        hidden = f"{100 * share:.0f} % of {report['prepare_seconds']:.2f} s"
    return f"{middle:.3f} ({least:.3f}-{most:.3f})", f"{size / 1e6:,.0f} MB", hidden


if __name__ == "__main__":
    main()
