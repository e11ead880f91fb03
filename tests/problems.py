"""Small federated problems that many tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import fedcmi_jax as fc

MODALITIES = ("zeta", "alpha")  # not in alphabetical order, on purpose
NUM_CLASSES = 4
SIZES = (9, 5, 12, 7, 1)
AVAILABLE = ((1, 1), (1, 0), (1, 1), (0, 1), (1, 1))
FEATURES = 6


@functools.cache
def dataset(modalities=MODALITIES, seed=0) -> fc.data.Dataset:
    return fc.data.load(
        "synthetic",
        modalities=modalities,
        strengths=(3.0, 1.0, 2.0)[: len(modalities)],
        num_classes=NUM_CLASSES,
        features=FEATURES,
        train_samples=sum(SIZES),
        test_samples=40,
        seed=seed,
    )


def parts():
    return fc.partition.Partition(np.arange(sum(SIZES)), np.array(SIZES))


def federation(available=AVAILABLE, modalities=MODALITIES, present=None, **options):
    data = dataset(modalities)
    data = data._replace(train=data.train._replace(available=present))
    return fc.build_federation(data, parts(), np.array(available, bool), **options)


def model(kind="two_projector", modalities=MODALITIES, fusion="concat", **options):
    data = dataset(modalities)
    encoders = {m: fc.models.mlp(features=8) for m in modalities}
    build = getattr(fc.models, kind)
    if kind == "two_projector":
        options = {"width": 8} | options
    return build(encoders, data.shapes, NUM_CLASSES, fusion=fusion, **options)


@functools.cache
def shared_algorithm(method, **options):
    """One algorithm per method and options, so that its programs compile once."""
    return algorithm(method, **options)


@functools.cache
def compiled(problem):
    return jax.jit(problem.round)


def algorithm(method, model_=None, **options):
    local = fc.LocalTraining(epochs=2, batch_size=4, learning_rate=0.1)
    defaults = {"clients_per_round": len(SIZES), "local": local}
    return fc.build_algorithm(method, model_ or model(), **(defaults | options))


def rounds(algorithm, federation, num_rounds=2, seed=0, jit=True):
    """Final state and the last round's info."""
    state = algorithm.init(jax.random.key(seed), federation)
    step = compiled(algorithm) if jit else algorithm.round
    info = None
    for _ in range(num_rounds):
        state, info = step(state, federation)
    return state, info


def poison(federation, client: int):
    """The federation with one client whose inputs are not numbers."""
    start = int(federation.offsets[client])
    stop = start + int(federation.sizes[client])
    inputs = {m: x.at[start:stop].set(jnp.nan) for m, x in federation.inputs.items()}
    return dataclasses.replace(federation, inputs=inputs)


def plain(tree):
    """PRNG keys as their data, so that trees can be compared."""

    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(data, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(close, plain(a), plain(b))
