"""Held-out samples: quotas by hand, nothing lost, nothing twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcmi_jax.partition import Partition
from fedcmi_jax.partition.holdout import largest_remainder, take_clients, take_share


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("shares", "total", "caps", "quotas"),
    [
        ([2.5, 0.9, 1.6], 5, [9, 9, 9], [2, 1, 2]),
        ([2.5, 0.9, 1.6], 5, [9, 9, 1], [3, 1, 1]),  # no room: the next remainder
        ([0.1, 0.2, 0.7], 1, [9, 9, 9], [0, 0, 1]),
        ([1.4, 1.4], 3, [1, 1], [1, 1]),  # the caps end it
        ([0.5], 0, [1], [0]),
        ([], 0, [], []),
    ],
)
def test_largest_remainder_by_hand(shares, total, caps, quotas):
    ours = largest_remainder(np.array(shares), total, np.array(caps, int), rng())
    assert ours.tolist() == quotas


def test_equal_remainders_favour_no_place():
    winners = [
        largest_remainder(np.full(4, 0.25), 1, np.ones(4, int), rng(s)).argmax()
        for s in range(200)
    ]
    assert np.bincount(winners, minlength=4).min() > 25


def dealt(sizes, num_classes=3, seed=0):
    n = sum(sizes)
    labels = rng(seed).integers(num_classes, size=n).astype(np.int32)
    return Partition(rng(seed + 1).permutation(n), np.array(sizes)), labels


def test_the_clients_quotas_by_hand():
    # 10 % of 51 samples are 5: floors 2, 1, 0, 0, 0 and remainders
    # .5, .0, .7, .8, .1; the two missing ones go to the fourth and the third client.
    parts, labels = dealt([25, 10, 7, 8, 1])
    left, held = take_share(parts, labels, 0.1, rng())
    assert left.sizes.tolist() == [23, 9, 6, 7, 1]
    assert np.bincount(held.clients).tolist() == [2, 1, 1, 1]


def test_classes_by_hand():
    # 4 of 16: classes of 8, 5 and 3 samples give 2, 1.25 and 0.75.
    labels = np.repeat([0, 1, 2], [8, 5, 3])
    parts = Partition(rng().permutation(16), np.array([16]))
    _, held = take_share(parts, labels, 0.25, rng())
    assert np.bincount(labels[held.rows]).tolist() == [2, 1, 1]


def test_no_class_is_favoured_where_remainders_are_equal():
    # Two of ten classes per client: always the same two, if ties went by the class.
    labels = np.tile(np.arange(10), 40)
    parts = Partition(np.arange(400), np.full(20, 20))
    _, held = take_share(parts, labels, 0.1, rng())
    assert np.bincount(labels[held.rows], minlength=10).tolist() == [4] * 10


def test_overlapping_neighbours_are_taken_in_runs():
    # Two clients, classes 0 and 1 in stretches of time, rows dealt in random order.
    labels = np.array([0] * 6 + [1] * 4 + [0] * 4 + [1] * 6)
    ours = np.r_[0:3, 6:8, 10:12, 14:17]  # every stretch's first half
    theirs = np.setdiff1d(np.arange(20), ours)
    mixed = [rng(i).permutation(rows) for i, rows in enumerate((ours, theirs))]
    parts = Partition(np.concatenate(mixed), np.array([10, 10]))
    for seed in range(3):
        left, held = take_share(parts, labels, 0.4, rng(seed), sequential=True)
        assert set(held.rows[held.clients == 0]) == {10, 11, 15, 16}
        assert set(held.rows[held.clients == 1]) == {12, 13, 18, 19}
        more, next_ = take_share(left, labels, 0.2 / 0.6, rng(seed), sequential=True)
        assert more.sizes.tolist() == [6 - 2, 6 - 2]
        assert set(next_.rows[next_.clients == 0]) == {2, 14}
        assert set(next_.rows[next_.clients == 1]) == {5, 17}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    fraction=st.floats(0.0, 1.0, exclude_max=True),
    num_classes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_sample_once_and_nobody_loses_the_last(
    sizes, fraction, num_classes, seed
):
    parts, labels = dealt(sizes, num_classes, seed)
    left, held = take_share(parts, labels, fraction, rng(seed))
    kept = np.concatenate([left.order, held.rows])
    assert sorted(kept.tolist()) == list(range(sum(sizes)))
    assert len(left.order) == left.sizes.sum()
    owners = parts.assignment(sum(sizes))
    np.testing.assert_array_equal(owners[held.rows], held.clients)
    np.testing.assert_array_equal(
        left.assignment(sum(sizes))[left.order], owners[left.order]
    )
    taken = parts.sizes - left.sizes
    most = np.maximum(parts.sizes - 1, 0)
    assert (taken <= most).all()
    assert taken.sum() == min(round(fraction * sum(sizes)), most.sum())
    if (fraction * parts.sizes <= most).all():
        assert (np.abs(taken - fraction * parts.sizes) < 1 + 1e-9).all()
    for i in range(len(sizes)):
        own = labels[owners == i]
        gave = np.bincount(labels[held.rows[held.clients == i]], minlength=num_classes)
        shares = taken[i] * np.bincount(own, minlength=num_classes) / max(len(own), 1)
        assert (np.abs(gave - shares) < 1 + 1e-9).all()


def test_the_generator_alone_decides_and_zero_draws_nothing():
    parts, labels = dealt([30, 20, 5])
    first, again, other = (take_share(parts, labels, 0.3, rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first[1].rows, again[1].rows)
    assert not np.array_equal(first[1].rows, other[1].rows)
    source = rng()
    left, held = take_share(parts, labels, 0.0, source)
    assert source.random() == rng().random()
    assert not held.rows.size
    np.testing.assert_array_equal(left.order, parts.order)


def test_what_is_left_keeps_its_order():
    parts, labels = dealt([30, 20, 5])
    left, held = take_share(parts, labels, 0.3, rng())
    expected = [row for row in parts.order if row not in set(held.rows.tolist())]
    assert left.order.tolist() == expected


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions(fraction):
    with pytest.raises(ValueError, match=r"fraction: .* is outside \[0, 1\)"):
        take_share(*dealt([4]), fraction, rng())


@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=8), seed=st.integers(0, 9)
)
@settings(max_examples=30, deadline=None)
def test_clients_taken_whole(sizes, seed):
    parts, _ = dealt(sizes)
    has = rng(seed).random((len(sizes), 2)) < 0.5
    count = seed % len(sizes)
    left, table, held, others, ids = take_clients(parts, has, count, rng(seed))
    assert left.num_clients == len(table) == len(sizes) - count
    kept = np.concatenate([left.order, held.rows])
    assert sorted(kept.tolist()) == list(range(sum(sizes)))
    whole = [tuple(x) for x in np.split(parts.order, np.cumsum(parts.sizes)[:-1])]
    ours = [tuple(x) for x in np.split(left.order, np.cumsum(left.sizes)[:-1])]
    taken = [tuple(held.rows[held.clients == i]) for i in range(count)]
    pairs = list(zip(whole, has.tolist(), strict=True))
    assert [pairs[i] for i in ids] == list(zip(taken, others.tolist(), strict=True))
    again = list(zip([*ours, *taken], [*table.tolist(), *others.tolist()], strict=True))
    assert sorted(pairs) == sorted(again)


def test_the_clients_taken_are_drawn():
    parts, _ = dealt(list(range(1, 9)))
    has = np.ones((8, 1), bool)
    sizes = {
        tuple(take_clients(parts, has, 2, rng(s))[0].sizes.tolist()) for s in range(9)
    }
    assert len(sizes) > 3
    source = rng()
    take_clients(parts, has, 0, source)
    assert source.random() == rng().random()


@pytest.mark.parametrize("count", [-1, 2, 3])
def test_somebody_must_be_left(count):
    parts, _ = dealt([4, 4])
    with pytest.raises(ValueError, match=f"holdout_clients: {count} of 2 clients"):
        take_clients(parts, np.ones((2, 1), bool), count, rng())
