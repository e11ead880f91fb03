"""Methods that equal FedAvg when switched off, other models, and what composes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import testing
from fedcmi_jax.methods import compose
from fedcmi_jax.methods.base import is_set
from fedcmi_jax.server import in_order
from fedcmi_jax.setup import Setup
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    SIZES,
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    rounds,
)
from tests.conformance.test_methods import SLOW_VARIANTS, VARIANTS

OFF_SWITCHES = {
    "fedprox": {"mu": 0.0},
    "scaffold": {"variate_scale": 0.0, "momentum": 0.9},
    "qfedavg": {"q": 0.0},
    "fedper": {"personal": ()},
    "fedrep": {"personal": (), "head_share": 0.0},
    "moon": {"mu": 0.0},
    "fedproto": {"lam": 0.0},
    "fedogm": {"alpha": 0.0, "ge": False},
    "fedpmr": {"alpha": 0.0},
    "fedagm": {"alpha": 0.0, "clip": False},
    "power_of_choice": {"candidates": 3, "draw": "uniform", "average": "by_size"},
    "bmsfed": {"alpha": 0.0, "selection": "uniform"},
    "fedcmi": {"mu": 0.0, "lam": 0.0, "beta": 0.0},
}
"""Options that turn a method into FedAvg on the same model."""

UNIFORM = ("qfedavg",)
"""Switched off, these equal FedAvg with the same weight for every client."""

FEDAVG_AT_FIRST = ("fedmsplit", "scaffold")
"""Methods that differ from FedAvg (with their momentum) from the second round on."""

OF_THEIR_OWN = ("feddyn", "fednova")
"""Methods without a value that equals FedAvg; FedNova does for clients of one size."""

QUICK_SWITCHES = ("fedprox",)
"""The others take longer to compile."""


def test_every_method_is_covered_by_an_off_switch():
    known = set(OFF_SWITCHES) | set(FEDAVG_AT_FIRST) | set(OF_THEIR_OWN)
    assert known == set(fc.methods.REGISTRY) - {"fedavg"}


@pytest.mark.shipped_flags
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_SWITCHES else pytest.mark.slow)
        for name in OFF_SWITCHES
    ],
)
def test_switched_off_is_fedavg_exactly(name):
    off = fc.methods.REGISTRY[name](**OFF_SWITCHES[name])
    testing.check_off_switch(off, uniform=name in UNIFORM)


@pytest.mark.shipped_flags
@pytest.mark.parametrize(
    "name", ["fedmsplit", pytest.param("scaffold", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_first_round_is_fedavg_exactly(name):
    ours = VARIANTS[name]
    theirs = VARIANTS["fedavg"]._replace(momentum=ours.momentum)
    a, _ = testing.Case(ours, model()).round_of_some()
    b, _ = testing.Case(theirs, model()).round_of_some()
    assert_equal(a.params, b.params)


@pytest.mark.slow
def test_fednova_is_fedavg_where_all_take_as_many_steps():
    sizes = jnp.array([8, 7, 6, 5, 8], jnp.int32)
    fed = dataclasses.replace(federation(), sizes=sizes, offsets=6 * jnp.arange(5))
    ours, theirs = (
        rounds(algorithm(method, model("classifier")), fed)[0]
        for method in (fc.methods.fednova(), fc.methods.fedavg())
    )
    assert_close(ours.params, theirs.params)


def test_cohort_order_changes_nothing():
    """All that follows sees the clients in one order, whatever a method selects."""
    fed = federation()
    setup = Setup(fc.Method(), model(), 5, fc.LocalTraining(batch_size=4))
    orders = ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1])
    a, b = (
        in_order(setup, fed, jnp.array(ids, jnp.int32), fed.available[jnp.array(ids)])
        for ids in orders
    )
    assert_equal(a, b)
    # 12, 9, 7, 5 and 1 samples in batches of 4.
    assert a[0].tolist() == [0, 2, 1, 3, 4]
    assert a[2].tolist() == [3, 3, 2, 2, 1]


def refused(method, net) -> str:
    """Why a method does not take a model; empty if it does."""
    try:
        method.check(net, 3)
    except ValueError as error:
        return str(error)
    return ""


THREE_MODALITIES = ("fedogm", "fedcmi")
"""Whose hooks run over modalities, as those of few others do."""

OTHER_MODELS = [
    pytest.param(
        name,
        fusion,
        marks=()
        if fusion == "concat" and name in THREE_MODALITIES
        else pytest.mark.slow,
    )
    for name in (*VARIANTS, *SLOW_VARIANTS)
    for fusion in ("concat", "sum", "film")
]


@pytest.mark.up_to_rounding
@pytest.mark.parametrize(("name", "fusion"), OTHER_MODELS)
def test_other_models_run_or_are_refused_in_one_line(name, fusion):
    method = (VARIANTS | SLOW_VARIANTS)[name]
    modalities = ("b", "c", "a") if fusion != "film" else ("zeta", "alpha")
    table = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    if fusion == "film":
        table = table[:, :2] | (table.sum(1, keepdims=True) == 1)
    kind = "two_projector" if method.needs_projectors else "classifier"
    net = model(kind, modalities, fusion)
    if refusal := refused(method, net):
        assert "choose" in refusal
        assert "\n" not in refusal
        return
    problem = algorithm(method, net, clients_per_round=3)
    state, info = rounds(problem, federation(table, modalities), 1)
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("power_of_choice", "bmsfed", "one cohort per round"),
        ("fedagm", "fedagm", "one forward pass per step"),
        ("fedmsplit", "fedmsplit", "starts from one set of parameters"),
        ("fednova", "feddyn", "one weight in the mean"),
    ],
)
def test_pairs_that_do_not_compose_say_why(first, second, why):
    with pytest.raises(ValueError, match=why):
        fc.chain(VARIANTS[first], VARIANTS[second])


@pytest.mark.parametrize("name", ["fedmsplit", "power_of_choice", "fedagm", "feddyn"])
def test_a_chain_replaces_only_what_its_parts_do(name):
    proximal = fc.methods.proximal(0.1)
    both = fc.chain(fc.chain(proximal, proximal), VARIANTS[name])
    exclusive = compose.EXCLUSIVE
    assert {h for h in exclusive if is_set(both, h)} == {
        h for h in exclusive if is_set(VARIANTS[name], h)
    }


def test_different_momenta_do_not_compose():
    with pytest.raises(ValueError, match="give both the same"):
        fc.chain(fc.methods.scaffold(), fc.methods.scaffold(momentum=0.5))


def test_a_method_with_a_server_step_takes_no_server_optimizer():
    with pytest.raises(ValueError, match="'fednova' has a server step of its own"):
        algorithm(fc.methods.fednova(), server_optimizer=optax.adam(0.01))


def test_personal_blocks_must_be_the_models():
    problem = algorithm(fc.methods.fedper(personal=("tail",)))
    with pytest.raises(ValueError, match="no 'tail' blocks.*choose from"):
        problem.init(jax.random.key(0), federation())


def test_a_bare_array_is_no_upload():
    method = fc.Method(finish=lambda client, end, context: (jnp.ones(()), ()))
    with pytest.raises(ValueError, match="wrap it in methods.Mean"):
        rounds(algorithm(method), federation(), 1)


def test_the_table_has_unimodal_clients():
    assert {sum(row) for row in AVAILABLE} == {1, 2}
    assert len(SIZES) == len(AVAILABLE)
