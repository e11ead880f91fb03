"""Robust aggregation: by hand, against the mean, and within a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import aggregate, aggregators, stacks, updates
from fedcmi_jax.aggregators.distances import squared_distances
from fedcmi_jax.placement import client_mesh, own_rows, replicate
from fedcmi_jax.testing import AGGREGATOR_CHECKS, Combination
from fedcmi_jax.testing.problem import (
    algorithm,
    assert_close,
    federation,
    model,
    plain,
    poison,
    rounds,
)
from fedcmi_jax.types import Mean, Sum


@functools.cache
def case(name, bucket=1):
    options = {} if bucket == 1 else {"bucket": bucket}
    return Combination(aggregators.REGISTRY[name](**options))


@pytest.mark.up_to_rounding
@pytest.mark.parametrize("check", AGGREGATOR_CHECKS)
@pytest.mark.parametrize("name", aggregators.REGISTRY)
def test_every_aggregator_conforms(name, check):
    AGGREGATOR_CHECKS[check](case(name))


@pytest.mark.up_to_rounding
@pytest.mark.parametrize("check", AGGREGATOR_CHECKS)
def test_a_median_of_buckets_conforms(check):
    """Nine clients are five buckets, one of them of a single client."""
    AGGREGATOR_CHECKS[check](case("median", bucket=2))


def one(aggregator, values, weights=None):
    """A block of one number per client."""
    x = jnp.array(values, jnp.float32)[:, None]
    weights = jnp.ones(len(x)) if weights is None else jnp.array(weights, jnp.float32)
    found, enough = stacks.combined(aggregator, jax.random.key(0), len(x))(weights, x)
    return float(found[0]) if enough else None


def test_medians_by_hand():
    median = aggregators.median()
    assert one(median, [5, 1, 9]) == 5
    assert one(median, [5, 1, 9, 7]) == 6
    assert one(median, [5, 1, 9, 7], [1, 100, 1, 0]) == 5  # weights do not count
    assert one(median, [5, 1], None) is None


def test_trimmed_means_by_hand():
    trimmed = aggregators.trimmed_mean(fraction=0.2)
    assert one(trimmed, [100, 1, 2, 6, -50]) == 3
    # Weights count in the mean of the rest: (2 * 3 + 6 * 1) / 4 of 2, 6 and no 1.
    assert one(trimmed, [100, 1, 2, 6, -50], [1, 0, 3, 1, 1]) == 3
    assert one(trimmed, [100, 1, 2, 6, -50], [1, 0, 0, 0, 1]) is None  # two owners
    assert one(aggregators.trimmed_mean(fraction=0.1), list(range(30))) == 14.5


def test_krum_by_hand():
    """Scores of 0, 1, 3, 8, 100 by their two nearest: 10, 5, 13, 74, far."""
    values = [0.0, 1.0, 3.0, 8.0, 100.0]
    assert one(aggregators.krum(byzantine=1), values) == 1
    assert one(aggregators.multi_krum(byzantine=1, chosen=2), values) == 0.5
    assert one(aggregators.multi_krum(byzantine=1), values) == 3
    assert one(aggregators.krum(byzantine=1), values, [1, 1, 1, 1, 0]) is None
    distances = squared_distances({"a": jnp.array(values)[:, None]})
    assert float(distances[1, 3]) == 49.0


def test_the_geometric_median_is_where_the_pulls_cancel():
    corners = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0], [1e9, 0.0]])
    combine = stacks.combined(
        aggregators.geometric_median(iterations=64), jax.random.key(0), 5
    )
    found = np.asarray(combine(jnp.ones(5), corners)[0])
    pulls = np.asarray(corners) - found
    pulls /= np.linalg.norm(pulls, axis=1, keepdims=True)
    assert np.abs(pulls.sum(0)).max() < 0.01


def sent(clients=7, seed=0):
    """What seven clients send: two blocks, one with statistics, and an upload."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    rows = []
    for i in range(clients):
        own = {"a": jnp.float32(1), "v": jnp.float32(i % 3 > 0)}
        rows.append(
            aggregate.Sent(
                delta={"a": {"w": draw(2, 3), "b": draw(3)}, "v": {"w": draw(2)}},
                stats={"v": {"mean": draw(2)}},
                owned=own,
                weight=jnp.float32(3 + i),
                num_examples=jnp.int32(3 + i),
                steps=jnp.int32(4),
                upload=(
                    Mean(draw(2, 4), jnp.asarray(rng.integers(0, 3, 2), jnp.float32)),
                    Sum({"n": draw(3)}),
                ),
            )
        )
    return rows


def totals(aggregator, rows, accepted):
    """By the stack, and by the sums."""
    each = [
        aggregate.client_sums(*r[:5], r.upload, {}, jnp.array(ok))
        for r, ok in zip(rows, accepted, strict=True)
    ]
    sums = jax.tree.map(lambda *x: sum(x), *each)
    flat = [stacks.as_vectors(r) for r in rows]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *flat)
    key = jax.random.key(1)
    by_stack = stacks.stacked_total(aggregator, key, stack, jnp.array(accepted), sums)
    return by_stack, aggregate.mean_total(sums)


@pytest.mark.up_to_rounding
@pytest.mark.parametrize(
    "aggregator",
    [
        aggregators.mean(),
        aggregators.trimmed_mean(fraction=0.0),
        pytest.param(
            aggregators.multi_krum(byzantine=0, chosen=7), marks=pytest.mark.slow
        ),
        pytest.param(
            aggregators.trimmed_mean(fraction=0.0, bucket=3), marks=pytest.mark.slow
        ),
    ],
    ids=["mean", "trimmed_mean", "multi_krum", "bucketing"],
)
def test_what_leaves_nobody_out_is_the_weighted_mean(aggregator):
    """Of parameters, statistics and uploads, over owners; one client is rejected."""
    rows = sent()
    rows[5] = rows[5]._replace(delta=jax.tree.map(lambda x: x * jnp.nan, rows[5].delta))
    stacked, streamed = totals(aggregator, rows, [True] * 5 + [False, True])
    if aggregator.name == "multi_krum":  # needs three where a class has two
        stacked = stacked._replace(upload=())
        streamed = streamed._replace(upload=())
    assert_close(stacked, streamed)


def test_a_block_with_too_few_owners_keeps_its_value_and_is_counted():
    rows = sent(4)  # of which two own the block v
    total, _ = totals(aggregators.median(), rows, [True] * 4)
    assert float(total.weights["v"]) == 0
    assert float(total.weights["a"]) > 0
    assert int(total.blocks_kept) == 1
    np.testing.assert_array_equal(total.delta["v"]["w"], np.zeros(2))
    np.testing.assert_array_equal(total.stats["v"]["mean"], np.zeros(2))


def test_an_infinite_bound_changes_no_bit_and_a_finite_one_each_part_alone():
    row = sent(2)[1]
    same, norms = updates._bounded(row, jnp.full(3, jnp.inf))
    jax.tree.map(np.testing.assert_array_equal, same, row)
    short, _ = updates._bounded(row, jnp.array([0.5, jnp.inf, 1e-3]))
    _, after = updates._bounded(short, jnp.full(3, jnp.inf))
    np.testing.assert_allclose(after, [0.5, norms[1], 1e-3], rtol=1e-5)


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (aggregators.krum(byzantine=2), "krum with byzantine 2 needs 7 updates, a co"),
        (aggregators.median(bucket=3), "median needs 3 updates, a cohort gives 2"),
        (
            aggregators.trimmed_mean(fraction=0.45),
            "trimmed_mean .* leaves nothing of 5",
        ),
        (aggregators.multi_krum(chosen=6), "chosen: 6 is more than the 5 updates"),
    ],
)
def test_a_cohort_that_cannot_work_is_refused_when_built(aggregator, message):
    with pytest.raises(ValueError, match=message):
        algorithm(fc.methods.fedavg(), model("classifier"), aggregator=aggregator)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trimmed_mean", {"fraction": 0.5}, r"fraction: 0.5 is outside \[0, 0.5\)"),
        ("krum", {"byzantine": -1}, "byzantine: -1 is negative"),
        ("multi_krum", {"chosen": 0}, "chosen: 0 is below 1"),
        ("median", {"bucket": 0}, "bucket: 0 is below 1"),
        ("geometric_median", {"iterations": 0}, "iterations: 0 is below 1"),
        ("geometric_median", {"smoothing": 0.0}, "smoothing: 0.0 is not positive"),
        ("norm_bound", {"initial": 0.0}, "initial: 0.0 is not positive"),
        ("norm_bound", {"quantile": 1.0}, r"quantile: 1.0 is outside \(0, 1\)"),
        ("norm_bound", {"rate": float("inf")}, "rate: inf is not positive"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        aggregators.REGISTRY[name](**options)


def compiled(problem, fed, num_rounds=2):
    return rounds(problem, fed, num_rounds, step=jax.jit(problem.round))


@pytest.mark.up_to_rounding
@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(n, m, marks=() if m == "fedavg" else pytest.mark.slow)
        for n, m in (
            ("trimmed_mean", "fedavg"),
            ("trimmed_mean", "scaffold"),
            ("median", "fedcmi"),
            ("krum", "qfedavg"),
            ("multi_krum", "feddyn"),
            ("geometric_median", "bmsfed"),
            ("norm_bound", "fednova"),
            ("norm_bound", "fedproto"),
        )
    ],
)
def test_a_round_works_on_any_number_of_devices_without_a_poisoned_client(name, method):
    method = fc.methods.REGISTRY[method]()
    net = model("two_projector" if method.needs_projectors else "classifier")
    fed = poison(federation(), 4)
    options = {"aggregator": aggregators.REGISTRY[name](), "chunk_size": 2}
    if name == "trimmed_mean":  # with everybody in it is the mean
        options["aggregator"] = aggregators.trimmed_mean(fraction=0.0)
    state, info = compiled(algorithm(method, net, **options), fed)
    assert int(info.rejected) == 1
    for leaf in jax.tree.leaves(plain(state)):
        assert bool(jnp.isfinite(leaf).all())
    if name == "trimmed_mean":
        mean, _ = compiled(algorithm(method, net, chunk_size=2), fed)
        assert_close(state.params, mean.params, atol=2e-6)
        return
    mesh = client_mesh(2)
    spread, _ = compiled(
        algorithm(method, net, mesh=mesh, **options), replicate(fed, mesh)
    )
    assert_close(own_rows(spread, 5).params, state.params)
