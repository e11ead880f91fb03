"""What every registered method must satisfy; some checks of some of them are quick."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import testing
from fedcmi_jax.testing.problem import (
    algorithm,
    all_equal,
    assert_close,
    federation,
    plain,
    rounds,
)

pytestmark = pytest.mark.up_to_rounding

VARIANTS = {name: factory() for name, factory in fc.methods.REGISTRY.items()}
SLOW_VARIANTS = {
    "fedcmi personal": fc.methods.fedcmi(personal_infiltration=True),
    "fedcmi server": fc.methods.fedcmi(dominance="server"),
    "fedogm+fedprox": fc.chain(fc.methods.fedogm(), fc.methods.fedprox(mu=0.1)),
}

QUICK = (
    *("fedavg", "scaffold", "feddyn", "fedrep", "fedpmr"),
    *("fedagm", "fedmsplit", "power_of_choice", "fedcmi"),
)
"""Methods that use every hook between them. The quick part of tests/exactness has the
others, so that each is met once."""

WHOLE = ("scaffold", "power_of_choice")
"""One with memory and one that selects: all checks of them are quick."""

OWN_PROGRAM = (
    "chunks_and_padding_change_nothing",
    "clients_outside_the_cohort_keep_their_memory",
)
"""Checks that compile a program which the others do not share."""


def methods(quick):
    """All of them, of which these are quick."""
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow)
        for name in (*VARIANTS, *SLOW_VARIANTS)
    ]


@pytest.fixture(params=methods(QUICK), ids=str, scope="module")
def method(request):
    """Module scope: all tests of one method run together and share its programs."""
    yield request.param
    case.cache_clear()
    jax.clear_caches()


@functools.cache
def case(name):
    return testing.Case((VARIANTS | SLOW_VARIANTS)[name])


@pytest.mark.shipped_flags  # resumed runs, among others, are equal as they are shipped
@pytest.mark.parametrize("check", sorted(set(testing.CHECKS) - set(OWN_PROGRAM)))
def test_conformance(method, check):
    testing.CHECKS[check](case(method))


OF_WHOLE = pytest.mark.parametrize(
    "method", methods(WHOLE), indirect=True, scope="module"
)


@OF_WHOLE
def test_clients_outside_the_cohort_keep_their_memory(method):
    testing.CHECKS["clients_outside_the_cohort_keep_their_memory"](case(method))


@OF_WHOLE
def test_switched_on_is_not_fedavg(method):
    if method == "fedavg":
        return
    projectors = case(method).method.needs_projectors
    ours, _ = case(method).round_of_some(2)
    theirs, _ = plain_fedavg(needs_projectors=projectors).round_of_some(2)
    with pytest.raises(AssertionError):
        assert_close(ours.params, theirs.params)


@functools.cache
def plain_fedavg(needs_projectors):
    return testing.Case(fc.Method(needs_projectors=needs_projectors))


@pytest.mark.slow
def test_all_methods_see_the_same_cohorts(method):
    if case(method).method.select:
        pytest.skip("it chooses its own")
    _, ours = case(method).round_of_some()
    _, theirs = plain_fedavg(needs_projectors=False).round_of_some()
    np.testing.assert_array_equal(ours.cohort, theirs.cohort)


@OF_WHOLE
def test_chunks_and_padding_change_nothing(method):
    testing.CHECKS["chunks_and_padding_change_nothing"](case(method))


@pytest.mark.slow
def test_jit_equals_no_jit(method):
    of_some = case(method).some
    plain_run, _ = rounds(of_some, federation(), 1, step=of_some.round)
    assert_close(plain_run, case(method).round_of_some()[0])


@pytest.mark.slow
def test_seeds_by_vmap(method):
    problem = algorithm(case(method).method, case(method).model)
    fed = federation()
    keys = [jax.random.key(seed) for seed in (3, 0)]
    states = [problem.init(key, fed) for key in keys]
    states = jax.tree.map(lambda *x: jnp.stack(x), *states)
    step = jax.jit(jax.vmap(problem.round, in_axes=(0, None)))
    for _ in range(2):
        states, infos = step(states, fed)
    one, info = case(method).two_rounds
    assert_close(jax.tree.map(lambda x: x[1], states), one)
    np.testing.assert_array_equal(infos.cohort[1], info.cohort)
    assert not all_equal(
        jax.tree.map(lambda x: x[0], states.params),
        jax.tree.map(lambda x: x[1], states.params),
    )


@pytest.mark.slow
def test_composes_with_the_proximal_term_and_a_server_optimizer(method):
    own = case(method).method
    both = fc.chain(own, fc.methods.proximal(0.5))
    optimizer = optax.adam(0.01)
    if own.server_update is not None:
        with pytest.raises(ValueError, match=f"server_optimizer.*{own.name}.*its own"):
            algorithm(both, server_optimizer=optimizer)
        optimizer = None
    problem = algorithm(both, case(method).model, server_optimizer=optimizer)
    state, info = rounds(problem, federation())
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(plain(state)))
    with pytest.raises(AssertionError):
        assert_close(state.params, case(method).two_rounds[0].params)
