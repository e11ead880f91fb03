"""Hand-worked numbers of FedCMI's signals beyond the paper (methods 1.10)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import testing
from fedcmi_jax.methods._signals import (
    calibration_temperature,
    class_gates,
    feature_loss,
    gap,
    knows_better,
    without_own,
)
from fedcmi_jax.testing.problem import (
    algorithm,
    federation,
    model,
    rounds,
)
from fedcmi_jax.types import Batch

pytestmark = pytest.mark.up_to_rounding


def test_the_better_one_has_more_probability_of_the_true_class():
    # q(y): teacher 0.5 against 0.27, 0.5 against 0.73, and a tie.
    teacher = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    student = jnp.array([[0.0, 1.0], [1.0, 0.0], [3.0, 2.0]])
    better = knows_better(teacher, student, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(better, [1, 0, 0])


def test_more_saturated_samples_are_still_told_apart():
    """In float32 both probabilities are 1 and their logarithms 0."""
    teacher, student = jnp.array([[30.0, 0.0]]), jnp.array([[20.0, 0.0]])
    label = jnp.zeros(1, jnp.int32)
    assert float(knows_better(teacher, student, label)[0]) == 1.0


def test_class_gates_open_where_the_teacher_is_ahead_or_nobody_measured():
    p = jnp.array([[0.8, 0.2, 0.0], [0.3, 0.4, 0.0]])
    held = jnp.array([1.0, 1.0, 0.0])
    gates = class_gates(p[:, None], p[None], held)
    np.testing.assert_array_equal(gates[0, 1], [1, 0, 1])
    np.testing.assert_array_equal(gates[1, 0], [0, 1, 1])
    np.testing.assert_array_equal(gates[0, 0], [0, 0, 1])


def test_gap_by_hand():
    # d = 0 leads by 2 and by e^2; d = 1 leads the last one by e^2 / 2, not the first.
    ratios = jnp.array([math.e**2, math.e**2 / 2, 1.0])
    first, second = (gap(ratios, jnp.array(d)) for d in (0, 1))
    np.testing.assert_allclose(first, [0, math.log(2), 1], 1e-5)
    np.testing.assert_allclose(second, [0, 0, 1], 1e-5)


def test_without_own_by_hand():
    shares = jnp.array([[[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]] * 2)
    available = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    lessons = without_own(shares, available)
    np.testing.assert_allclose(lessons[0, :, 0], [110, 101, 11])
    np.testing.assert_allclose(lessons[1, :, 1], [200, 202, 2])


def test_what_is_left_is_the_fused_logits_less_the_own_share():
    fed, net = federation(), model()
    params, stats = net.init(jax.random.key(0))
    rows = jnp.arange(9)
    inputs = {m: x[rows] for m, x in fed.inputs.items()}
    batch = Batch(inputs, fed.labels[rows], jnp.ones(9), jnp.ones((9, 2)), rows)
    outputs, _ = net.apply(params, stats, batch, False)
    shares = net.shares(params, outputs.parts)
    own = jnp.stack([shares[m] for m in net.modalities], axis=1)
    left = without_own(own, batch.available)
    np.testing.assert_allclose(left, outputs.logits[:, None] - own, atol=1e-6)


def of_margin(margin, right, wrong):
    """Two-class logits [n, 1, 2] and labels: so many right ones, so many wrong."""
    logits = jnp.tile(jnp.array([[[margin, 0.0]]]), (right + wrong, 1, 1))
    labels = jnp.array([0] * right + [1] * wrong)
    return logits, labels


@pytest.mark.parametrize(
    ("margin", "right", "wrong", "expected"),
    [
        (4.0, 3, 1, 4 / math.log(3)),  # sigmoid(4 / T) = 3/4
        (9.0, 4, 1, 9 / math.log(4)),
        (1.0, 9, 1, 1.0),  # T = 1 / ln 9 would sharpen
        (5.0, 4, 0, 1.0),  # all right: T -> 0
        (5.0, 2, 2, 10.0),  # no better than chance: T -> infinity
    ],
)
def test_calibration_by_hand(margin, right, wrong, expected):
    logits, labels = of_margin(margin, right, wrong)
    fitted = calibration_temperature(logits, labels, jnp.ones(right + wrong))
    np.testing.assert_allclose(fitted, [expected], rtol=1e-5)


def test_calibration_counts_what_has_weight_and_each_row_for_itself():
    logits, labels = of_margin(4.0, 3, 2)
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    both = jnp.concatenate([logits, 2 * logits], axis=1)
    fitted = calibration_temperature(both, labels, weights)
    np.testing.assert_allclose(fitted, [4 / math.log(3), 8 / math.log(3)], rtol=1e-5)
    nobody = calibration_temperature(logits, labels, jnp.zeros(5))
    np.testing.assert_array_equal(nobody, [1.0])


def test_feature_loss_by_hand():
    # cos = 1 (any length), 0, -1; the last row does not count.
    teacher = jnp.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    student = jnp.array([[0.5, 0.0], [0.0, 7.0], [-2.0, 0.0], [9.0, 0.0]])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    assert float(feature_loss(teacher, student, weights)) == pytest.approx(1.0)
    emphasis = jnp.array([5.0, 1.0, 2.0, 1.0])
    found = feature_loss(teacher, student, weights, emphasis)
    assert float(found) == pytest.approx((0 + 1 + 4) / 3)


def test_features_of_length_zero_have_a_finite_slope_and_the_teacher_none():
    zero, weights = jnp.zeros((1, 3)), jnp.ones(1)
    slopes = jax.grad(feature_loss, (0, 1))(jnp.ones((1, 3)), zero, weights)
    np.testing.assert_array_equal(slopes[0], 0)
    assert bool(jnp.isfinite(slopes[1]).all())


ON = {
    "every signal": {
        "gate": "sample",
        "lam_scale": "gap",
        "calibration": "temperature",
        "teacher": "fused_without_student",
    },
    "features": {"level": "features", "gate": "class", "direction": "both"},
    "fused": {"teacher": "fused", "gate": "class", "calibration": "temperature"},
}
"""What meets all the options' code, in few programs."""


@functools.cache
def case(name):
    return testing.Case(fc.methods.fedcmi(warmup_rounds=0, **ON[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON)
@pytest.mark.parametrize(
    "check",
    [
        "chunks_and_padding_change_nothing",
        "a_modality_nobody_has_stays",
        "a_class_nobody_has_does_no_harm",
        "what_a_sample_lacks_has_no_effect",
    ],
)
def test_padding_and_absent_modalities(name, check):
    testing.CHECKS[check](case(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON)
def test_held_out_samples_decide_and_everything_stays_finite(name):
    method = fc.methods.fedcmi(warmup_rounds=0, **ON[name])
    state, info = rounds(algorithm(method), federation(probe_fraction=0.3), 2)
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "batch"}, "gate: unknown 'batch'; choose from"),
        ({"lam_scale": "x"}, "lam_scale: unknown 'x'"),
        ({"calibration": "x"}, "calibration: unknown 'x'"),
        ({"level": "x"}, "level: unknown 'x'"),
        (
            {"calibration": "temperature", "teacher": "local"},
            "calibration: 'temperature' is of the global model's logits",
        ),
        (
            {"level": "features", "teacher": "fused"},
            "level: 'features' are those of the dominant modality, and teacher is "
            "'fused'",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fc.methods.fedcmi(**options)


def test_a_fusion_that_does_not_separate_has_no_own_share():
    method = fc.methods.fedcmi(teacher="fused_without_student")
    with pytest.raises(ValueError, match="teacher: 'fused_without_student' needs"):
        algorithm(method, model(fusion="film"))
