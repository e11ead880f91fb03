"""The benchmark peers compute the same round as the library.

Slow, and each needs its own virtual environment (experiments/benchmarks/README.md); a
peer without one is skipped.
"""

import functools
import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import fedcmi_jax as fc

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
TOLERANCE = 1e-4
SIZES = (13, 5, 20)
NUM_CLASSES = 4
OPTIONS = {"lam": 1.0, "beta": 2.0, "gamma": 2.0, "mu": 0.01, "min_temperature": 0.1}
SHAPES = {
    "mlp": {"gray": (6,), "color": (9,)},
    "convnet": {"gray": (12, 12, 1), "color": (12, 12, 3)},
    "resnet18": {"gray": (33, 33, 1), "color": (40, 40, 3)},
}
# Epochs, batch size, learning rate. One step per client for the deep net: on so little
# data a ReLU that flips by rounding is felt (after two epochs at 0.001, 32-bit PyTorch
# is 1.5e-3 away from 64-bit PyTorch, the library 9e-4).
LOCAL = {"mlp": (2, 8, 0.05), "convnet": (2, 8, 0.05), "resnet18": (1, 20, 0.002)}

pytestmark = pytest.mark.slow


def flat(prefix, tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join([prefix, *(k.key for k in path)]): np.asarray(x) for path, x in leaves
    }


@functools.cache
def problem(encoder, method, sizes=SIZES, seed=0):
    """(SPEC, npz arrays, arrays after one JAX round)."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[encoder]
    epochs, batch_size, rate = LOCAL[encoder]
    n = sum(sizes)
    labels = rng.integers(0, NUM_CLASSES - 1, n).astype(np.int32)
    inputs = {}
    for i, (m, shape) in enumerate(shapes.items()):
        means = rng.normal(size=(NUM_CLASSES, *shape))
        noise = rng.normal(size=(n, *shape))
        inputs[m] = (noise + (i + 1) * means[labels]).astype(np.float32)
    split = fc.data.Split(inputs, labels)
    names = tuple(map(str, range(NUM_CLASSES)))
    data = fc.data.Dataset("peers", tuple(shapes), names, split, split)
    parts = fc.partition.Partition(np.arange(n), np.array(sizes))
    federation = fc.build_federation(data, parts)
    build = {
        "mlp": lambda: fc.models.mlp(features=8, hidden=(12,)),
        "convnet": lambda: fc.models.convnet(features=16),
    }.get(encoder) or fc.models.ENCODERS[encoder]
    encoders = {m: build() for m in shapes}
    if method == "fedcmi":
        kind, options = "two_projector", {"width": 8}
        algorithm_method = fc.methods.fedcmi(warmup_rounds=0, **OPTIONS)
    else:
        kind, options = "classifier", {}
        algorithm_method = fc.methods.fedavg()
    model = getattr(fc.models, kind)(encoders, shapes, NUM_CLASSES, **options)
    algorithm = fc.build_algorithm(
        algorithm_method,
        model,
        clients_per_round=len(sizes),
        local=fc.LocalTraining(
            epochs=epochs, batch_size=batch_size, learning_rate=rate, shuffle=False
        ),
    )
    state = algorithm.init(jax.random.key(seed), federation)

    def arrays(state):
        return flat("params", state.params) | flat("stats", state.batch_stats)

    trained, _ = jax.jit(algorithm.round)(state, federation)
    spec = {
        "method": method,
        "model": kind,
        "encoder": encoder,
        "modalities": list(shapes),
        "num_classes": NUM_CLASSES,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "shuffle": False,
        "form": "best",
        "threads": 1,
        "options": OPTIONS,
        "data": "data.npz",
    }
    stored = {f"inputs/{m}": x for m, x in inputs.items()} | arrays(state)
    stored |= {
        "labels": labels,
        "offsets": np.asarray(federation.offsets),
        "sizes": np.asarray(federation.sizes),
    }
    return spec, stored, arrays(trained)


def python(peer):
    path = BENCHMARKS / f".venv-{peer}" / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no environment {path.parent.parent.name} for this peer")
    return path


def play(peer, spec, stored, folder):
    """One round of a peer from the initial model, after a reset; its arrays."""
    np.savez(folder / "data.npz", **stored)
    (folder / "spec.json").write_text(json.dumps(spec))
    ops = [
        {"op": "round"},
        {"op": "reset"},
        {"op": "round"},
        {"op": "params", "path": str(folder / "out.npz")},
        {"op": "quit"},
    ]
    done = subprocess.run(
        [python(peer), BENCHMARKS / f"{peer}_loop.py", folder / "spec.json"],
        input="".join(json.dumps(op) + "\n" for op in ops),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=fc.backend.unguarded(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 1 + len(ops)
    assert answers[0]["ready"] is True
    assert answers[1]["seconds"] > 0
    assert answers[-1]["peak_rss_bytes"] > 1e6
    print(answers)
    with np.load(folder / "out.npz") as file:
        return {k: file[k] for k in file}


def check(peer, encoder, method, folder, sizes=SIZES, **changes):
    spec, stored, expected = problem(encoder, method, sizes)
    found = play(peer, spec | changes, stored, folder)
    assert set(found) == set(expected)
    worst = max(np.abs(found[k] - expected[k]).max() for k in expected)
    moved = max(np.abs(stored[k] - expected[k]).max() for k in expected)
    print(f"{peer} {encoder} {method} {changes}: max difference {worst:.2e}")
    assert moved > 10 * TOLERANCE
    assert worst < TOLERANCE


ENCODERS = [
    "mlp",
    "convnet",
    pytest.param(
        "resnet18",
        marks=pytest.mark.skipif(
            "resnet18" not in fc.models.ENCODERS, reason="the library has no resnet18"
        ),
    ),
]


@pytest.mark.parametrize("form", ["eager", "best"])
@pytest.mark.parametrize("method", ["fedavg", "fedcmi"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_torch(encoder, method, form, tmp_path):
    check("torch", encoder, method, tmp_path, form=form)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_pfl(encoder, tmp_path):
    check("pfl", encoder, "fedavg", tmp_path)


@pytest.mark.parametrize("method", ["fedavg", "fedcmi"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_flower(encoder, method, tmp_path):
    check("flower", encoder, method, tmp_path)


@pytest.mark.parametrize("sizes", [SIZES, (16, 8, 24)], ids=["short", "whole"])
def test_fedjax(sizes, tmp_path):
    """Batches that do not divide the samples are made in another way."""
    check("fedjax", "mlp", "fedavg", tmp_path, sizes)


def test_fedjax_refuses_other_encoders(tmp_path):
    spec, stored, _ = problem("mlp", "fedavg")
    with pytest.raises(AssertionError, match="this peer has mlp only"):
        play("fedjax", spec | {"encoder": "convnet"}, stored, tmp_path)
