"""The guard: its ring, whom it sets aside, and that it changes nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import attacks, guard
from fedcmi_jax.experiment import checkpoint
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.presets import preset
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    assert_equal,
    federation,
    model,
    plain,
)


def ring(values, steps=1.0, factor=10.0):
    """A guard that has seen clients with these norms of parameters."""
    norms = jnp.stack([jnp.array(values), jnp.zeros(len(values))], 1)
    seen = jnp.ones(len(values), bool)
    steps = jnp.full(len(values), steps)
    return guard.remember(guard.start(factor), norms, steps, seen)


def test_it_is_inactive_below_twenty_values():
    assert guard.reach(ring([1.0] * 19)).norm.tolist() == [np.inf, np.inf]
    limits = guard.reach(ring([1.0] * 10 + [3.0] * 10))
    assert limits.norm.tolist() == [10.0, np.inf]  # the lower median; no statistics


def test_a_client_is_judged_by_the_wider_of_whole_and_step():
    limits = guard.reach(ring([2.0] * 20, steps=4.0))
    norms = jnp.array([[21.0, 0.0], [21.0, 0.0], [19.0, 0.0]])
    assert guard.is_beyond(limits, norms, jnp.array([1, 5, 1])).tolist() == [
        *(True, False, False)
    ]


def test_statistics_are_judged_apart():
    norms = jnp.tile(jnp.array([[1.0, 0.1]]), (20, 1))
    full = guard.remember(guard.start(10.0), norms, jnp.ones(20), jnp.ones(20, bool))
    beyond = guard.is_beyond(guard.reach(full), jnp.array([1.0, 1.1]), jnp.array(1))
    assert bool(beyond)


def test_infinity_is_off():
    limits = guard.reach(ring([1.0] * 30, factor=jnp.inf))
    assert not bool(guard.is_beyond(limits, jnp.array([1e30, 0.0]), jnp.array(1)))


def test_the_ring_keeps_the_newest_of_those_who_count():
    full = ring(np.arange(1.0, guard.CAPACITY + 1.0))
    norms = jnp.array([[7.0, 0.0], [8.0, 0.0], [9.0, 0.0]])
    took = jnp.array([True, False, True])
    after = guard.remember(full, norms, jnp.array([2, 2, 0]), took)
    assert int(after.total) == guard.CAPACITY + 1
    assert after.norms[:2, 0].tolist() == [7.0, 2.0]
    # More at once than it holds.
    many = jnp.tile(jnp.array([[5.0, 0.0]]), (guard.CAPACITY + 9, 1))
    ones = jnp.ones(len(many))
    over = guard.remember(guard.start(10.0), many, ones, ones > 0)
    assert float(over.norms[:, 0].min()) == 5.0


def test_a_new_ring_judges_a_round_by_itself():
    norms = jnp.array([[1.0, 0.0], [1.2, 0.0], [50.0, 0.0]])
    steps, accepted = jnp.ones(3), jnp.ones(3, bool)
    foul = guard.is_foul(guard.start(10.0), norms, steps, accepted)
    assert foul.tolist() == [False, False, True]
    assert not guard.is_foul(ring([1.0] * 20), norms, steps, accepted).any()
    assert not guard.is_foul(guard.start(jnp.inf), norms, steps, accepted).any()


@pytest.fixture(scope="module")
def attacked():
    """Everybody in every round, one of five sends 100,000-fold; the guard on."""
    problem = algorithm(
        fc.methods.scaffold(),
        model("classifier"),
        attack=attacks.scale(fraction=0.2, factor=1e5),
        rounds_per_call=12,
    )
    return problem, jax.jit(problem.init)(jax.random.key(0), federation())


@pytest.mark.up_to_rounding
def test_a_scaled_client_is_set_aside_and_named(attacked):
    """First with its whole round, then, as the ring is full, alone."""
    problem, start = attacked
    (bad,) = np.flatnonzero(
        attacks.attackers(
            attacks.scale(),
            jax.random.fold_in(start.key, fc.cohort.KEYS.index("attack")),
            len(SIZES),
        )
    )
    state, infos = problem.run(jax.tree.map(jnp.copy, start), federation(), 12)
    first = 4  # rounds of five until there are twenty values
    assert np.asarray(infos.skipped).tolist() == [True] * first + [False] * 8
    for i in range(12):
        aside = np.asarray(infos.cohort[i])[np.asarray(infos.set_aside[i])]
        assert aside.tolist() == [bad], i
    assert np.asarray(infos.rejected).tolist() == [5] * first + [1] * 8
    assert float(guard.l2_norm(state.params)) < 10 * float(guard.l2_norm(start.params))
    # Its memory is what it was when it was first set aside alone.
    before, _ = problem.run(jax.tree.map(jnp.copy, start), federation(), first)
    assert_equal(
        jax.tree.map(lambda x: x[bad], state.memory),
        jax.tree.map(lambda x: x[bad], before.memory),
    )


@pytest.mark.up_to_rounding
def test_on_and_off_are_one_program(attacked):
    problem, start = attacked
    traces = problem.run._cache_size()
    off = start._replace(guard=start.guard._replace(factor=jnp.float32(jnp.inf)))
    state, infos = problem.run(jax.tree.map(jnp.copy, off), federation(), 3)
    assert not infos.set_aside.any()
    assert float(guard.l2_norm(state.params)) > 10 * float(guard.l2_norm(start.params))
    assert problem.run._cache_size() == max(traces, 1)


def test_a_checkpoint_from_before_there_was_a_guard_goes_on_without(attacked, tmp_path):
    _, state = attacked
    checkpoint.save(tmp_path, state._replace(guard=()))
    like = jax.eval_shape(lambda: state)
    found = checkpoint.restore(tmp_path, like).state
    assert_equal(found._replace(guard=()), state._replace(guard=()))
    assert_equal(found.guard, guard.start(jnp.inf))
    assert jax.tree.structure(found) == jax.tree.structure(state)


def test_a_factor_that_would_set_aside_the_middle_is_refused():
    for factor in (1.0, float("nan"), -3.0):
        with pytest.raises(ValueError, match="guard_factor: .* is not above 1; try 30"):
            algorithm(fc.methods.fedavg(), model("classifier"), guard_factor=factor)


def test_clients_without_samples_do_not_enter_the_ring():
    fed = dataclasses.replace(federation(), sizes=jnp.array([9, 5, 12, 7, 0]))
    problem = algorithm(fc.methods.scaffold(), model("classifier"))
    shapes = jax.eval_shape(problem.init, jax.random.key(0), fed)
    assert shapes.guard.norms.shape == (guard.CAPACITY, 2)
    took = guard.remember(
        guard.start(10.0), jnp.ones((2, 2)), jnp.array([0, 3]), jnp.ones(2, bool)
    )
    assert int(took.total) == 1
    assert plain(took).steps[0] == 3


@pytest.mark.shipped_flags
@pytest.mark.slow
@pytest.mark.parametrize("name", ["noisy-digits", "synthetic"])
def test_a_clean_preset_sets_nobody_aside_and_keeps_its_bits(name):
    """Twelve rounds, of which eight after the ring has twenty values."""
    config = dataclasses.replace(preset(name), rounds_per_call=12, rounds=12)
    experiment = build(config)
    init = jax.jit(experiment.algorithm.init)
    states = []
    for factor in (guard.FACTOR, np.inf):
        state = init(experiment.key, experiment.federation)
        state = state._replace(guard=state.guard._replace(factor=jnp.float32(factor)))
        state, infos = experiment.algorithm.run(state, experiment.federation, 12)
        assert infos.accepted.all()
        assert not infos.set_aside.any()
        assert not infos.skipped.any()
        states.append(state)
    assert int(states[0].guard.total) >= 60
    assert_equal(states[0].params, states[1].params)
    assert_equal(states[0].memory, states[1].memory)
