"""Hand-worked numbers of FedCMI and its options."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.methods._infiltration import (
    argmax_last,
    class_probabilities,
    class_temperatures,
    distillation_loss,
    mean_ratios,
)
from fedcmi_jax.testing.problem import (
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    rounds,
)
from fedcmi_jax.uploads import mean_upload, weighted_upload

# What is compared to the bit is equal even so.
pytestmark = pytest.mark.up_to_rounding

BOTH = jnp.ones(2)


def logits_of(probability):
    """Two-class logits with this probability of class 0."""
    return [math.log(probability), math.log(1 - probability)]


def test_class_probabilities_by_hand():
    # Two samples of class 0 with p = 0.8, 0.6 and one of class 1 with p(1) = 0.3.
    audio = [logits_of(0.8), logits_of(0.6), logits_of(0.7), logits_of(0.01)]
    visual = [logits_of(0.5), logits_of(0.3), logits_of(0.1), logits_of(0.01)]
    logits = jnp.array([audio, visual]).transpose(1, 0, 2)
    labels = jnp.array([0, 0, 1, 1])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    probabilities, present = class_probabilities(logits, labels, weights, 2)
    np.testing.assert_allclose(probabilities, [[0.7, 0.3], [0.4, 0.9]], rtol=1e-6)
    np.testing.assert_array_equal(present, [1, 1])


def test_absent_class_is_zero_and_flagged():
    logits = jnp.zeros((2, 2, 3))
    probabilities, present = class_probabilities(
        logits, jnp.array([0, 2]), jnp.ones(2), 3
    )
    np.testing.assert_array_equal(probabilities[:, 1], [0, 0])
    np.testing.assert_array_equal(present, [1, 0, 1])


@pytest.mark.parametrize(
    ("mean", "expected"),
    [("arithmetic", (4.0 + 0.5) / 2), ("geometric", math.sqrt(4.0 * 0.5))],
)
def test_mean_ratio_by_hand(mean, expected):
    # r = 0.8/0.2 = 4 and 0.2/0.4 = 0.5; the third class is absent.
    p = jnp.array([[0.8, 0.2, 0.0], [0.2, 0.4, 0.0]])
    present = jnp.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(
        mean_ratios(p, present, BOTH, mean), [expected, 1.0], rtol=1e-6
    )


def test_geometric_mean_is_symmetric():
    p = jnp.array([[0.8, 0.2], [0.2, 0.4]])
    forward = mean_ratios(p, BOTH, BOTH, "geometric")[0]
    backward = mean_ratios(p[::-1], BOTH, BOTH, "geometric")[0]
    np.testing.assert_allclose(forward * backward, 1.0, rtol=1e-6)


def temperatures(p, present=None, gamma=2.0, floor=0.0):
    p = jnp.array(p)
    present = jnp.ones(p.shape[1]) if present is None else jnp.array(present)
    ratios = mean_ratios(p, present, jnp.ones(len(p)))
    return class_temperatures(
        p, present, ratios, argmax_last(ratios), gamma=gamma, min_temperature=floor
    )


def test_temperatures_audio_dominant_by_hand():
    # r = (4, 0.5), r-bar = 2.25 > 1: u = (16/9, 2/9); T_0 = 1 / (1 + 2 ln(16/9)).
    t = temperatures([[0.8, 0.2], [0.2, 0.4]])
    np.testing.assert_allclose(t[0], [1, 1])
    np.testing.assert_allclose(t[1], [1 / (1 + 2 * math.log(16 / 9)), 1], rtol=1e-6)


def test_temperatures_visual_dominant_by_hand():
    # r = (0.25, 0.5), r-bar = 0.375 <= 1: u = r-bar / r = (1.5, 0.75).
    t = temperatures([[0.2, 0.4], [0.8, 0.8]])
    np.testing.assert_allclose(t[1], [1, 1])
    np.testing.assert_allclose(t[0], [1 / (1 + 2 * math.log(1.5)), 1], rtol=1e-6)


def test_temperatures_absent_class_is_one():
    t = temperatures([[0.8, 0.2, 0.0], [0.2, 0.4, 0.0]], present=[1, 1, 0])
    assert float(t[1, 2]) == 1.0


def test_temperatures_gamma_zero_is_one():
    np.testing.assert_array_equal(temperatures([[0.8, 0.2], [0.2, 0.4]], gamma=0.0), 1)


def test_temperatures_stay_finite_and_bounded_at_zero_probability():
    t = temperatures([[0.9, 0.0], [0.0, 1.0]], floor=0.1)
    assert bool(jnp.isfinite(t).all())
    assert float(t.min()) >= 0.1
    assert float(t.max()) <= 1.0


def test_equal_ratios_make_the_later_modality_dominant():
    assert int(argmax_last(jnp.array([1.0, 1.0]))) == 1
    assert int(argmax_last(jnp.array([1.0, 0.5]))) == 0


def test_distillation_loss_by_hand():
    # T = 0.5 doubles logits: target (e^2, 1)/(e^2+1), student (1, 1)/2 -> ln 2.
    # T = 1: target (1/2, 1/2), student logits (1, 0): -(log s_0 + log s_1)/2.
    teacher = jnp.array([[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    student = jnp.array([[0.0, 0.0], [1.0, 0.0], [5.0, 1.0]])
    loss = distillation_loss(
        teacher, student, jnp.array([0.5, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0])
    )
    second = math.log(math.e + 1) - 0.5
    np.testing.assert_allclose(loss, (math.log(2) + second) / 2, rtol=1e-6)


def test_emphasis_weighs_losses_not_their_mean():
    # Losses ln 2 and ln 2, emphasised 3 and 1, over two samples: 2 ln 2.
    flat = jnp.zeros((2, 2))
    loss = distillation_loss(
        flat, flat, jnp.ones(2), jnp.ones(2), emphasis=jnp.array([3.0, 1.0])
    )
    assert float(loss) == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.slow
def test_both_directions_are_the_sum_of_the_two():
    def first_step(**options):
        local = fc.LocalTraining(batch_size=16, learning_rate=0.1)
        method = fc.methods.fedcmi(warmup_rounds=0, **options)
        _, info = rounds(algorithm(method, local=local), federation(), 1)
        total, weight = info.metrics["loss_infiltration"]
        return float(total / weight)

    parts = [first_step(direction=d) for d in ("to_weak", "to_strong")]
    assert parts[0] != parts[1]
    assert first_step(direction="both") == pytest.approx(sum(parts), rel=1e-5)


def test_no_gradient_into_the_teacher():
    student = jnp.array([[0.3, 0.1]])
    gradient = jax.grad(distillation_loss)(
        jnp.array([[1.0, -1.0]]), student, jnp.ones(1), jnp.ones(1)
    )
    np.testing.assert_array_equal(gradient, 0)


def per_step_teacher(**options):
    """FedCMI whose teacher runs in every step on that step's batch."""
    method = fc.methods.fedcmi(mu=0.0, **options)

    def loss(client, outputs, batch, context):
        frozen, _ = client.model.apply(client.params, client.batch_stats, batch, False)
        logits = [frozen.self_logits[m] for m in client.model.modalities]
        fresh = jnp.stack(logits, axis=1)
        teacher = jnp.zeros_like(context.teacher).at[batch.positions].set(fresh)
        return method.loss(client, outputs, batch, context._replace(teacher=teacher))

    return method._replace(loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("dominance", ["batch_local", "batch_global"])
def test_cached_teacher_equals_per_step_teacher(dominance):
    cached = fc.methods.fedcmi(mu=0.0, dominance=dominance)
    a, _ = rounds(algorithm(cached), federation(), 3)
    b, _ = rounds(algorithm(per_step_teacher(dominance=dominance)), federation(), 3)
    assert_close(a, b, rtol=1e-6, atol=1e-6)


@functools.cache
def trained(**options):
    state, info = rounds(algorithm(fc.methods.fedcmi(**options)), federation(), 2)
    return state, info


OPTIONS = {
    "temperature": ["weights", "none"],
    "direction": ["to_strong", "both"],
    "student": ["self"],
    "teacher": ["local"],
    "dominance": ["batch_global", "round_global", "server"],
    "ratio_mean": ["geometric"],
    "warmup_rounds": [0, 5],
    "personal_infiltration": [True],
    "head_owner_multimodal_only": [True],
    "lam": [0.0],
    "beta": [0.0],
    "mu": [0.0],
    "gamma": [0.5],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"), [(k, v) for k, vs in OPTIONS.items() for v in vs]
)
def test_every_option_trains_finitely(option, value):
    state, info = trained(**{option: value})
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    # dominance may agree on so small a problem; the others must make a difference.
    if option != "dominance":
        default, _ = trained()
        with pytest.raises(AssertionError):
            assert_close(state.params, default.params)


@pytest.mark.slow
def test_fixed_temperature_one_is_no_temperature():
    a, _ = trained(temperature="fixed", fixed_temperature=1.0)
    b, _ = trained(temperature="none")
    assert_equal(a, b)


@pytest.mark.slow
def test_no_distillation_before_the_warmup_ends():
    a, _ = rounds(algorithm(fc.methods.fedcmi(warmup_rounds=2)), federation(), 2)
    b, _ = rounds(algorithm(fc.methods.fedcmi(lam=0.0)), federation(), 2)
    assert_equal(a.params, b.params)


@pytest.mark.slow
@pytest.mark.shipped_flags  # two programs, nearly to the bit
def test_min_temperature_one_is_no_temperature():
    a, _ = trained(min_temperature=1.0)
    b, _ = trained(temperature="none")
    # XLA's roundings of the two differ now and then: four units in the last place of 1.
    assert_close(a.params, b.params, rtol=1e-6, atol=5e-7)


def test_personal_blocks_stay_at_the_client():
    method = fc.methods.fedcmi(personal_infiltration=True)
    problem = algorithm(method)
    fed = federation()
    start = problem.init(jax.random.key(0), fed)
    state, _ = rounds(problem, fed, 2)
    for kind in ("infiltration_projector", "head"):
        assert_equal(state.params[kind], start.params[kind])
    # Client 0 has both modalities, client 1 lacks the second: its head stays.
    head = state.personal["head"][fed.modalities[1]]["out"]["kernel"]
    initial = start.params["head"][fed.modalities[1]]["out"]["kernel"]
    assert bool((head[0] != initial).any())
    np.testing.assert_array_equal(head[1], initial)
    deployed = problem.deploy(state, fed)
    assert bool((deployed["head"][fed.modalities[1]]["out"]["kernel"] != initial).any())


def test_multimodal_only_heads_ignore_single_modality_clients():
    method = fc.methods.fedcmi(head_owner_multimodal_only=True, mu=0.0)
    data = SimpleNamespace(num_examples=jnp.array(3))
    client = SimpleNamespace(params={"head": {}, "fusion": {}}, data=data)
    for multimodal in (0.0, 1.0):
        context = SimpleNamespace(multimodal=multimodal)
        weight = method.weight(client, context)
        assert {k: float(w) for k, w in weight.items()} == {
            "head": 3 * multimodal,
            "fusion": 3.0,
        }


def test_server_ratio_is_the_sample_weighted_mean():
    method = fc.methods.fedcmi(mu=0.0, dominance="server")
    shared, _ = method.init(_TwoModalities, {}, 5)
    np.testing.assert_array_equal(shared.ratios, [1, 1])
    sent = [
        fc.methods.Mean(jnp.array([3.0, 1.0]), jnp.array(10.0)),
        fc.methods.Mean(jnp.array([0.5, 1.0]), jnp.array(30.0)),
    ]
    added = jax.tree.map(jnp.add, *map(weighted_upload, sent))
    merged, _ = method.merge(cohort(shared), mean_upload(added))
    np.testing.assert_allclose(merged.ratios, [45 / 40, 1.0])
    none = fc.methods.Mean(jnp.zeros(2), jnp.zeros(()))
    nobody, _ = method.merge(cohort(merged), mean_upload(none))
    assert_equal(nobody, merged)


def cohort(shared):
    """What ``merge`` sees, as far as it looks at it."""
    return SimpleNamespace(shared=shared, memory=())


class _TwoModalities:
    modalities = ("a", "v")


@pytest.mark.slow
def test_statistics_come_from_held_out_samples():
    """Other held-out labels: other temperatures, so other weights."""
    fed = federation(probe_fraction=0.4)
    labels = np.asarray(fed.labels).copy()
    for offset, size, probes in zip(
        fed.offsets, fed.sizes, fed.probe_sizes, strict=True
    ):
        held_out = slice(int(offset + size), int(offset + size + probes))
        labels[held_out] = (labels[held_out] + 1) % 4
    other = dataclasses.replace(fed, labels=jnp.asarray(labels))
    with_distillation = [
        rounds(algorithm(fc.methods.fedcmi()), f, 2)[0].params for f in (fed, other)
    ]
    pairs = zip(*map(jax.tree.leaves, with_distillation), strict=True)
    assert any(bool((a != b).any()) for a, b in pairs)
    without = [
        rounds(algorithm(fc.methods.fedcmi(lam=0.0)), f, 2)[0].params
        for f in (fed, other)
    ]
    assert_equal(*without)


@pytest.mark.slow
def test_directions_that_disagree_can_be_neutral():
    """With T = 1 in every disagreement, temperatures act in the others only."""
    keep, _ = trained(dominance="batch_local", on_disagreement="keep")
    neutral, _ = trained(dominance="batch_local", on_disagreement="neutral")
    always, _ = trained(dominance="round_global", on_disagreement="neutral")
    same, _ = trained(dominance="round_global", on_disagreement="keep")
    assert_equal(always.params, same.params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(neutral.params))
    assert jax.tree.structure(keep) == jax.tree.structure(neutral)


def test_round_reports_imbalance_and_losses():
    _, info = trained()
    metrics = fc.evaluation.read_sums(info.metrics)
    assert metrics["clients_multimodal"] == 3
    dominant = [v for k, v in metrics.items() if k.startswith("clients_dominant_")]
    assert sum(dominant) == 3
    assert metrics["imbalance"] > 0
    assert 0.1 <= metrics["temperature_min"] <= metrics["temperature_mean"] <= 1
    for name in ("loss_task", "loss_head", "loss_infiltration"):
        assert metrics[name] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "lam: -1.0 is not >= 0"),
        ({"beta": float("nan")}, "beta: nan is not >= 0"),
        ({"mu": -0.1}, "mu: -0.1 is not >= 0"),
        ({"fixed_temperature": 0.0}, "fixed_temperature: 0.0 is not positive"),
        ({"min_temperature": 1.5}, r"min_temperature: 1.5 is outside \[0, 1\]"),
        ({"warmup_rounds": -1}, "warmup_rounds: -1 is negative"),
        ({"temperature": "klass"}, "temperature: unknown 'klass'; choose from"),
        ({"dominance": "local"}, "dominance: unknown 'local'; choose from"),
        ({"ratio_mean": "harmonic"}, "ratio_mean: unknown 'harmonic'"),
        ({"on_disagreement": "x"}, "on_disagreement: unknown 'x'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fc.methods.fedcmi(**options)


def test_needs_projectors():
    with pytest.raises(ValueError, match="needs projectors"):
        algorithm(fc.methods.fedcmi(), model("classifier"))


def test_chain_refuses_two_selectors():
    chooser = fc.Method(select=lambda *a: None)
    with pytest.raises(ValueError, match="replace 'select'"):
        fc.chain(chooser, chooser)
