"""What every registered method must satisfy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax.experiment import checkpoint
from fedcmi_jax.methods.base import is_set
from tests.problems import (
    AVAILABLE,
    SIZES,
    algorithm,
    assert_close,
    assert_equal,
    compiled,
    dataset,
    federation,
    model,
    parts,
    plain,
    poison,
    rounds,
    shared_algorithm,
)

VARIANTS = {name: factory() for name, factory in fc.methods.REGISTRY.items()}
SLOW_VARIANTS = {
    "fedcmi personal": fc.methods.fedcmi(personal_infiltration=True),
    "fedcmi server": fc.methods.fedcmi(dominance="server"),
    "fedogm+fedprox": fc.chain(fc.methods.fedogm(), fc.methods.fedprox(mu=0.1)),
}

OFF_SWITCHES = {
    "fedprox": {"mu": 0.0},
    "scaffold": {"variate_scale": 0.0, "momentum": 0.9},
    "fedproto": {"lam": 0.0},
    "fedogm": {"alpha": 0.0, "ge": False},
    "fedpmr": {"alpha": 0.0},
    "fedagm": {"alpha": 0.0, "clip": False},
    "power_of_choice": {"candidates": 3, "draw": "uniform", "average": "by_size"},
    "bmsfed": {"alpha": 0.0, "selection": "uniform"},
    "fedcmi": {"mu": 0.0, "lam": 0.0, "beta": 0.0},
}
"""Options that turn a method into FedAvg on the same model."""

FEDAVG_AT_FIRST = ("fedmsplit", "scaffold")
"""Methods that differ from FedAvg (with their momentum) from the second round on."""


@pytest.fixture(
    params=[
        *VARIANTS,
        *(pytest.param(v, marks=pytest.mark.slow) for v in SLOW_VARIANTS),
    ],
    ids=str,
    scope="module",
)
def method(request):
    """Module scope: all tests of one method run together and share its programs."""
    yield (VARIANTS | SLOW_VARIANTS)[request.param]
    for cached in (two_rounds, two_of_five, shared_algorithm, compiled):
        cached.cache_clear()
    jax.clear_caches()


@functools.cache
def two_rounds(method, **options):
    """Two compiled rounds, one client at a time; everybody by default."""
    return rounds(shared_algorithm(method, **options), federation())


def test_every_method_is_covered_by_an_off_switch():
    known = set(OFF_SWITCHES) | set(FEDAVG_AT_FIRST)
    assert known == set(fc.methods.REGISTRY) - {"fedavg"}


@pytest.mark.parametrize("name", OFF_SWITCHES)
def test_switched_off_is_fedavg_exactly(name):
    off = fc.methods.REGISTRY[name](**OFF_SWITCHES[name])
    ours, info = two_rounds(off, clients_per_round=3)
    theirs, their_info = two_rounds(VARIANTS["fedavg"], clients_per_round=3)
    np.testing.assert_array_equal(info.cohort, their_info.cohort)
    assert_equal(ours.params, theirs.params)
    assert_equal(ours.batch_stats, theirs.batch_stats)


@pytest.mark.parametrize("name", FEDAVG_AT_FIRST)
def test_the_first_round_is_fedavg_exactly(name):
    ours = VARIANTS[name]
    theirs = VARIANTS["fedavg"]._replace(momentum=ours.momentum)
    fed = federation()
    a, _ = rounds(shared_algorithm(ours), fed, 1)
    b, _ = rounds(shared_algorithm(theirs), fed, 1)
    assert_equal(a.params, b.params)


@pytest.mark.parametrize("name", sorted(set(fc.methods.REGISTRY) - {"fedavg"}))
def test_switched_on_is_not_fedavg(name):
    # A method that chooses clients shows where not everybody is chosen.
    cohort = {"clients_per_round": 3} if VARIANTS[name].select else {}
    ours, _ = two_rounds(VARIANTS[name], **cohort)
    theirs, _ = two_rounds(VARIANTS["fedavg"], **cohort)
    leaves = zip(
        jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True
    )
    assert any(bool((a != b).any()) for a, b in leaves)


def test_state_keeps_its_structure(method):
    problem = shared_algorithm(method)
    start = problem.init(jax.random.key(0), federation())
    state, info = two_rounds(method)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for before, after in zip(
        jax.tree.leaves(start), jax.tree.leaves(state), strict=True
    ):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert info.cohort.shape == (len(SIZES),)
    assert int(info.rejected) == 0
    assert float(info.num_examples) == sum(SIZES)


def test_one_trace_for_any_number_of_rounds_and_scan_equals_loop(method):
    """Exactly in one program, up to rounding against the round compiled alone."""
    problem = algorithm(method, rounds_per_call=2)
    fed = federation()
    scanned, infos = problem.run(problem.init(jax.random.key(0), fed), fed, 2)
    assert np.asarray(infos.accepted).any(1).sum() == 2
    looped = problem.init(jax.random.key(0), fed)
    for i in range(2):
        looped, info = problem.run(looped, fed, 1)
        assert np.asarray(info.accepted).any(1).sum() == 1
        assert_equal(
            jax.tree.map(lambda x, i=i: x[i], infos), jax.tree.map(lambda x: x[0], info)
        )
    assert_equal(scanned, looped)
    assert_close(scanned, two_rounds(method)[0])
    assert problem.run._cache_size() == 1


def test_resumed_from_a_checkpoint_is_the_same_to_the_bit(method, tmp_path):
    problem, fed = shared_algorithm(method), federation()
    once, _ = rounds(problem, fed, 1)
    checkpoint.save(tmp_path, once)
    like = problem.init(jax.random.key(1), fed)
    restored = checkpoint.restore(tmp_path, like).state
    assert_equal(compiled(problem)(restored, fed)[0], two_rounds(method)[0])


@pytest.mark.slow
def test_jit_equals_no_jit(method):
    problem = algorithm(method, clients_per_round=2)
    plain_run, _ = rounds(problem, federation(), 1, jit=False)
    assert_close(plain_run, two_of_five(method)[0])


def test_chunks_and_padded_samples_change_nothing(method):
    one, info = two_rounds(method)
    fed = federation()
    padded = dataclasses.replace(fed, max_size=fed.max_size + 13)
    many, chunked = rounds(algorithm(method, chunk_size=2), padded)
    assert_close(many, one)
    assert_close(chunked.metrics, info.metrics)
    np.testing.assert_array_equal(chunked.cohort, info.cohort)


def test_cohort_order_changes_nothing(method):
    @jax.jit
    def one_round(order):
        def select(server, key):
            return order, fed.available[order]

        problem = algorithm(method._replace(select=select))
        return problem.round(problem.init(jax.random.key(0), fed), fed)[0]

    fed = federation()
    a = one_round(jnp.array([0, 1, 2, 3, 4], jnp.int32))
    b = one_round(jnp.array([3, 0, 4, 2, 1], jnp.int32))
    assert_equal(a, b)


@pytest.mark.slow
def test_all_methods_see_the_same_cohorts(method):
    if method.select:
        pytest.skip("it chooses its own")
    _, ours = two_of_five(method)
    _, theirs = two_of_five(VARIANTS["fedavg"])
    np.testing.assert_array_equal(ours.cohort, theirs.cohort)


@functools.cache
def two_of_five(method):
    return rounds(shared_algorithm(method, clients_per_round=2), federation(), 1)


def test_clients_outside_the_cohort_keep_their_memory(method):
    problem, fed = shared_algorithm(method, clients_per_round=2), federation()
    if not jax.tree.leaves(problem.init(jax.random.key(0), fed).memory):
        pytest.skip("it remembers nothing of a client")
    before, _ = two_of_five(method)
    after, info = compiled(problem)(before, fed)
    outside = np.setdiff1d(np.arange(len(SIZES)), np.asarray(info.cohort))
    assert_equal(
        jax.tree.map(lambda x: x[outside], before.memory),
        jax.tree.map(lambda x: x[outside], after.memory),
    )


@pytest.mark.parametrize("column", [0, 1])
def test_a_modality_nobody_has_stays_as_it_is(method, column):
    table = np.zeros((len(SIZES), 2), bool)
    table[:, column] = True
    problem = shared_algorithm(method)
    fed = federation(table)
    start = problem.init(jax.random.key(0), fed)
    state, _ = rounds(problem, fed)
    absent = fed.modalities[1 - column]
    present = fed.modalities[column]
    for kind, blocks in start.params.items():
        if kind != "fusion":
            assert_equal(state.params[kind][absent], blocks[absent])
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        state.params["encoder"][present],
        start.params["encoder"][present],
    )
    assert all(jax.tree.leaves(changed))


def test_a_class_nobody_has(method):
    fed = federation()
    labels = jnp.where(fed.labels == 3, 0, fed.labels)
    fed = dataclasses.replace(fed, labels=labels)
    state, info = rounds(shared_algorithm(method), fed)
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


def test_a_poisoned_client_is_rejected_and_counted(method):
    fed = federation()
    problem = shared_algorithm(method)
    state, info = rounds(problem, poison(fed, 2), 2)
    assert int(info.rejected) == 1
    assert np.asarray(info.cohort)[~np.asarray(info.accepted)].tolist() == [2]
    assert float(info.num_examples) == sum(SIZES) - SIZES[2]
    finite = [bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(plain(state))]
    assert all(finite)


def test_all_clients_rejected_leaves_the_state(method):
    fed = federation()
    for client in range(len(SIZES)):
        fed = poison(fed, client)
    problem = shared_algorithm(method)
    start = problem.init(jax.random.key(0), fed)
    state, info = rounds(problem, fed, 1)
    assert int(info.rejected) == len(SIZES)
    assert not info.accepted.any()
    assert_equal(state._replace(round=start.round), start)


@pytest.mark.slow
def test_seeds_by_vmap(method):
    problem = shared_algorithm(method)
    fed = federation()
    keys = [jax.random.key(seed) for seed in (3, 0)]
    states = [problem.init(key, fed) for key in keys]
    states = jax.tree.map(lambda *x: jnp.stack(x), *states)
    step = jax.jit(jax.vmap(problem.round, in_axes=(0, None)))
    for _ in range(2):
        states, infos = step(states, fed)
    one, info = two_rounds(method)
    assert_close(jax.tree.map(lambda x: x[1], states), one)
    np.testing.assert_array_equal(infos.cohort[1], info.cohort)
    leaves = jax.tree.leaves(states.params)
    assert any(bool((x[0] != x[1]).any()) for x in leaves)


def refused(method, net) -> str:
    """Why a method does not take a model; empty if it does."""
    try:
        method.check(net, 3)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "fusion",
    ["concat", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sum", "film"))],
)
def test_other_models_run_or_are_refused_in_one_line(method, fusion):
    modalities = ("b", "c", "a") if fusion != "film" else ("zeta", "alpha")
    table = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    if fusion == "film":
        table = table[:, :2] | (table.sum(1, keepdims=True) == 1)
    net = model(modalities=modalities, fusion=fusion)
    if refusal := refused(method, net):
        assert "choose" in refusal
        assert "\n" not in refusal
        return
    problem = algorithm(method, net, clients_per_round=3)
    state, info = rounds(problem, federation(table, modalities), 1)
    assert int(info.rejected) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


def test_what_a_sample_lacks_has_no_effect(method):
    rng = np.random.default_rng(0)
    table = np.array(AVAILABLE, bool)
    present = fc.partition.drop_modalities(
        dataset().train, parts(), table, rng, fraction=0.4
    )
    fed = federation(present=present)
    assert 5 < (present.sum(1) == 1).sum() < 15
    absent = {
        m: (np.asarray(fed.present)[:, i] == 0).reshape(-1, 1)
        for i, m in enumerate(fed.modalities)
    }
    changed = {m: jnp.where(absent[m], x + 100.0, x) for m, x in fed.inputs.items()}
    problem = shared_algorithm(method)
    a, info = rounds(problem, fed)
    b, _ = rounds(problem, dataclasses.replace(fed, inputs=changed))
    assert int(info.rejected) == 0
    assert_equal(a, b)
    whole, _ = two_rounds(method)
    leaves = zip(jax.tree.leaves(a.params), jax.tree.leaves(whole.params), strict=True)
    assert any(bool((x != y).any()) for x, y in leaves)


def test_held_out_samples_are_not_trained_on(method):
    fed = federation(probe_fraction=0.4)
    changed = {}
    held_out = np.zeros(sum(SIZES), bool)
    for offset, size, probes in zip(
        fed.offsets, fed.sizes, fed.probe_sizes, strict=True
    ):
        held_out[int(offset + size) : int(offset + size + probes)] = True
    assert held_out.sum() > 5
    for m, x in fed.inputs.items():
        changed[m] = x.at[held_out].add(100.0)
    if method.name.startswith("fedcmi"):
        pytest.skip("it measures on held-out samples: see test_fedcmi")
    problem = shared_algorithm(method)
    a, _ = rounds(problem, fed)
    b, _ = rounds(problem, dataclasses.replace(fed, inputs=changed))
    assert_equal(a.params, b.params)


@pytest.mark.slow
def test_composes_with_the_proximal_term_and_a_server_optimizer(method):
    both = fc.chain(method, fc.methods.proximal(0.5))
    problem = algorithm(both, server_optimizer=optax.adam(0.01))
    state, info = rounds(problem, federation())
    assert int(info.rejected) == 0
    finite = [bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(plain(state))]
    assert all(finite)
    alone, _ = two_rounds(method)
    leaves = zip(
        jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True
    )
    assert any(bool((a != b).any()) for a, b in leaves)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("power_of_choice", "bmsfed", "one cohort per round"),
        ("fedagm", "fedagm", "one forward pass per step"),
        ("fedmsplit", "fedmsplit", "starts from one set of parameters"),
    ],
)
def test_pairs_that_do_not_compose_say_why(first, second, why):
    with pytest.raises(ValueError, match=why):
        fc.chain(VARIANTS[first], VARIANTS[second])


@pytest.mark.parametrize("name", ["fedmsplit", "power_of_choice", "fedagm"])
def test_a_chain_replaces_only_what_its_parts_do(name):
    proximal = fc.methods.proximal(0.1)
    both = fc.chain(fc.chain(proximal, proximal), VARIANTS[name])
    exclusive = ("forward", "select", "start", "weight")
    assert {h for h in exclusive if is_set(both, h)} == {
        h for h in exclusive if is_set(VARIANTS[name], h)
    }


def test_different_momenta_do_not_compose():
    with pytest.raises(ValueError, match="give both the same"):
        fc.chain(fc.methods.scaffold(), fc.methods.scaffold(momentum=0.5))


def test_the_table_has_unimodal_clients():
    assert {sum(row) for row in AVAILABLE} == {1, 2}
