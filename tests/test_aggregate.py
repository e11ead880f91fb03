"""Ownership-weighted means by hand, clipping, server optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import aggregate
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    MODALITIES,
    SIZES,
    algorithm,
    assert_close,
    assert_equal,
    compiled,
    federation,
    model,
    poison,
    rounds,
)

PARAMS = {"encoder": {"a": jnp.array([1.0]), "v": jnp.array([2.0])}}


def sums_of(deltas, owns, sizes, accepted=None):
    """Sums over clients of {"encoder": {"a", "v"}} updates."""
    accepted = accepted or [True] * len(sizes)
    total = None
    for delta, own, size, ok in zip(deltas, owns, sizes, accepted, strict=True):
        sums = aggregate.client_sums(
            {"encoder": {"a": jnp.array([delta[0]]), "v": jnp.array([delta[1]])}},
            {},
            {"encoder": {"a": jnp.array(own[0]), "v": jnp.array(own[1])}},
            jnp.array(1.0 * size),
            jnp.array(size),
            (),
            {},
            jnp.array(ok),
        )
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return total


def test_weighted_mean_over_owners_by_hand():
    sums = sums_of([(1.0, 5.0), (4.0, 7.0)], [(1.0, 0.0), (1.0, 0.0)], [10, 30])
    delta = aggregate.mean_delta(sums.deltas, sums.weights)
    some = sums.num_accepted > 0
    new, _ = aggregate.optimizer_step(PARAMS, delta, sums.weights, None, (), some)
    np.testing.assert_allclose(new["encoder"]["a"], [1 + (10 + 120) / 40])
    np.testing.assert_array_equal(new["encoder"]["v"], [2.0])


def test_a_rejected_client_leaves_no_trace():
    bad = sums_of(
        [(1.0, 1.0), (jnp.nan, jnp.inf)], [(1.0, 1.0)] * 2, [10, 30], [True, False]
    )
    good = sums_of([(1.0, 1.0)], [(1.0, 1.0)], [10])
    jax.tree.map(np.testing.assert_array_equal, bad, good)


def test_all_finite():
    assert bool(aggregate.all_finite({"a": jnp.ones(3), "n": jnp.arange(3)}))
    assert not bool(aggregate.all_finite({"a": jnp.array([1.0, jnp.inf])}))
    assert not bool(aggregate.all_finite((jnp.ones(2), jnp.array(jnp.nan))))


def test_clipping_counts_own_blocks_only():
    delta = {"a": jnp.array([3.0, 4.0]), "v": jnp.array([100.0])}
    owned = {"a": jnp.array(1.0), "v": jnp.array(0.0)}
    clipped = aggregate.clip_by_norm(delta, owned, 1.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    small = aggregate.clip_by_norm(delta, owned, 10.0)
    np.testing.assert_array_equal(small["a"], delta["a"])


def test_clipping_bounds_the_round():
    problem = algorithm(fc.methods.fedavg(), model("classifier"), clip_norm=1e-3)
    start = problem.init(jax.random.key(0), federation())
    state, _ = rounds(problem, federation(), 1)
    moved = jax.tree.map(jnp.subtract, state.params, start.params)
    # The mean over owners of updates of norm <= c, block by block.
    assert 0 < float(optax.tree.norm(moved)) <= 1e-3 * np.sqrt(2) * 1.01


def from_table(client, context):
    """A client's weight in the table that the test put into the state; sizes differ."""
    place = jnp.argmax(client.data.federation.sizes == client.data.num_examples)
    return client.shared[place]


WEIGHTED = fc.Method(
    init=lambda model, params, n: (jnp.zeros(n), ()), weight=from_table
)


def weighted_round(weights):
    """A round of ``WEIGHTED``: its start, its end and its info."""
    problem = small(WEIGHTED)
    start = problem.init(jax.random.key(0), federation())
    start = start._replace(shared=jnp.array(weights, jnp.float32))
    return start, *compiled(problem)(start, federation())


@functools.cache
def small(method):
    return algorithm(method, model("classifier"))


@functools.cache
def trained_alone():
    """Every client's parameters, leaves [N, ...], after one round from w_G."""
    ends = [weighted_round(np.eye(len(SIZES))[i])[1].params for i in range(len(SIZES))]
    return jax.tree.map(lambda *x: np.stack(x), *ends)


@pytest.mark.parametrize(
    "weights",
    [SIZES, (1, 1, 1, 1, 1), 1 / np.array(SIZES), (1, 1, 0, 1, 1)],
    ids=["n_i", "uniform", "inverse", "zero"],
)
def test_weights_of_the_mean_by_hand(weights):
    start, end, info = weighted_round(weights)
    owned = {m: np.array(AVAILABLE)[:, i] for i, m in enumerate(MODALITIES)}
    for kind, blocks in end.params.items():
        for name, block in blocks.items():
            p = np.array(weights, float) * owned.get(name, 1)

            def mean(old, new, p=p):
                return old + np.tensordot(p, new - np.asarray(old), 1) / p.sum()

            alone = trained_alone()[kind][name]
            assert_close(block, jax.tree.map(mean, start.params[kind][name], alone))
    assert bool(info.accepted.all())
    assert float(info.num_examples) == sum(SIZES)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_a_client_that_is_not_accepted(bad):
    _, end, info = weighted_round((1, 1, bad, 1, 1))
    assert_equal(end.params, weighted_round((1, 1, 0, 1, 1))[1].params)
    assert np.asarray(info.cohort)[~np.asarray(info.accepted)].tolist() == [2]
    assert float(info.num_examples) == sum(SIZES) - SIZES[2]


def test_nobody_of_weight_leaves_the_model():
    start, end, _ = weighted_round((0, 0, 0, 0, 0))
    assert_equal(end.params, start.params)


def test_the_default_weight_is_the_number_of_samples():
    plain, _ = rounds(small(fc.methods.fedavg()), federation(), 1)
    assert_close(plain.params, weighted_round(SIZES)[1].params, rtol=1e-6, atol=1e-7)


def test_one_weight_in_a_chain():
    one = fc.Method(name="one", weight=lambda client, context: client.memory + 1.0)
    proximal = fc.methods.proximal(0.1)
    with pytest.raises(ValueError, match="one weight in the mean"):
        fc.chain(one, fc.chain(proximal, one))
    client = fc.methods.Client(None, {}, {}, ((), ()), (1.0, 2.0), None, None, None, 1)
    assert fc.chain(one, proximal).weight(client, ((), ())) == 2.0
    assert fc.chain(proximal, one).weight(client, ((), ())) == 3.0
    assert "weight" in fc.methods.hooks(fc.chain(one, proximal))
    assert "weight" not in fc.methods.hooks(fc.chain(proximal, proximal))


def test_bad_clip_norm():
    with pytest.raises(ValueError, match="clip_norm: 0.0 is not positive"):
        algorithm(fc.methods.fedavg(), clip_norm=0.0)


def with_server(optimizer):
    return algorithm(
        fc.methods.fedavg(), model("classifier"), server_optimizer=optimizer
    )


def test_server_sgd_with_rate_one_is_plain_averaging():
    plain, _ = rounds(small(fc.methods.fedavg()), federation())
    server, _ = rounds(with_server(optax.sgd(1.0)), federation())
    assert_close(plain.params, server.params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.01), pytest.param(optax.yogi(0.01), marks=pytest.mark.slow)],
)
def test_server_optimizer_leaves_unowned_blocks(optimizer):
    table = np.array([[1, 0]] * 5, bool)
    fed = federation(table)
    problem = with_server(optimizer)
    start = problem.init(jax.random.key(0), fed)
    state, _ = rounds(problem, fed)
    absent = fed.modalities[1]
    jax.tree.map(
        np.testing.assert_array_equal,
        state.params["encoder"][absent],
        start.params["encoder"][absent],
    )
    assert bool((state.params["fusion"]["out"]["bias"] != 0).any())


def test_poisoned_round_leaves_the_server_optimizer():
    fed = federation()
    for client in range(5):
        fed = poison(fed, client)
    problem = with_server(optax.adam(0.01))
    start = problem.init(jax.random.key(0), fed)
    state, _ = rounds(problem, fed, 1)
    jax.tree.map(
        np.testing.assert_array_equal, state.server_optimizer, start.server_optimizer
    )
