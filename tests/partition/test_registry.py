"""All partitioners: every sample exactly once, by the generator that is given."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedcmi_jax import partition as fp
from tests.partition.cases import (
    balanced,
    check_partition,
    reproducible,
    rng,
    split_of,
    splits_and_clients,
)

NATURAL = ("natural", "natural_dirichlet")
OTHERS = [name for name in fp.REGISTRY if name not in NATURAL]


def persons(n, count):
    return np.arange(n) % count


def natural_sizes(split):
    return np.unique(split.clients, return_counts=True)[1]


def fewest_classes(split, num_clients):
    return -(-len(np.unique(split.labels)) // num_clients)


# Name -> options that suit a split and a number of clients, and that number.
SUITABLE = {
    "iid": lambda split, n: (n, {}),
    "dirichlet": lambda split, n: (n, {"min_samples": 0}),
    "natural": lambda split, n: (min(n, len(natural_sizes(split))), {"merge": True}),
    "natural_dirichlet": lambda split, n: (
        0,
        {"per_client": min(n, natural_sizes(split).min()), "min_samples": 0},
    ),
    "pathological": lambda split, n: (
        n,
        {"classes_per_client": fewest_classes(split, n)},
    ),
    "shards": lambda split, n: (n, {"shards_per_client": min(2, split.size // n)}),
    "quantity_skew": lambda split, n: (n, {}),
}


@pytest.mark.parametrize("name", fp.REGISTRY)
@reproducible
@given(splits_and_clients(), st.integers(0, 2**32 - 1))
def test_every_sample_goes_to_exactly_one_client(name, case, seed):
    split, num_clients = case
    asked, options = SUITABLE[name](split, num_clients)
    if name == "pathological":
        counts = np.bincount(split.labels)
        slots = np.minimum(counts, num_clients).sum()
        assume(slots >= num_clients * options["classes_per_client"])
    partition = fp.REGISTRY[name](split, asked, rng(seed), **options)
    expected = asked or options["per_client"] * len(natural_sizes(split))
    check_partition(partition, split.size, expected)


@pytest.mark.parametrize("name", fp.REGISTRY)
def test_partitioners_are_deterministic_and_follow_the_generator(name):
    split = split_of(np.arange(300) % 10, persons(300, 4))
    num_clients = 0 if name in NATURAL else 7
    first, again, other = (
        fp.REGISTRY[name](split, num_clients, rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.sizes, again.sizes)
    assert not np.array_equal(first.order, other.order)


@pytest.mark.parametrize("name", fp.REGISTRY)
def test_samples_are_shuffled_within_a_client(name):
    labels = np.repeat([0, 1], 500)
    options = {"per_client": 1} if name == "natural_dirichlet" else {}
    split = split_of(labels, persons(1000, 1))
    partition = fp.REGISTRY[name](split, 1, rng(), **options)
    assert 200 < labels[partition.order[:500]].sum() < 300
    assert 200 < labels[partition.order[500:]].sum() < 300


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("num_clients", [0, -1, 6])
def test_number_of_clients_is_checked(name, num_clients):
    with pytest.raises(ValueError, match=rf"^num_clients={num_clients}: .*\[1, 5\]"):
        fp.REGISTRY[name](balanced(5), num_clients, rng())


@pytest.mark.parametrize("name", NATURAL)
@pytest.mark.parametrize("num_clients", [-1, 6, 60])
def test_number_of_natural_clients_is_checked(name, num_clients):
    split = split_of(np.arange(300) % 3, persons(300, 4))
    count = 4 if name == "natural" else 20
    message = rf"^num_clients={num_clients}: .*4 natural clients.*give {count},.* 0 for"
    with pytest.raises(ValueError, match=message):
        fp.REGISTRY[name](split, num_clients, rng())


@pytest.mark.parametrize("name", NATURAL)
def test_a_split_without_natural_clients_is_refused(name):
    with pytest.raises(ValueError, match="no natural clients; use another partition"):
        fp.REGISTRY[name](balanced(20), 0, rng())


@reproducible
@given(splits_and_clients(), st.integers(0, 2**32 - 1))
def test_iid_deals_every_sample_once_and_evenly(case, seed):
    split, num_clients = case
    partition = fp.iid(split, num_clients, rng(seed))
    check_partition(partition, split.size, num_clients)
    assert partition.sizes.max() - partition.sizes.min() <= 1
