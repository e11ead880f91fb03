import functools

import pytest

import fedcmi_jax as fc
from tests.exactness.infiltration import FedCMI
from tests.exactness.problem import CLEARLY, Problem, apart, assert_close
from tests.marks import slow

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

NUMBERS = {"lam": 1.0, "beta": 2.0, "gamma": 2.0, "mu": 0.01}
"""Of the methods' coefficients one program takes any value."""


@functools.cache
def problem(*static) -> Problem:
    return Problem(fc.methods.fedcmi, dict(static))


@functools.cache
def default():
    """The reference's parameters with all options at their defaults."""
    return problem().run(FedCMI, **NUMBERS)[1].params


@pytest.mark.parametrize(
    "numbers",
    [
        {"lam": 3.0},
        {"lam": 0.0},
        {"beta": 0.0},
        {"gamma": 0.0},
        {"gamma": 6.0},
        {"mu": 1.0},
    ],
    ids=str,
)
def test_coefficients(numbers):
    _, theirs = problem().run(FedCMI, **(NUMBERS | numbers))
    assert apart(theirs.params, default()) > CLEARLY


def test_momentum_zero():
    problem().run(FedCMI, momentum=0.0, **NUMBERS)


@pytest.mark.parametrize(
    "static",
    [
        slow({"dominance": "batch_global", "on_disagreement": "neutral"}),
        slow({"dominance": "round_global"}),
        slow({"dominance": "batch_global"}),
        slow({"dominance": "server"}),
        slow({"dominance": "server", "ratio_mean": "geometric"}),
        slow({"on_disagreement": "neutral"}),
        slow({"ratio_mean": "geometric"}),
        slow({"min_temperature": 0.7}),
        slow({"temperature": "fixed", "fixed_temperature": 2.0}),
        slow({"temperature": "none"}),
        slow({"temperature": "weights", "fixed_temperature": 2.0}),
        slow({"temperature": "weights", "on_disagreement": "neutral"}),
        slow({"mu": 0.0}),
        slow({"teacher": "local"}),
        slow({"student": "self"}),
        slow({"direction": "to_strong"}),
        slow({"direction": "both"}),
        slow({"warmup_rounds": 0}),
        slow({"warmup_rounds": 2}),
        slow({"head_owner_multimodal_only": True}),
        slow({"personal_infiltration": True}),
        slow({"gate": "sample"}),
        slow({"gate": "sample", "direction": "both", "teacher": "local"}),
        slow({"gate": "class", "direction": "both"}),
        slow({"gate": "class", "teacher": "fused"}),
        slow({"lam_scale": "gap", "ratio_mean": "geometric"}),
        slow({"teacher": "fused"}),
        slow({"teacher": "fused_without_student"}),
        slow({"teacher": "fused", "calibration": "temperature", "gate": "sample"}),
        slow({"calibration": "temperature"}),
        slow({"level": "features"}),
        slow({"level": "features", "student": "self", "gate": "sample"}),
    ],
    ids=lambda static: " ".join(map(str, static.values())),
)
def test_options(static):
    different = problem(*static.items())
    state, theirs = different.run(FedCMI)
    assert apart(theirs.params, default()) > CLEARLY
    deployed = different.algorithm(0.9, {}).deploy(state, different.federation)
    assert_close(deployed, theirs.deployed(), "evaluated model")
    different.run(FedCMI, momentum=0.0)


def test_both_directions_occur_and_temperatures_of_the_other_one():
    theirs = problem().run(FedCMI, **NUMBERS)[1]
    assert set(theirs.leads) == {("a", "a"), ("a", "v"), ("v", "a"), ("v", "v")}
