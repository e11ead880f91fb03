"""The small federation of all exactness tests, and both sides' rounds on it."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np

import fedcmi_jax as fc
from fedcmi_jax.testing.problem import FAST_COMPILE
from tests.exactness.reference import MODALITIES, FedAvg

TOLERANCE = 1e-5
CLEARLY = 100 * TOLERANCE
"""What an option changes at least, if the problem exercises it."""
ROUNDS = 3
NUM_CLASSES = 3
WIDTHS = {"a": 4, "v": 3}
COHORT = 4
SEED = 6
"""Cohorts 0 1 3 5, 0 1 2 3, 0 3 4 5: new clients and old ones, each kind twice."""


class Scene(NamedTuple):
    """Clients: their sizes, modalities, and the noise of either modality's samples."""

    sizes: tuple[int, ...]
    has: tuple[tuple[int, int], ...]
    noise_a: tuple[float, ...]
    noise_v: tuple[float, ...]


MIXED = Scene(
    sizes=(7, 5, 10, 3, 8, 6),
    has=((1, 1), (1, 0), (1, 1), (0, 1), (1, 1), (1, 1)),
    noise_a=(0.5, 0.7, 2.0, 0.7, 0.6, 2.0),
    noise_v=(2.0, 0.7, 0.5, 0.7, 2.0, 0.7),
)
"""Clients of all three kinds; either modality is the better one at some of them."""


@functools.cache
def dataset(scene: Scene) -> fc.data.Dataset:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, NUM_CLASSES, sum(scene.sizes))
    owner = np.repeat(np.arange(len(scene.sizes)), scene.sizes)
    labels[(owner == 4) & (labels == 2)] = 0  # a client without one of the classes
    inputs = {}
    for m, noise in (("a", scene.noise_a), ("v", scene.noise_v)):
        centres = rng.normal(size=(NUM_CLASSES, WIDTHS[m]))
        around = rng.normal(size=(len(labels), WIDTHS[m]))
        x = centres[labels] + around * np.take(noise, owner)[:, None]
        inputs[m] = x.astype(np.float32)
    split = fc.data.Split(inputs, labels.astype(np.int32))
    names = tuple(str(c) for c in range(NUM_CLASSES))
    return fc.data.Dataset("exactness", MODALITIES, names, split, split)


def federation(scene: Scene) -> fc.Federation:
    parts = fc.partition.Partition(np.arange(sum(scene.sizes)), np.array(scene.sizes))
    return fc.build_federation(dataset(scene), parts, np.array(scene.has, bool))


def clients(scene: Scene) -> list[SimpleNamespace]:
    """The same samples as the references read them."""
    train, ends = dataset(scene).train, np.cumsum(scene.sizes)
    return [
        SimpleNamespace(
            x={m: train.inputs[m][end - n : end].astype(float) for m in MODALITIES},
            y=train.labels[end - n : end],
            has=dict(zip(MODALITIES, row, strict=True)),
        )
        for end, n, row in zip(ends, scene.sizes, scene.has, strict=True)
    ]


@functools.cache
def model(kind: str) -> fc.Model:
    encoders = {m: fc.models.mlp(features=4) for m in MODALITIES}
    shapes = {m: (width,) for m, width in WIDTHS.items()}
    options = {"width": 3} if kind == "two_projector" else {}
    return getattr(fc.models, kind)(encoders, shapes, NUM_CLASSES, **options)


def flat(params) -> dict[str, np.ndarray]:
    """``{"encoder/a/dense0/kernel": array, ...}``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


def build(method, momentum=0.9, clients_per_round=COHORT, **options):
    """The package's algorithm; momentum may be traced."""
    local = fc.LocalTraining(
        epochs=FedAvg.epochs,
        batch_size=FedAvg.batch_size,
        learning_rate=FedAvg.lr,
        optimizer=fc.torch_sgd(momentum=momentum, weight_decay=FedAvg.weight_decay),
        shuffle=False,
    )
    kind = "two_projector" if method.needs_projectors else "classifier"
    return fc.build_algorithm(
        method,
        model(kind),
        clients_per_round=clients_per_round,
        local=local,
        **options,
    )


class Problem:
    """One compiled round of a method, for any values of its numeric options.

    Args:
      method: Factory of the package's method.
      static: Its options that are no numbers, or that it wants to look at.
      server: Numeric options -> server optimizer; they are not the method's then.
      scene: The clients.
      options: Of ``build``.
    """

    def __init__(self, method, static=None, server=None, scene=MIXED, **options):
        static = static or {}

        def algorithm(momentum, numbers):
            if server is None:
                return build(method(**static, **numbers), momentum, **options)
            optimizer = server(**numbers)
            return build(
                method(**static), momentum, server_optimizer=optimizer, **options
            )

        self.algorithm, self.static = algorithm, static
        self.scene, self.federation = scene, federation(scene)
        self.step = jax.jit(
            lambda state, momentum, numbers: algorithm(momentum, numbers).round(
                state, self.federation
            ),
            compiler_options=FAST_COMPILE,
        )

    def start(self, reference, momentum=0.9, seed=SEED, **numbers):
        """Both sides before the first round: the package's state, the reference."""
        algorithm = self.algorithm(momentum, numbers)
        state = algorithm.init(jax.random.key(seed), self.federation)
        theirs = reference(
            clients(self.scene),
            flat(state.params),
            NUM_CLASSES,
            momentum=momentum,
            **self.static,
            **numbers,
        )
        return state, theirs

    def rounds(self, reference, momentum=0.9, seed=SEED, cohort=None, **numbers):
        """Yields (state, info, reference) after each round of both, compared.

        Args:
          reference: Class of the reference; takes all options by their names.
          momentum: Of the local SGD.
          seed: Of initial weights and cohorts.
          cohort: ``(info, reference) -> cohort`` of the reference's round; None: the
            ids.
          numbers: Numeric options.
        """
        state, theirs = self.start(reference, momentum, seed, **numbers)
        for t in range(ROUNDS):
            state, info = self.step(state, momentum, numbers)
            assert bool(info.accepted.all())
            chosen = cohort(info, theirs) if cohort else info.cohort.tolist()
            theirs.round(chosen)
            assert_close(state.params, theirs.params, f"round {t}")
            yield state, info, theirs

    def run(self, reference, **options):
        """The last state and the reference after all rounds."""
        *_, (state, _, theirs) = self.rounds(reference, **options)
        return state, theirs


def apart(ours, theirs) -> float:
    """Largest difference of two flat parameter dicts."""
    assert ours.keys() == theirs.keys()
    return max(np.abs(ours[k] - w).max() for k, w in theirs.items())


def assert_close(ours, theirs, what=""):
    """Within the tolerance; ours a tree, theirs flat."""
    difference = apart(flat(ours), theirs)
    assert difference <= TOLERANCE, f"{what}: off by {difference:.1e}"
