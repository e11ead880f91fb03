"""Client-level privacy: bound, noise, denominator, cohorts; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import aggregate, aggregators, attacks, cohort, guard, privacy
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    all_equal,
    assert_close,
    assert_equal,
    federation,
    model,
    poison,
    rounds,
)

KEY = jax.random.key(0)
EVERYBODY = np.ones((5, 2), bool)
gaussian = functools.partial(privacy.gaussian, sampling="uniform")


def alike(client, context):
    return jnp.ones(())


BARE = gaussian(noise_multiplier=0.0, clip=1e9)
NOISE = gaussian(noise_multiplier=1e6, clip=1e-6)  # of deviation 1/5 on the mean


@functools.cache
def problem(mechanism):
    """FedAvg under a mechanism; without one, with equal weights and no guard."""
    method = fc.methods.fedavg()._replace(weight=lambda client, context: jnp.ones(()))
    return algorithm(
        method, model("classifier"), privacy=mechanism, guard_factor=np.inf
    )


def moved(mechanism, fed, num_rounds=1):
    """How far parameters moved."""
    start = problem(mechanism).init(KEY, fed)
    state, _ = rounds(problem(mechanism), fed, num_rounds)
    return jax.tree.map(jnp.subtract, state.params, start.params)


def test_without_noise_and_out_of_reach_it_is_the_uniform_mean():
    fed = federation(EVERYBODY)
    assert_equal(moved(BARE, fed, 2), moved(None, fed, 2))


def test_a_block_is_divided_by_the_cohort_not_by_its_owners():
    """Four of five clients have each modality, all five the fusion."""
    ours, mean = moved(BARE, federation()), moved(None, federation())
    assert_close(ours["fusion"], mean["fusion"])
    assert_close(ours["encoder"], jax.tree.map(lambda x: x * 4 / 5, mean["encoder"]))


def test_one_client_changes_the_sum_by_at_most_the_bound():
    """Neighbours: with and without a client whose update would be long."""
    tight = BARE._replace(clip=0.01)
    with_all = moved(tight, federation())
    for client in range(len(SIZES)):  # poisoned: it sends nothing that counts
        without = moved(tight, poison(federation(), client))
        change = guard.l2_norm(jax.tree.map(jnp.subtract, with_all, without))
        assert 0.99 * 0.01 < 5 * float(change) < 1.001 * 0.01


def test_noise_has_its_deviation_in_every_block_and_is_new_in_every_round():
    """Also in the block of a modality that nobody has."""
    fed = federation([[0, 1]] * 5)
    first, both = moved(NOISE, fed), moved(NOISE, fed, 2)
    for block in (first["encoder"]["zeta"], first["encoder"]["alpha"], both["fusion"]):
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(block)])
        rounds_of_noise = 2 if block is both["fusion"] else 1
        assert abs(flat.std() * 5 / rounds_of_noise**0.5 - 1) < 0.35
    assert not all_equal(first["encoder"]["zeta"], first["encoder"]["alpha"])
    second = jax.tree.map(jnp.subtract, both, first)
    assert not np.allclose(*(jax.tree.leaves(x["fusion"])[0] for x in (first, second)))


def test_total_by_hand():
    mechanism = gaussian(noise_multiplier=2.0, clip=3.0)
    zeros = aggregate.client_sums(
        {"a": jnp.zeros(20_000)}, {}, {"a": jnp.zeros(())}, jnp.ones(()),
        jnp.ones(()), (), {}, jnp.array(True),
    )  # fmt: skip
    total = privacy.private_total(mechanism, KEY, jnp.asarray(3.0), zeros, 4, False)
    assert abs(float(total.delta["a"].std()) - 2 * 3 / 4) < 0.03
    assert float(total.weights["a"]) == 1
    frozen = privacy.private_total(mechanism, KEY, jnp.asarray(3.0), zeros, 4, True)
    assert frozen.delta["a"].shape == ()


def test_the_bound_moves_to_the_quantile_by_hand():
    """Three of four are not longer: b = 0.75, C exp(-0.2 (0.75 - 0.5))."""
    mechanism = gaussian(noise_multiplier=0.0, clip=1.0, quantile=0.5)
    norms = jnp.array([0.1, 0.9, 1.0, 5.0, 7.0])
    accepted = jnp.array([1, 1, 1, 1, 0], bool)
    new = privacy.moved(mechanism, KEY, privacy.start(mechanism), norms, accepted, 4)
    np.testing.assert_allclose(new, np.exp(-0.05), rtol=1e-6)


def test_the_count_of_adaptive_clipping_is_noisy():
    """Deviation eta sigma_b / K of log C over keys; z alone would give another."""
    mechanism = gaussian(noise_multiplier=1.0, quantile=0.5, count_deviation=2.0)
    keys = jax.random.split(KEY, 2000)
    logs = jax.vmap(
        lambda key: jnp.log(
            privacy.moved(mechanism, key, jnp.ones(()), jnp.ones(2), jnp.ones(2) > 0, 4)
        )
    )(keys)
    assert abs(float(logs.std()) / (0.2 * 2.0 / 4) - 1) < 0.1


@pytest.mark.slow
def test_an_adapting_bound_follows_the_updates():
    adapting = gaussian(noise_multiplier=0.0, clip=1e3, quantile=0.5, quantile_rate=2.0)
    state, info = rounds(problem(adapting), federation(), 2)
    assert float(info.privacy.clipped) == 0  # far too large still
    np.testing.assert_allclose(state.privacy, 1e3 * np.exp(-2.0), rtol=1e-5)


@pytest.mark.parametrize("n", [40, 4000])
def test_a_poisson_cohort_has_everybody_with_the_same_chance(n):
    class Everybody:
        num_clients, available = n, jnp.ones((n, 2))

    places = privacy.places(privacy.gaussian(noise_multiplier=1.0), n // 10, n)
    draw = jax.jit(lambda key: cohort.poisson_cohort(key, Everybody, 0.1, places))
    ids, use = jax.vmap(draw)(jax.random.split(KEY, 500))
    counts = np.bincount(np.ravel(ids), minlength=n + 1)[:n] / 500
    assert abs(counts.mean() - 0.1) < 0.01
    assert counts.max() < 0.25
    sizes = (np.asarray(ids) < n).sum(1)
    assert abs(sizes.var() / (n * 0.1 * 0.9) - 1) < 0.3
    np.testing.assert_array_equal(use[..., 0] > 0, ids < n)


def test_a_poisson_cohort_of_too_many_is_cut_at_random():
    class Everybody:
        num_clients, available = 8, jnp.ones((8, 2))

    keys = jax.random.split(KEY, 400)
    ids, _ = jax.vmap(lambda k: cohort.poisson_cohort(k, Everybody, 1.0, 3))(keys)
    counts = np.bincount(np.ravel(ids), minlength=9)
    assert counts[8] == 0
    assert abs(counts[:8] / 150 - 1).max() < 0.35


@pytest.mark.slow
def test_an_empty_cohort_moves_the_model_by_its_noise():
    mechanism = privacy.gaussian(noise_multiplier=1.0, clip=1.0)
    fed = federation(EVERYBODY)
    one = algorithm(
        fc.methods.fedavg(), model("classifier"), privacy=mechanism, clients_per_round=1
    )

    def is_empty(seed):
        key = cohort.named_key(jax.random.key(seed), "sampling")
        key = jax.random.fold_in(key, 0)
        places = privacy.places(mechanism, 1, 5)
        return (cohort.poisson_cohort(key, fed, 0.2, places)[0] == 5).all()

    seed = next(filter(is_empty, range(40)))
    state, info = rounds(one, fed, 1, seed=seed)
    assert not info.accepted.any()
    assert int(info.rejected) == 0
    start = one.init(jax.random.key(seed), fed)
    assert not all_equal(state.params, start.params)


REFUSED = {
    "method: 'scaffold' gives": (fc.methods.scaffold, {}),
    "method: 'fedper' gives": (fc.methods.fedper, {}),
    "method: 'power_of_choice' gives": (fc.methods.power_of_choice, {}),
    "clip_norm: 1.0 has no place": (fc.methods.fedavg, {"clip_norm": 1.0}),
    "aggregator: 'median'": (fc.methods.fedavg, {"aggregator": aggregators.median()}),
    "attack: one that is crafted": (fc.methods.fedavg, {"attack": attacks.ipm()}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_noise_would_not_cover_is_refused(message):
    make, options = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        algorithm(make(), privacy=gaussian(noise_multiplier=1.0), **options)


def test_statistics_are_refused_unless_frozen():
    made = fc.data.load("synthetic", train_samples=20, test_samples=10)
    encoders = {m: fc.models.mlp(features=8) for m in made.modalities}
    net = fc.models.classifier(encoders, made.shapes, 10)
    plain = net.init
    stats = {"encoder": {m: {"norm": {"mean": jnp.zeros(3)}} for m in made.modalities}}
    net = net._replace(init=lambda key: (plain(key)[0], stats))
    build = functools.partial(
        fc.build_algorithm,
        fc.methods.fedavg(),
        clients_per_round=2,
        privacy=gaussian(noise_multiplier=1.0),
    )
    with pytest.raises(ValueError, match="model: its BatchNorm statistics would be"):
        build(net)
    build(fc.models.frozen(net, ["encoder/*"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "noise_multiplier, target_epsilon: neither given"),
        ({"noise_multiplier": 1.0, "target_epsilon": 1.0}, "both given"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: -1.0 is not a number from 0"),
        ({"target_epsilon": 0.0}, "target_epsilon: 0.0 is not a positive number"),
        ({"noise_multiplier": 1.0, "clip": float("nan")}, "clip: nan is not a pos"),
        ({"noise_multiplier": 1.0, "delta": 1.0}, r"delta: 1.0 is outside \(0, 1\)"),
        ({"noise_multiplier": 1.0, "cap": 9}, "cap: 9 has no effect on a uniform"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gaussian(**options)


def test_a_count_that_is_more_exact_than_the_noise_is_refused():
    mechanism = gaussian(noise_multiplier=4.0, quantile=0.5, count_deviation=2.0)
    with pytest.raises(ValueError, match="count_deviation: 2 alone is more exact"):
        algorithm(fc.methods.fedavg(), model("classifier"), privacy=mechanism)


def test_a_target_needs_its_noise_first():
    with pytest.raises(ValueError, match="target_epsilon: 8.0 is not a noise_mult"):
        algorithm(fc.methods.fedavg(), privacy=gaussian(target_epsilon=8.0))
