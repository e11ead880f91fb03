"""Compression of updates: what arrives, what is kept, what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import compression
from fedcmi_jax.compression import bfloat16, chain, quantize, random_k, top_k
from fedcmi_jax.experiment.traffic import traffic, traffic_by_client
from fedcmi_jax.placement import client_mesh, own_rows, replicate
from fedcmi_jax.privacy import gaussian
from fedcmi_jax.systems import simulated
from fedcmi_jax.testing import problem as small
from fedcmi_jax.testing.problem import (
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    poison,
    rounds,
)
from tests.marks import slow

KEY = jax.random.key(0)
X = jnp.array([0.5, -3.0, 0.0, 2.0, -0.25, 1.0])


def arrives(transforms, x=X, key=KEY, residual=None):
    """Of one block {"a": x} that the client owns."""
    kept = {"a": jnp.zeros_like(x)} if residual is None else {"a": residual}
    kept = kept if transforms.feedback else ()
    sent, left = compression.compressed(
        transforms, key, {"a": x}, {"a": jnp.ones(())}, kept
    )
    return sent["a"], left["a"] if transforms.feedback else None


def test_the_largest_numbers_arrive_and_the_rest_is_kept():
    sent, left = arrives(top_k(share=0.3))  # 1.8: two of six
    np.testing.assert_array_equal(sent, [0, -3, 0, 2, 0, 0])
    np.testing.assert_array_equal(left, [0.5, 0, 0, 0, -0.25, 1])
    sent, left = arrives(top_k(share=0.3), residual=10 * left)
    np.testing.assert_array_equal(
        sent, [0, 0, 0, 0, 0, 11] + np.array([5.5, 0, 0, 0, 0, 0])
    )
    np.testing.assert_array_equal(left, [0, -3, 0, 2, -2.75, 0])


def test_random_places_differ_by_key_and_all_are_hit_alike():
    draw = jax.vmap(lambda key: arrives(random_k(share=0.5), jnp.ones(6), key)[0])
    hits = np.asarray(draw(jax.random.split(KEY, 600)))
    assert (hits.sum(1) == 3).all()
    assert abs(hits.mean(0) - 0.5).max() < 0.08


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_numbers_are_levels_without_bias(bits):
    levels = 2 ** (bits - 1) - 1
    draw = jax.vmap(lambda key: arrives(quantize(bits=bits), X, key)[0])
    found = np.asarray(draw(jax.random.split(KEY, 4000)))
    steps = found / (3.0 / levels)
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)
    assert np.abs(steps).max() <= levels + 1e-4
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.mean(0), X, atol=4 * 3.0 / levels / 4000**0.5)


def test_quantised_zeros_are_zeros():
    sent, _ = arrives(quantize(bits=4), jnp.zeros(5))
    np.testing.assert_array_equal(sent, np.zeros(5))


def test_bfloat16_by_hand():
    """7 bits of mantissa: 1 + 1/256 lies in the middle, and goes to the even one."""
    x = jnp.array([1.0, 1 + 1 / 256, 1 + 3 / 256, -2.5])
    sent, left = arrives(bfloat16(feedback=True), x)
    np.testing.assert_array_equal(sent, [1, 1, 1 + 4 / 256, -2.5])
    np.testing.assert_array_equal(left, [0, 1 / 256, -1 / 256, 0])


def test_blocks_that_are_not_sent_keep_what_was_left():
    delta, owned = {"a": X, "b": X}, {"a": jnp.ones(()), "b": jnp.zeros(())}
    old = {"a": X, "b": 7 * X}
    _, left = compression.compressed(top_k(share=0.3), KEY, delta, owned, old)
    np.testing.assert_array_equal(left["b"], 7 * X)
    assert not np.array_equal(left["a"], old["a"])


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        (quantize(bits=8), 1004),
        (quantize(bits=2), 254),
        (quantize(bits=32), 4000),
        (bfloat16(), 2000),
        (top_k(share=0.01), 10 * 8),
        (top_k(share=1.0), 4000),
        (random_k(share=0.01), 10 * 4 + 4),
        (random_k(share=0.01, bits=8), 10 + 4 + 4),
        (chain(top_k(share=0.1), bfloat16()), 100 * (2 + 4)),
        (chain(quantize(bits=3), top_k(share=0.1)), 38 + 4 + 400),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_bytes_of_a_thousand_numbers(transforms, expected):
    assert transforms.num_bytes(1000) == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_the_smallest_numbers_stay_numbers(bits):
    sent, _ = arrives(quantize(bits=bits), jnp.array([0.0, 1e-37, 5e-38]))
    np.testing.assert_allclose(sent, [0.0, 1e-37, 5e-38], atol=1e-37)


def test_of_two_that_leave_numbers_out_one_is_too_many():
    assert chain(top_k(share=1.0), top_k(share=0.1)) is not None
    with pytest.raises(ValueError, match="top_k and random_k both leave numbers out"):
        chain(top_k(share=0.1), random_k(share=0.1))


def test_a_chain_of_nothing_is_none():
    assert chain(None, compression.none()) is None
    one = quantize()
    assert chain(one, None) == one


@functools.cache
def after(transforms, num_rounds=2):
    made = algorithm(fc.methods.fedavg(), model("classifier"), compression=transforms)
    return rounds(made, federation(), num_rounds)[0]


@pytest.mark.parametrize("strength", ["top_k", slow("quantize")])
def test_of_no_strength_it_is_no_compression(strength):
    """Bit for bit, and nothing is left over."""
    off = {"top_k": top_k(share=1.0), "quantize": quantize(bits=32)}[strength]
    assert_equal(after(off).params, after(None).params)
    assert not any(x.any() for x in jax.tree.leaves(after(off).residual))


@pytest.mark.slow
def test_random_places_of_no_strength_are_no_compression():
    assert_equal(after(random_k(share=1.0)).params, after(None).params)


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_on_two_devices_it_is_the_same_bit_for_bit():
    """Also with noise, and with clients that are lost."""
    on = functools.partial(
        algorithm,
        fc.methods.fedavg(),
        model("classifier"),
        compression=random_k(share=0.3, bits=8),
        privacy=gaussian(noise_multiplier=1.0),
        systems=simulated(dropout=0.4, speed_spread=1.0),
    )

    def trained(mesh):
        made = on(mesh=mesh)
        fed = replicate(federation(), mesh)
        return own_rows(rounds(made, fed, step=jax.jit(made.round))[0], 5)

    one, two = trained(None), trained(client_mesh(2))
    assert_equal(one.params, two.params)
    assert_equal((one.residual, one.clock), (two.residual, two.clock))


@pytest.mark.slow
def test_what_is_left_over_is_a_clients_own_and_of_blocks_that_it_has():
    """One round from zeros: the mean of what was sent and left is FedAvg's."""
    state = after(top_k(share=0.2), 1)
    left = state.residual["encoder"]["alpha"]
    rows = np.stack(
        [
            np.concatenate([np.ravel(x[i]) for x in jax.tree.leaves(left)])
            for i in range(5)
        ]
    )
    has = np.array(small.AVAILABLE)[:, 1] > 0
    np.testing.assert_array_equal(rows.any(1), has)
    sizes = np.array(small.SIZES, np.float32)

    def mean(x):
        return jnp.tensordot(sizes / sizes.sum(), x, axes=1)

    whole = jax.tree.map(
        lambda p, x: p + mean(x), state.params["fusion"], state.residual["fusion"]
    )
    assert_close(whole, after(None, 1).params["fusion"])


@pytest.mark.slow
def test_a_rejected_client_keeps_what_it_had_left():
    made = algorithm(
        fc.methods.fedavg(), model("classifier"), compression=top_k(share=0.2)
    )
    state, _ = rounds(made, federation(), 1)
    before = jax.tree.map(jnp.copy, state.residual)
    state, info = small.compiled(made)(state, poison(federation(), 2))
    assert not info.accepted[list(info.cohort).index(2)]
    for old, new in zip(*map(jax.tree.leaves, (before, state.residual)), strict=True):
        np.testing.assert_array_equal(old[2], new[2])
    assert any(
        (old[0] != new[0]).any()
        for old, new in zip(
            *map(jax.tree.leaves, (before, state.residual)), strict=True
        )
    )


def test_only_what_a_client_sends_gets_smaller():
    net, data = model("classifier"), small.dataset()
    plain = traffic(fc.methods.fedavg(), net, data, small.AVAILABLE)
    less = traffic(fc.methods.fedavg(), net, data, small.AVAILABLE, bfloat16())
    assert less.down == plain.down
    assert less.up == {block: size / 2 for block, size in plain.up.items()}
    # Statistics and uploads are as they were.
    scaffold = fc.methods.scaffold()
    plain = traffic(scaffold, net, data, small.AVAILABLE)
    less = traffic(scaffold, net, data, small.AVAILABLE, bfloat16())
    for block, size in less.up.items():
        assert size == pytest.approx(plain.up[block] - plain.down[block] / 2)


def test_bytes_of_a_client_follow_what_it_has():
    found = traffic_by_client(
        fc.methods.fedavg(),
        model("classifier"),
        small.dataset(),
        np.array(small.AVAILABLE),
    )
    has = np.array(small.AVAILABLE).T > 0
    for m, name in enumerate(small.MODALITIES):
        np.testing.assert_array_equal(found.up[f"encoder/{name}"] > 0, has[m])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top_k(share=0.0), r"share: 0.0 is outside \(0, 1\]"),
        (lambda: random_k(share=float("nan")), "share: nan is outside"),
        (lambda: quantize(bits=1), "bits: 1 is not possible; give 2 to 16, or 32"),
        (lambda: top_k(bits=24), "bits: 24 is not possible"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
