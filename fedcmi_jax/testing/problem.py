"""A small federation: five clients, two modalities, one sample and no modality too."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax import data, models, partition
from fedcmi_jax.algorithm import FederatedAlgorithm, build_algorithm
from fedcmi_jax.assembly import build_federation
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods import Method
from fedcmi_jax.types import Array, FederationState, Model, PyTree, RoundInfo

MODALITIES = ("zeta", "alpha")
"""Not in alphabetical order, so that a mix-up shows."""

NUM_CLASSES = 4

SIZES = (9, 5, 12, 7, 1)
"""Samples of each client."""

AVAILABLE = ((1, 1), (1, 0), (1, 1), (0, 1), (1, 1))
"""Who has which modality."""

FEATURES = 6

FAST_COMPILE = {"xla_backend_optimization_level": 0}
"""For programs whose bits nobody compares with shipped ones: 30 % less to compile."""


@functools.cache
def dataset(modalities: tuple[str, ...] = MODALITIES, seed: int = 0) -> data.Dataset:
    """Strong, weak and (if there is a third) middling modality."""
    return data.load(
        "synthetic",
        modalities=modalities,
        strengths=(3.0, 1.0, 2.0)[: len(modalities)],
        num_classes=NUM_CLASSES,
        features=FEATURES,
        train_samples=sum(SIZES),
        test_samples=40,
        seed=seed,
    )


def parts() -> partition.Partition:
    """Samples in stored order, ``SIZES`` of them each."""
    return partition.Partition(np.arange(sum(SIZES)), np.array(SIZES))


def federation(
    available: Any = AVAILABLE,
    modalities: tuple[str, ...] = MODALITIES,
    present: np.ndarray | None = None,
    **options: Any,
) -> Federation:
    """The federation, with another table of modalities or of samples' modalities."""
    made = dataset(modalities)
    made = made._replace(train=made.train._replace(available=present))
    return build_federation(made, parts(), np.array(available, bool), **options)


def model(
    kind: str = "two_projector",
    modalities: tuple[str, ...] = MODALITIES,
    fusion: str = "concat",
    **options: Any,
) -> Model:
    """A model of a few hundred weights."""
    shapes = dataset(modalities).shapes
    encoders = {m: models.mlp(features=8) for m in modalities}
    if kind == "two_projector":
        options = {"width": 8} | options
    build = getattr(models, kind)
    return build(encoders, shapes, NUM_CLASSES, fusion=fusion, **options)


def algorithm(
    method: Method, model_: Model | None = None, **options: Any
) -> FederatedAlgorithm:
    """Two local epochs in batches of 4; everybody takes part by default."""
    local = LocalTraining(epochs=2, batch_size=4, learning_rate=0.1)
    defaults: dict[str, Any] = {"clients_per_round": len(SIZES), "local": local}
    return build_algorithm(method, model_ or model(), **(defaults | options))


@functools.cache
def compiled(problem: FederatedAlgorithm) -> Any:
    """Its round as a program."""
    return jax.jit(problem.round, compiler_options=FAST_COMPILE)


def rounds(
    problem: FederatedAlgorithm,
    federation: Federation,
    num_rounds: int = 2,
    seed: int = 0,
    step: Any = None,
) -> tuple[FederationState, RoundInfo]:
    """The state after some rounds by ``step`` (None: compiled fast), the last info."""
    step = step or compiled(problem)
    # Not compiled as a whole: two methods' programs may round the weights differently.
    state = problem.init(jax.random.key(seed), federation)
    info: Any = None
    for _ in range(num_rounds):
        state, info = step(state, federation)
    return state, info


def poison(federation: Federation, client: int) -> Federation:
    """The federation with one client whose inputs are not numbers."""
    start = int(federation.offsets[client])
    stop = start + int(federation.sizes[client])
    inputs = {m: x.at[start:stop].set(jnp.nan) for m, x in federation.inputs.items()}
    return dataclasses.replace(federation, inputs=inputs)


def plain(tree: PyTree) -> PyTree:
    """PRNG keys as their data, so that trees can be compared."""

    def content(x: Array) -> Array:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(content, tree)


def assert_equal(a: PyTree, b: PyTree) -> None:
    """Bit for bit."""
    chex.assert_trees_all_equal(plain(a), plain(b))


def assert_close(a: PyTree, b: PyTree, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Up to float32's rounding in another order of summation."""
    chex.assert_trees_all_close(plain(a), plain(b), rtol=rtol, atol=atol)


def all_equal(a: PyTree, b: PyTree) -> bool:
    """Whether all leaves are."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool((x == y).all()) for x, y in pairs)
