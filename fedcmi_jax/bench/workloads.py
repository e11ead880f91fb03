"""The benchmark's workloads: random data of a fixed shape, dealt to clients."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax import data, methods, models
from fedcmi_jax.assembly import build_federation
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods import Method
from fedcmi_jax.partition import Partition
from fedcmi_jax.types import Model

NUM_CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """What every client does.

    Attributes:
      description: One line.
      encoder: Registry name of the encoder of every modality.
      make_encoder: The encoder.
      shapes: Modality -> shape of one sample.
      sizes: ``clients -> samples of each``.
      width: Projector width D.
      epochs: Local epochs.
      batch_size: B.
      clients: Client counts to run.
      chunk_size: Clients mapped together (on CPU; measured, see docs/speed.md).
    """

    description: str
    encoder: str
    make_encoder: Callable[[], Any]
    shapes: dict[str, tuple[int, ...]]
    sizes: Callable[[int], np.ndarray]
    width: int
    epochs: int
    batch_size: int
    clients: tuple[int, ...]
    chunk_size: int

    def local(self, shuffle: bool = True) -> LocalTraining:
        """How a client trains."""
        return LocalTraining(self.epochs, self.batch_size, 0.01, shuffle=shuffle)

    def federation(self, clients: int) -> Federation:
        """Random samples, dealt to that many clients."""
        rng = np.random.default_rng(0)
        sizes = self.sizes(clients)
        n = int(sizes.sum())

        def split(n: int) -> data.Split:
            inputs = {
                m: rng.standard_normal((n, *shape), np.float32)
                for m, shape in self.shapes.items()
            }
            return data.Split(inputs, rng.integers(0, NUM_CLASSES, n, np.int32))

        names = tuple(str(c) for c in range(NUM_CLASSES))
        dataset = data.Dataset("random", tuple(self.shapes), names, split(n), split(1))
        return build_federation(dataset, Partition(np.arange(n), sizes))

    def shapes_of(self, clients: int) -> Federation:
        """The same with the shapes of its arrays in their place: for compiling only."""
        sizes = self.sizes(clients)
        n, modalities = int(sizes.sum()), tuple(self.shapes)

        def zeros() -> Federation:
            nothing = jnp.zeros(clients, jnp.int32)
            return Federation(
                inputs={m: jnp.zeros((n, *shape)) for m, shape in self.shapes.items()},
                labels=jnp.zeros(n, jnp.int32),
                offsets=nothing,
                sizes=nothing,
                probe_sizes=nothing,
                available=jnp.zeros((clients, len(modalities))),
                max_size=int(sizes.max()),
                modalities=modalities,
            )

        return jax.eval_shape(zeros)

    def model(self, architecture: str) -> Model:
        """``classifier`` or ``two_projector``."""
        encoders = {m: self.make_encoder() for m in self.shapes}
        if architecture == "classifier":
            return models.classifier(encoders, self.shapes, NUM_CLASSES)
        return models.two_projector(
            encoders, self.shapes, NUM_CLASSES, width=self.width
        )


def equal(size: int) -> Callable[[int], np.ndarray]:
    """Every client has the same number of samples."""
    return lambda clients: np.full(clients, size)


def lognormal(clients: int) -> np.ndarray:
    """Sizes exp(N(3, 1.3^2)), at least 1: the longest is many times the mean."""
    draws = np.random.default_rng(0).lognormal(3.0, 1.3, clients)
    return np.maximum(draws.astype(int), 1)


def padding_ratio(sizes: np.ndarray) -> float:
    """Longest over mean: the waste of padding everybody to the maximum."""
    return float(sizes.max() / sizes.mean())


def padded_to_longest(federation: Federation) -> Federation:
    """The same work with every client's loops as long as the longest client's.

    The missing samples are declared as held out: they are walked over, masked.
    """
    total = federation.sizes + federation.probe_sizes
    return dataclasses.replace(
        federation, probe_sizes=jnp.max(total) - federation.sizes
    )


@dataclass(frozen=True)
class Entry:
    """A method on a model.

    Attributes:
      method: Its record.
      architecture: Its model.
    """

    method: Method
    architecture: str


def entries(names: tuple[str, ...]) -> dict[str, Entry]:
    """Label -> entry, on the model it needs; FedAvg runs on both models."""
    found: dict[str, Entry] = {}
    for name in names:
        method = methods.REGISTRY[name](**STEADY.get(name, {}))
        kind = "two_projector" if method.needs_projectors else "classifier"
        found[name] = Entry(method, kind)
        if name == "fedavg":
            found[REFERENCES["two_projector"]] = Entry(method, "two_projector")
    return found


REFERENCES = {"classifier": "fedavg", "two_projector": "fedavg (two_projector)"}
"""Model -> label of FedAvg on it, which methods are compared with."""

STEADY: dict[str, dict[str, Any]] = {
    "fedcmi": {"warmup_rounds": 0},
    "fedproto": {"first_round": 0},
    "power_of_choice": {"candidates": 10**9},  # cut to everybody
}
"""Options with which every round costs the same, and everybody can take part."""


WORKLOADS: dict[str, Workload] = {
    "mlp": Workload(
        "32 samples of 2 x 32 features, 64 hidden, one epoch",
        encoder="mlp",
        make_encoder=lambda: models.mlp(features=64),
        shapes={"strong": (32,), "weak": (32,)},
        sizes=equal(32),
        width=64,
        epochs=1,
        batch_size=32,
        clients=(100, 1_000, 10_000, 100_000),
        chunk_size=20,
    ),
    "convnet": Workload(
        "256 samples, gray and colour 28x28, CG-MNIST convnets, two epochs",
        encoder="convnet",
        make_encoder=lambda: models.convnet(features=512),
        shapes={"gray": (28, 28, 1), "color": (28, 28, 3)},
        sizes=equal(256),
        width=512,
        epochs=2,
        batch_size=64,
        clients=(4, 20, 100),
        chunk_size=1,
    ),
    "uneven": Workload(
        "lognormal sizes, 2 x 32 features, 64 hidden, one epoch",
        encoder="mlp",
        make_encoder=lambda: models.mlp(features=64),
        shapes={"strong": (32,), "weak": (32,)},
        sizes=lognormal,
        width=64,
        epochs=1,
        batch_size=8,
        clients=(256,),
        chunk_size=8,
    ),
    "resnet18": Workload(
        "64 samples, 257x299 spectrograms and 224x224 images, one epoch",
        encoder="resnet18",
        make_encoder=models.resnet18,
        shapes={"audio": (257, 299, 1), "visual": (224, 224, 3)},
        sizes=equal(64),
        width=512,
        epochs=1,
        batch_size=16,
        clients=(2,),
        chunk_size=1,
    ),
}
