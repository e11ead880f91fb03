"""pathological, shards, quantity_skew: worked by hand."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedcmi_jax import partition as fp
from tests.partition.cases import (
    balanced,
    class_counts,
    reproducible,
    rng,
    split_of,
    splits_and_clients,
)


def held(partition, split):
    """[N] classes that each client has samples of."""
    return (class_counts(partition, split.labels) > 0).sum(axis=1)


@reproducible
@given(splits_and_clients(), st.integers(1, 4))
def test_pathological_clients_have_exactly_k_classes(case, k):
    split, num_clients = case
    counts = np.bincount(split.labels)
    counts = counts[counts > 0]
    assume(k <= len(counts) <= num_clients * k)
    assume(np.minimum(counts, num_clients).sum() >= num_clients * k)
    partition = fp.pathological(split, num_clients, rng(), classes_per_client=k)
    np.testing.assert_array_equal(held(partition, split), k)


def test_pathological_by_hand():
    # 20 places for 10 classes of 100: two owners each, with 50 samples each.
    split = balanced(1000)
    partition = fp.pathological(split, 10, rng())
    counts = class_counts(partition, split.labels)
    assert set(counts.ravel()) == {0, 50}
    np.testing.assert_array_equal(counts.sum(axis=1), 100)
    # Owners in proportion to the size of a class.
    split = split_of(np.repeat([0, 1, 2], [60, 20, 20]))
    partition = fp.pathological(split, 5, rng(), classes_per_client=1)
    np.testing.assert_array_equal(partition.sizes, 20)
    # All classes, one client.
    partition = fp.pathological(split, 1, rng(), classes_per_client=3)
    assert partition.sizes.tolist() == [100]


@pytest.mark.parametrize(
    ("num_clients", "k", "message"),
    [
        (10, 0, r"classes_per_client=0: must lie in \[1, 4\]"),
        (10, 5, r"classes_per_client=5: must lie in \[1, 4\]"),
        (3, 1, "classes_per_client=1: 3 clients cannot hold 4 classes; .* least 2"),
        (40, 4, "classes_per_client=4: too few samples of rare classes"),
    ],
)
def test_pathological_refuses_in_one_line(num_clients, k, message):
    split = split_of(np.repeat([0, 1, 2, 5], [50, 40, 30, 3]))
    with pytest.raises(ValueError, match="^" + message) as error:
        fp.pathological(split, num_clients, rng(), classes_per_client=k)
    assert "\n" not in str(error.value)


def test_shards_by_hand():
    # McMahan's, a tenth of it: 200 shards of 30, of 60 samples 2 classes at most.
    split = balanced(6000)
    partition = fp.shards(split, 100, rng())
    np.testing.assert_array_equal(partition.sizes, 60)
    counts = class_counts(partition, split.labels)
    assert set(counts.ravel()) == {0, 30, 60}
    assert set(held(partition, split)) == {1, 2}
    # One shard of a class each: nothing is left to chance but who has which.
    partition = fp.shards(balanced(40, 4), 4, rng(), shards_per_client=1)
    np.testing.assert_array_equal(held(partition, balanced(40, 4)), 1)
    # Seven samples in six shards, one of two: 3 + 2 + 2.
    assert sorted(fp.shards(balanced(7), 3, rng()).sizes) == [2, 2, 3]


@pytest.mark.parametrize("shards", [0, 3])
def test_shards_refuses_in_one_line(shards):
    message = rf"^shards_per_client={shards}: must lie in \[1, 2\]"
    with pytest.raises(ValueError, match=message):
        fp.shards(balanced(29), 10, rng(), shards_per_client=shards)


def test_quantity_skew_by_hand():
    even = fp.quantity_skew(balanced(100), 4, rng(), alpha=1e300)
    assert set(even.sizes) == {25}
    one = fp.quantity_skew(balanced(100), 4, rng(), alpha=1e-300, min_samples=3)
    assert sorted(one.sizes) == [3, 3, 3, 91]
    empty = fp.quantity_skew(balanced(100), 4, rng(), alpha=1e-300, min_samples=0)
    assert sorted(empty.sizes) == [0, 0, 0, 100]


def test_quantity_skew_leaves_the_classes_alike():
    split = balanced(20_000, 4)
    partition = fp.quantity_skew(split, 5, rng(), min_samples=1000)
    counts = class_counts(partition, split.labels)
    np.testing.assert_allclose(counts / counts.sum(axis=1)[:, None], 0.25, atol=0.06)
    assert partition.sizes.max() > 2 * partition.sizes.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0: must"),
        ({"alpha": float("inf")}, "alpha=inf: must"),
        ({"min_samples": -1}, r"min_samples=-1: must lie in \[0, 10\]"),
        ({"min_samples": 11}, r"min_samples=11: must lie in \[0, 10\]"),
    ],
)
def test_quantity_skew_refuses_in_one_line(options, message):
    with pytest.raises(ValueError, match="^" + message):
        fp.quantity_skew(balanced(100), 10, rng(), **options)
