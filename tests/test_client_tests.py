"""Clients on samples of their own: each with its own modalities, and model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.assembly import check_present
from fedcmi_jax.evaluation import client_tests, summary
from fedcmi_jax.evaluation.client_tests import (
    ClientHits,
    build_client_tester,
    summarise_clients,
)
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.experiment.split import split
from fedcmi_jax.partition.holdout import Held
from fedcmi_jax.testing.problem import AVAILABLE, dataset, model
from tests.test_config import tiny

# The third client has no sample; those of the others are not in their order.
OWNERS = np.array([0] * 7 + [1] * 4 + [3] * 9 + [4] * 3)
ROWS = np.random.default_rng(0).permutation(40)[: len(OWNERS)]
HELD = Held(ROWS, OWNERS)


def expected(net, params, stats, i):
    """Correct samples of client i, computed directly."""
    split, rows = dataset().test, ROWS[OWNERS == i]
    if not len(rows):
        return 0
    available = jnp.tile(jnp.array(AVAILABLE, jnp.float32)[i], (len(rows), 1))
    inputs = {m: jnp.asarray(x[rows]) for m, x in split.inputs.items()}
    labels = jnp.asarray(split.labels[rows])
    batch = fc.Batch(
        inputs, labels, jnp.ones(len(rows)), available, jnp.arange(len(rows))
    )
    logits = net.apply(params, stats, batch, False)[0].logits
    return int((logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("batch_size", [2, 5, 1000])
def test_hits_equal_direct_computation(batch_size):
    net = model()
    params, stats = net.init(jax.random.key(3))
    test = build_client_tester(
        net, dataset().test, HELD, np.array(AVAILABLE), batch_size=batch_size
    )
    hits = test(params, stats)
    assert hits.total.tolist() == [7, 4, 0, 9, 3]
    assert hits.correct.tolist() == [expected(net, params, stats, i) for i in range(5)]


@pytest.mark.parametrize("batch_size", [2, 1000])
def test_every_client_is_tested_with_its_own_model(batch_size):
    net = model("classifier")
    params, stats = net.init(jax.random.key(3))
    several = [net.init(jax.random.key(i))[0] for i in range(5)]
    memory = jax.tree.map(lambda *x: jnp.stack(x), *several)
    test = build_client_tester(
        net,
        dataset().test,
        HELD,
        np.array(AVAILABLE),
        batch_size=batch_size,
        personal=lambda params, memory: memory,
    )
    hits = test(params, stats, memory)
    assert hits.correct.tolist() == [
        expected(net, own, stats, i) for i, own in enumerate(several)
    ]


def test_the_summary_by_hand():
    hits = ClientHits(jnp.array([3.0, 0.0, 0.0, 1.0]), jnp.array([4.0, 1.0, 0.0, 1.0]))
    summary = summarise_clients("a", hits)
    assert summary.pop("a_per_client") == [0.75, 0, None, 1]
    assert summary == pytest.approx(
        {
            "a_acc": 4 / 6,
            "a_mean": 1.75 / 3,
            "a_std": np.std([0.75, 0, 1], ddof=1),
            "a_min": 0,
            "a_p10": 0.15,
            "a_median": 0.75,
            "a_max": 1,
        }
    )
    one = summarise_clients("a", ClientHits(jnp.array([1.0]), jnp.array([2.0])))
    assert one["a_min"] == one["a_max"] == 0.5
    assert "a_std" not in one


def rows_of(federation):
    inputs = zip(*map(np.asarray, federation.inputs.values()), strict=True)
    return sorted(b"".join(x.tobytes() for x in sample) for sample in inputs)


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_tests_its_clients(stream):
    config = tiny(
        clients=6,
        partition={"name": "dirichlet", "alpha": 1.0},
        method={"name": "fedavg"},
        client_test_fraction=0.2,
        validation_fraction=0.1,
        holdout_clients=2,
        stream=stream,
    )
    built = build(config)
    found = split(built.config, built.dataset)
    assert built.config.clients == 6
    assert built.federation.num_clients == 4
    n = 60 - len(found.holdout.rows)
    assert len(found.validation.rows) == round(0.1 * n)
    assert abs(len(found.client_test.rows) - 0.2 * n) < 1
    everything = (
        found.partition.order,
        *(h.rows for h in (found.validation, found.client_test, found.holdout)),
    )
    assert sorted(np.concatenate(everything).tolist()) == list(range(60))
    state = built.algorithm.init(built.key, built.federation)
    measured = measure(built, state)
    names = {
        f"{split}_{what}"
        for split in ("client_test", "holdout")
        for what in ("acc", "mean", "std", "p10", "min")
    }
    assert names | {"val_acc", "acc"} <= set(measured)
    assert all(np.isfinite(measured[name]) for name in names)
    if stream:
        resident = build(dataclasses.replace(config, stream=False))
        assert measure(resident, state) == measured


def test_personal_models_are_tested_on_their_clients_samples():
    built = build(
        tiny(
            method={"name": "fedmsplit"},
            client_test_fraction=0.5,
            holdout_clients=1,
            partition={"name": "iid"},
        )
    )
    assert built.personal
    assert built.federation.num_clients == 3
    algorithm, federation = built.algorithm, built.federation
    state = algorithm.init(built.key, federation)
    same = measure(built, state)
    # Somebody else's model for every client: only what looks at memory may change.
    other = algorithm.init(jax.random.key(99), federation)
    changed = measure(built, state._replace(memory=other.memory))
    differs = {n for n in same if same[n] != changed[n]}
    assert any(n.startswith("client_test") for n in differs)
    assert not any(n.startswith("holdout") for n in differs)


def test_natural_clients_keep_their_own():
    values = {
        "dataset": {
            "name": "synthetic",
            "train_samples": 60,
            "num_classes": 3,
            "features": 4,
            "natural_clients": 5,
        },
        "partition": {"name": "natural"},
        "clients": 0,
        "client_test_fraction": 0.25,
        "holdout_clients": 2,
    }
    built = build(tiny(**values))
    found = split(built.config, built.dataset)
    assert built.config.clients == 5
    assert built.federation.num_clients == 3
    assert found.partition.sizes.tolist() == [9] * 3
    ids = built.dataset.train.clients
    for held in (found.client_test, found.holdout):
        for client in np.unique(held.clients):
            assert len(set(ids[held.rows[held.clients == client]])) == 1
    away = set(ids[found.holdout.rows])
    assert tuple(sorted(away)) == built.holdout_ids  # natural ids are 0 to 4
    assert not away & set(ids[found.partition.order])
    again = build(built.config)  # a configuration as it is kept
    np.testing.assert_array_equal(again.federation.sizes, built.federation.sizes)


def with_empty_clients(holdout_clients, seed):
    return tiny(
        partition={"name": "dirichlet", "alpha": 0.005, "min_samples": 0},
        method={"name": "fedavg"},
        clients_per_round=1,
        holdout_clients=holdout_clients,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("holdout_clients", "seed", "message"),
    [
        (1, 13, "none of the 1 clients that seed 13 drew has a sample to test on"),
        (3, 6, "with the 3 that seed 6 drew, nobody else has a sample to train on"),
    ],
)
def test_nothing_to_test_or_to_train_on(holdout_clients, seed, message):
    with pytest.raises(ValueError, match=f"holdout_clients: {message}"):
        build(with_empty_clients(holdout_clients, seed))


def test_an_empty_client_among_those_held_out_is_left_out():
    built = build(with_empty_clients(2, 13))  # of sizes 20 and 0
    state = built.algorithm.init(built.key, built.federation)
    measured = measure(built, state)
    assert measured["holdout_min"] == measured["holdout_acc"]
    assert measured["holdout_per_client"] == [measured["holdout_acc"], None]
    assert "holdout_std" not in measured


def test_overlapping_samples_are_held_out_in_runs():
    config = tiny(
        partition={"name": "natural"},
        clients=0,
        validation_fraction=0.2,
        client_test_fraction=0.2,
        missing_fraction=0.5,
    )
    data = fc.data.load("synthetic", train_samples=60, test_samples=10)
    train = data.train._replace(
        labels=np.tile(np.repeat([0, 1], 10), 3).astype(np.int32),
        clients=np.repeat(np.arange(3), 20),
        sequential=True,
    )
    found = split(config, fc.data.check_dataset(data._replace(train=train)))
    assert found.dataset.train.sequential
    for i in range(3):
        by_use = [20 * i + np.r_[0:6, 10:16]]
        by_use += [20 * i + np.r_[a : a + 2, a + 10 : a + 12] for a in (6, 8)]
        start = 12 * i
        assert set(found.partition.order[start : start + 12]) == set(by_use[0])
        for held, rows in (
            (found.client_test, by_use[1]),
            (found.validation, by_use[2]),
        ):
            assert set(held.rows[held.clients == i]) == set(rows)


def test_a_sample_without_its_clients_modality_is_refused():
    present = np.ones((40, 2), bool)
    present[ROWS[7], 0] = False  # the second client has the first modality only
    with pytest.raises(ValueError, match="client 1 has none of the modalities"):
        check_present(present, ROWS, OWNERS, np.array(AVAILABLE, bool))


def test_spreads_are_sample_deviations():
    values = summary.spread("x", np.array([0.0, 0.5, 1.0, np.nan]))
    assert values["x_std"] == pytest.approx(0.5)
    assert summary.spread("x", np.array([np.nan])) == {}
    assert client_tests.spread is summary.spread
