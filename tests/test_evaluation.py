"""Metrics by hand, and the views of a model against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.evaluation import metrics as evaluation
from fedcmi_jax.evaluation import summary
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.experiment.split import split as split_clients
from fedcmi_jax.methods.base import has_own_models
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    MODALITIES,
    assert_equal,
    dataset,
    federation,
    model,
)
from tests.test_config import tiny

TABLE = np.array([[8, 2, 0], [1, 1, 0], [0, 0, 0]], np.float32)


def test_metrics_of_a_table_by_hand():
    correct, count = evaluation.accuracy(jnp.asarray(TABLE))
    assert (float(correct), float(count)) == (9.0, 12.0)
    np.testing.assert_allclose(summary.class_accuracies(TABLE), [0.8, 0.5, np.nan])
    # F1: class 0 2*8/(9+10), class 1 2*1/(3+2); class 2 is never seen nor predicted.
    expected = (16 / 19 + 2 / 5) / 2
    assert summary.macro_f1(TABLE) == pytest.approx(expected)


def test_client_accuracy_by_hand():
    tables = jnp.stack([jnp.asarray(TABLE)] * 3)
    counts = jnp.array([[3.0, 1.0, 0.0], [0.0, 4.0, 4.0], [0.0, 0.0, 5.0]])
    ours = evaluation.client_accuracies(tables, counts)
    # The third class has no test samples: left out, or nothing left.
    np.testing.assert_allclose(ours, [(3 * 0.8 + 0.5) / 4, 0.5, np.nan], rtol=1e-6)


def test_sums_are_means_but_for_counts():
    sums = {
        "loss": (jnp.array(6.0), jnp.array(4.0)),
        "clients_dominant_a": (jnp.array(3.0), jnp.array(5.0)),
        "nothing": (jnp.array(0.0), jnp.array(0.0)),
    }
    assert summary.read_sums(sums) == {"loss": 1.5, "clients_dominant_a": 3.0}


def share(logits, labels) -> float:
    return float((jnp.argmax(logits, -1) == labels).mean())


@pytest.mark.parametrize("batch_size", [7, 40, 1000])
@pytest.mark.parametrize("kind", ["classifier", "two_projector"])
def test_views_equal_direct_computation(kind, batch_size):
    data, net, fed = dataset(), model(kind), federation()
    params, stats = net.init(jax.random.key(3))
    run = fc.build_evaluator(net, data.test, fed, batch_size=batch_size)
    result = summary.summarise(run(params, stats))
    n = data.test.size
    labels = jnp.asarray(data.test.labels)

    def forward(available):
        batch = fc.Batch(
            {m: jnp.asarray(x) for m, x in data.test.inputs.items()},
            labels,
            jnp.ones(n),
            jnp.broadcast_to(jnp.array([available], jnp.float32), (n, 2)),
            jnp.arange(n),
        )
        return net.apply(params, stats, batch, False)[0]

    full = forward([1, 1])
    assert result["acc"] == pytest.approx(share(full.logits, labels))
    for i, m in enumerate(MODALITIES):
        other = MODALITIES[1 - i]
        alone = {m: full.parts[m], other: 0 * full.parts[other]}
        expected = share(net.fuse(params, alone), labels)
        assert result[f"acc_{m}_zero"] == pytest.approx(expected)
        if net.has_projectors:
            only = forward([1 - i, i])
            assert result[f"acc_{m}_infiltration"] == pytest.approx(
                share(only.logits, labels)
            )
            assert result[f"acc_{m}_head"] == pytest.approx(
                share(full.self_logits[m], labels)
            )
    assert len(result["per_class"]) == 4
    assert result["worst_class"] == min(result["per_class"])
    order = ["client_min", "client_p10", "client_median", "client_max"]
    values = [result[name] for name in order]
    assert values == sorted(values)


def test_personal_models_are_tested_each_with_its_own_modalities():
    data, net, fed = dataset(), model("classifier"), federation()
    params, stats = net.init(jax.random.key(3))
    several = [net.init(jax.random.key(i))[0] for i in range(fed.num_clients)]
    memory = jax.tree.map(lambda *x: jnp.stack(x), *several)
    run = fc.build_evaluator(
        net, data.test, fed, personal=lambda params, memory: memory
    )
    assert run(params, stats).personal_accuracy is None
    ours = run(params, stats, memory)
    for i, own in enumerate(several):
        theirs = run(own, stats).client_accuracy[i]
        np.testing.assert_allclose(ours.personal_accuracy[i], theirs, rtol=1e-6)
    assert "personal_min" in summary.summarise(ours)


def test_a_sample_that_lacks_a_modality_counts_for_the_others():
    data, net, fed = dataset(), model("classifier"), federation()
    n = data.test.size
    present = np.ones((n, 2), bool)
    present[: n // 2, 1] = False
    params, stats = net.init(jax.random.key(3))
    split = data.test._replace(available=present)
    tables = fc.build_evaluator(net, split, fed)(params, stats).tables
    first, second = MODALITIES
    whole = fc.build_evaluator(net, data.test, fed)(params, stats).tables
    np.testing.assert_array_equal(
        tables[f"acc_{first}_zero"], whole[f"acc_{first}_zero"]
    )
    assert float(tables["acc"].sum()) == n
    assert float(tables[f"acc_{second}_half"].sum()) == n - n // 2


def test_client_class_counts():
    fed = federation()
    counts = evaluation.client_class_counts(fed, 4)
    np.testing.assert_array_equal(counts.sum(1), fed.sizes)
    first = np.bincount(np.asarray(fed.labels[:9]), minlength=4)
    np.testing.assert_array_equal(counts[0], first)


def test_rows_are_a_split_of_their_own():
    data, net, fed = dataset(), model("classifier"), federation()
    params, stats = net.init(jax.random.key(3))
    rows = np.array([7, 3, 20, 11, 12])
    part = fc.data.Split(
        {m: x[rows] for m, x in data.test.inputs.items()}, data.test.labels[rows]
    )
    for stream in (False, True):
        run = fc.build_evaluator(
            net, data.test, None, rows=rows, batch_size=2, stream=stream
        )
        ours = run(params, stats)
        assert ours.client_accuracy is None
        assert not any(n.startswith("client") for n in summary.summarise(ours))
        theirs = fc.build_evaluator(net, part, fed)(params, stats)
        assert_equal(ours.tables, theirs.tables)


def test_federations_of_equal_shapes_share_one_compiled_evaluation():
    data, net = dataset(), model("classifier")
    params, stats = net.init(jax.random.key(3))
    programs = evaluation.build_programs(net)
    other = tuple(reversed(AVAILABLE))
    for fed in (federation(), federation(other)):
        ours = fc.build_evaluator(net, data.test, fed, programs=programs)(params, stats)
        theirs = fc.build_evaluator(net, data.test, fed)(params, stats)
        assert_equal(ours, theirs)
    assert programs.whole._cache_size() == 1


def test_validation_columns_are_those_of_the_held_out_samples():
    built = build(tiny(validation_fraction=0.2, clients_per_round=4))
    state = built.algorithm.init(built.key, built.federation)
    measured = measure(built, state)
    names = {"val_acc", "val_acc_strong_zero", "val_macro_f1", "val_worst_class"}
    assert names <= set(measured)
    assert not any(n.startswith("val_client") for n in measured)
    held = split_clients(built.config, built.dataset).validation
    assert len(held.rows) == 12
    train = built.dataset.train
    split = fc.data.Split(
        {m: x[held.rows] for m, x in train.inputs.items()}, train.labels[held.rows]
    )
    run = fc.build_evaluator(built.model, split, built.federation)
    expected = summary.summarise(run(state.params, state.batch_stats))
    assert measured["val_acc"] == expected["acc"]
    assert measured["val_macro_f1"] == expected["macro_f1"]
    trained = np.asarray(built.federation.inputs["strong"])
    assert not {r.tobytes() for r in trained} & {
        r.tobytes() for r in split.inputs["strong"]
    }


def test_validation_samples_lack_nothing():
    built = build(
        tiny(validation_fraction=0.2, missing_fraction=1.0, multimodal_fraction=1.0)
    )
    dealt = split_clients(built.config, built.dataset)
    present = dealt.dataset.train.available
    assert present[dealt.validation.rows].all()
    assert (present[dealt.partition.order].sum(1) == 1).all()


@pytest.mark.parametrize(
    ("method", "personal"),
    [
        ({"name": "fedcmi"}, False),
        ({"name": "fedcmi", "personal_infiltration": True}, True),
        ({"name": "fedmsplit"}, True),
    ],
)
def test_personal_columns_are_of_methods_with_personal_blocks(method, personal):
    built = build(tiny(method=method))
    assert built.personal == personal
    state = built.algorithm.init(built.key, built.federation)
    measured = measure(built, state)
    assert any(n.startswith("personal") for n in measured) == personal


def test_a_chain_starts_as_its_parts_do():
    plain = fc.chain(fc.methods.fedcmi(), fc.methods.fedprox(mu=0.1))
    assert not has_own_models(plain)
    own = fc.methods.fedcmi(personal_infiltration=True)
    assert has_own_models(fc.chain(own, fc.methods.fedprox(mu=0.1)))
