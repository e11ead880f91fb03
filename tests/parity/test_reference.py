"""Parity with the first author's PyTorch code, over every file found (design 7)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.methods._infiltration import class_probabilities
from tests.parity import reference as ref

FILES = ref.files()
SMALL = ("one_multimodal_client", "one_round_mixed_modalities")
"""A file of one client, and one of all kinds of clients with a reference of its own."""

PROBABILITY_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
BATCH_NORM_TOLERANCE = 1e-3


def params(quick):
    """The files, of which these are quick."""
    return [
        pytest.param(
            path, id=path.stem, marks=() if path.stem in quick else pytest.mark.slow
        )
        for path in FILES
    ]


@pytest.fixture(scope="module")
def reference(request) -> ref.Reference:
    return ref.load(request.param)


def tolerance(reference: ref.Reference) -> float:
    return BATCH_NORM_TOLERANCE if reference.config["conv"] else WEIGHT_TOLERANCE


def largest_difference(ours, theirs) -> float:
    """Over two trees of one structure."""
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), ours, theirs)
    return max(float(d) for d in jax.tree.leaves(differences))


def report(reference: ref.Reference, what: str, difference: float) -> None:
    """Shown by ``pytest tests/parity -s``."""
    print(f"\n| {reference.name} | {what} | {difference:.1e} |", end="")


def test_files_of_another_folder_are_added(tmp_path):
    own = ref.files(tmp_path / "absent")
    assert len(own) == 4
    for name in ("another.npz", own[0].name):
        (tmp_path / name).touch()
    assert set(ref.files(tmp_path)) == {*own, tmp_path / "another.npz"}


@pytest.mark.parametrize("reference", params(SMALL), indirect=True)
def test_class_probabilities(reference):
    worst = 0.0
    for i in range(reference.num_clients):
        if f"client{i}/P_a" not in reference.arrays:
            continue
        data, federation = ref.federation(reference, [i])
        model, _ = ref.algorithm(reference, data, 1)
        n = data.train.size
        batch = fc.Batch(
            inputs={m: jnp.asarray(x) for m, x in data.train.inputs.items()},
            labels=federation.labels,
            valid=jnp.ones(n),
            available=jnp.ones((n, 2)),
            positions=jnp.arange(n),
        )
        outputs, _ = model.apply(*reference.weights("init"), batch, False)
        logits = jnp.stack([outputs.self_logits[m] for m in ref.MODALITIES], axis=1)
        ours, _ = class_probabilities(
            logits, batch.labels, batch.valid, model.num_classes
        )
        theirs = np.stack([reference.client(i, f"P_{m}") for m in ref.MODALITIES])
        worst = max(worst, float(np.abs(ours - theirs).max()))
    report(reference, "class probabilities", worst)
    assert worst < PROBABILITY_TOLERANCE


@pytest.mark.parametrize("reference", params(SMALL[1:]), indirect=True)
def test_trained_clients(reference):
    """A federation of one client: its trained weights are the new global ones."""
    data, everybody = ref.federation(reference, list(range(reference.num_clients)))
    _, algorithm = ref.algorithm(reference, data, 1)
    step = jax.jit(algorithm.round)
    worst = 0.0
    for i in range(reference.num_clients):
        if not any(k.startswith(f"client{i}/trained/") for k in reference.arrays):
            continue
        # All samples are kept, so that one program serves for every client.
        only = {
            name: getattr(everybody, name)[i : i + 1]
            for name in ("offsets", "sizes", "probe_sizes", "available")
        }
        federation = dataclasses.replace(everybody, **only)
        state = ref.start(reference, algorithm, federation, jax.random.key(0))
        state, info = step(state, federation)
        assert bool(info.accepted.all())
        theirs = reference.weights(f"client{i}/trained")
        worst = max(
            worst, largest_difference((state.params, state.batch_stats), theirs)
        )
    report(reference, "trained clients", worst)
    assert worst < tolerance(reference)


@pytest.mark.parametrize("reference", params(SMALL[1:]), indirect=True)
@pytest.mark.parametrize("chunk_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_aggregated_global(reference, chunk_size):
    data, federation = ref.federation(reference, list(range(reference.num_clients)))
    _, algorithm = ref.algorithm(
        reference, data, reference.num_clients, chunk_size=chunk_size
    )
    state = ref.start(reference, algorithm, federation, jax.random.key(0))
    step = jax.jit(algorithm.round)
    worst = 0.0
    for _ in range(reference.config["rounds"]):
        name = f"round{int(state.round)}"
        state, _ = step(state, federation)
        theirs = reference.weights(name)
        worst = max(
            worst, largest_difference((state.params, state.batch_stats), theirs)
        )
    report(reference, f"global weights, chunk {chunk_size}", worst)
    assert worst < tolerance(reference)
