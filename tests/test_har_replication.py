"""The study of FedMultimodal's UCI-HAR table: its network, its clients, two rounds."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.samples import Split
from fedcmi_jax.testing.problem import compiled

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import har_data
import har_model
import har_replication as study

CLASSES, STEPS = 6, 16
SHAPES = {"acc": (STEPS, 3), "gyro": (STEPS, 3)}


@functools.cache
def network() -> fc.Model:
    """For windows shorter than theirs, which have the same parameters."""
    return har_model.har_model(SHAPES, CLASSES)


def windows(volunteers: int, each: int, seed: int) -> Split:
    """The class's number in binary, a digit an axis, in noise."""
    rng = np.random.default_rng(seed)
    n = volunteers * each
    labels = (np.arange(n) % CLASSES).astype(np.int32)
    digits = 4.0 * (labels[:, None, None] >> np.arange(3) & 1) - 2
    inputs = {
        m: (digits + 0.1 * rng.normal(size=(n, *shape))).astype(np.float32)
        for m, shape in SHAPES.items()
    }
    return Split(inputs, labels, np.repeat(np.arange(volunteers, dtype=np.int32), each))


def test_the_network_has_their_parameters():
    """Each of them counted from the layers' sizes."""
    model = network()
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    convolutions = (5 * 3 + 1) * 32 + (5 * 32 + 1) * 64 + (5 * 64 + 1) * 128
    gru = 3 * 128 * (128 + 128 + 2)
    attention = (128 + 1) * 512 + (512 + 1) * 6
    classifier = (6 * 128 + 1) * 64 + (64 + 1) * 6
    assert sum(x.size for x in jax.tree.leaves(params["encoder"]["acc"])) == (
        convolutions + gru
    )
    total = 2 * (convolutions + gru) + attention + classifier
    assert sum(x.size for x in jax.tree.leaves(params)) == total == 420_684
    batch = fc.Batch(
        {m: jnp.zeros((2, *shape)) for m, shape in SHAPES.items()},
        jnp.zeros(2, jnp.int32),
        jnp.ones(2),
        jnp.ones((2, 2)),
        jnp.arange(2),
    )
    outputs = jax.eval_shape(
        lambda p: model.apply(p, {"encoder": {m: {} for m in SHAPES}}, batch, False)[0],
        params,
    )
    assert outputs.logits.shape == (2, CLASSES)
    assert outputs.features["acc"].shape == (2, STEPS // 8 * 128)


def test_the_gru_is_pytorchs():
    """Its equations, gate by gate and step by step."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    gru = har_model.GRU(5)
    params = gru.init(jax.random.key(0), x)["params"]
    w, u, b, c = (
        np.split(np.asarray(params[name]), 3, axis=-1)
        for name in ("input", "recurrent", "input_bias", "recurrent_bias")
    )
    h, expected = np.zeros((2, 5)), []
    for t in range(3):
        given = [x[:, t] @ w[i] + b[i] for i in range(3)]
        own = [h @ u[i] + c[i] for i in range(3)]
        r, z = (1 / (1 + np.exp(-given[i] - own[i])) for i in range(2))
        h = (1 - z) * np.tanh(given[2] + r * own[2]) + z * h
        expected.append(h)
    found = gru.apply({"params": params}, x)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fan_in", [3 * har_model.KERNEL, 512])
def test_first_weights_are_pytorchs(fan_in):
    """Uniform within b = 1 / sqrt(fan_in), so of deviation b / sqrt(3)."""
    bound = fan_in**-0.5
    for init, shape in (
        (har_model.TORCH, (fan_in, 400)),
        (har_model.uniform(fan_in), (4000,)),
    ):
        values = np.asarray(init(jax.random.key(1), shape))
        assert 0.98 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize("alpha", study.ALPHAS)
def test_every_volunteer_gives_a_fifth_and_is_split_in_five(alpha):
    train = windows(volunteers=3, each=61, seed=0)
    parts, held = har_data.deal(train, alpha, np.random.default_rng(0))
    assert np.bincount(train.clients[held]).tolist() == [12, 12, 12]
    assert parts.num_clients == 15
    assert parts.sizes.min() >= 5
    together = np.sort(np.concatenate([held, parts.order]))
    assert together.tolist() == list(range(train.size))
    owners = train.clients[parts.order]
    assert owners.tolist() == np.repeat(np.arange(3), 49).tolist()


def test_filters_take_gravity_and_noise_away():
    """1 g and a tone of 24 Hz go, one of 5 Hz stays; a gyroscope keeps its offset."""
    t = np.arange(1000) / har_data.RATE
    x = 1 + np.sin(2 * np.pi * 5 * t) + np.sin(2 * np.pi * 24 * t)
    text = "\n".join(f"{v} {v} {v}" for v in x).encode()
    read = har_data.filtered(lambda name: (name, text))
    middle = slice(200, 800)
    tone = np.sin(2 * np.pi * 5 * t)[middle]
    for sensor, mean in (("acc", 0.0), ("gyro", 1.0)):
        found = np.loadtxt(read(f"{sensor}_exp01_user01.txt")[1].decode().splitlines())
        assert abs(found[middle].mean() - mean) < 0.05
        rest = found[middle, 0] - mean - tone
        assert rest.std() < 0.35 * tone.std()
    assert read("labels.txt")[1] == text


@pytest.mark.slow
def test_two_rounds_lower_the_loss():
    train, test = windows(2, 60, 0), windows(2, 30, 1)
    data = fc.data.from_arrays(
        train.inputs, train.labels, test.inputs, test.labels, clients=train.clients
    )
    algorithm = study.algorithm(network(), "fedavgm")
    parts, _ = har_data.deal(data.train, 5.0, np.random.default_rng(0))
    federation = fc.build_federation(data, parts)
    state = algorithm.init(jax.random.key(0), federation)
    losses = []
    for _ in range(3):
        state, info = compiled(algorithm)(state, federation)
        total, count = info.metrics["loss_task"]
        losses.append(float(total / count))
    assert losses[2] < losses[0]


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    train, test = windows(2, 60, 0), windows(2, 30, 1)
    data = fc.data.from_arrays(
        train.inputs, train.labels, test.inputs, test.labels, clients=train.clients
    )
    encoders = {m: fc.models.mlp(features=8, hidden=()) for m in SHAPES}
    model = fc.models.classifier(encoders, data.shapes, CLASSES)
    own, run = study.Study(data, model), study.Run(0, 5.0, "fedavgm", 4, 1)
    whole = own.train(run, tmp_path / "whole")
    monkeypatch.setattr(study, "SAVE_EVERY", 2)
    look, seen = own._look, []

    def stopped(dev, state, t, done):
        seen.append(t)
        if len(seen) == 3:
            raise KeyboardInterrupt
        look(dev, state, t, done)

    monkeypatch.setattr(own, "_look", stopped)
    with pytest.raises(KeyboardInterrupt):
        own.train(run, tmp_path / "started")
    assert own.train(run, tmp_path / "started") == whole
    assert seen == [1, 2, 3, 3, 4]
    assert not list(tmp_path.iterdir())
    assert len(whole["dev"]) == 4
    assert whole["best"]["dev"] == max(whole["dev"])


def test_the_table_says_how_far_ours_are_from_theirs():
    score = {"macro_f1": 0.8, "acc": 0.5, "round": 4}
    runs = [
        {"alpha": alpha, "server": server, "best": score, "last": score}
        for alpha, server in study.PUBLISHED
    ]
    header, first, *others = study.table(runs * 2)
    assert len(others) == 3
    row = dict(zip(header, first, strict=True))
    assert (row["ours"], row["gap"]) == ("80.0 ± 0.0", "+2.3")
