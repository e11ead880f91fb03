"""Seconds per client of a compiled round, FedAvg and FedCMI, by chunk size.

    python experiments/round_time.py

Workload mlp: 1,000 clients of 32 samples (32 features, 64 hidden, 10 classes), one
epoch, batch 32. Workload convnet: clients of 256 samples, 28x28 gray and colour, the
CG-MNIST convnets with 512-wide projectors, two epochs, batch 64. Everybody takes part.
Compiled program only, warm; candidates are interleaved; medians of the repetitions.
"""

import statistics
import time

import jax
import numpy as np

import fedcmi_jax as fc

REPETITIONS = 5


def images(num_clients: int, size: int) -> fc.data.Dataset:
    """Random images of the CG-MNIST shapes."""
    rng = np.random.default_rng(0)
    n = num_clients * size

    def split(n: int) -> fc.data.Split:
        shapes = {"gray": (n, 28, 28, 1), "color": (n, 28, 28, 3)}
        inputs = {m: rng.random(s, np.float32) for m, s in shapes.items()}
        return fc.data.Split(inputs, rng.integers(0, 10, n).astype(np.int32))

    names = tuple("0123456789")
    return fc.data.Dataset("images", ("gray", "color"), names, split(n), split(16))


def workloads() -> dict:
    """Name -> (data set, encoder, width, local training, clients, chunk sizes)."""
    mlp_data = fc.data.load("synthetic", train_samples=32_000, test_samples=16)
    return {
        "mlp": (
            mlp_data,
            lambda: fc.models.mlp(features=64),
            64,
            fc.LocalTraining(epochs=1, batch_size=32),
            1000,
            (1, 20, 100),
        ),
        "convnet": (
            images(4, 256),
            lambda: fc.models.convnet(features=512),
            512,
            fc.LocalTraining(epochs=2, batch_size=64),
            4,
            (1, 4),
        ),
    }


def timed(step, state, federation) -> float:
    """Seconds of one round."""
    begun = time.perf_counter()
    jax.block_until_ready(step(state, federation))
    return time.perf_counter() - begun


def main() -> None:
    """Prints a table."""
    print(f"jax {jax.__version__}, {jax.devices()}")
    print("| workload | method | chunk | ms per client | over FedAvg |")
    print("|---|---|---|---|---|")
    for name, (data, encoder, width, local, clients, chunks) in workloads().items():
        parts = fc.partition.iid(data.train, clients, np.random.default_rng(0))
        federation = fc.build_federation(data, parts)
        encoders = {m: encoder() for m in data.modalities}
        models = {
            "fedavg": fc.models.classifier(encoders, data.shapes, 10),
            "fedcmi": fc.models.two_projector(encoders, data.shapes, 10, width=width),
        }
        candidates = {}
        for method, model in models.items():
            for chunk in chunks:
                algorithm = fc.build_algorithm(
                    fc.methods.REGISTRY[method](),
                    model,
                    clients_per_round=clients,
                    local=local,
                    chunk_size=chunk,
                )
                state = algorithm.init(jax.random.key(0), federation)
                step = jax.jit(algorithm.round)
                timed(step, state, federation)
                candidates[method, chunk] = (step, state)
        times: dict = {key: [] for key in candidates}
        for _ in range(REPETITIONS):
            for key, (step, state) in candidates.items():
                times[key].append(timed(step, state, federation))
        medians = {key: statistics.median(t) for key, t in times.items()}
        for (method, chunk), median in medians.items():
            ratio = median / medians["fedavg", chunk]
            ms = 1e3 * median / clients
            print(f"| {name} | {method} | {chunk} | {ms:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
