"""natural and natural_dirichlet: nobody's samples get mixed up."""

import numpy as np
import pytest

from fedcmi_jax import partition as fp
from tests.partition.cases import check_partition, class_counts, rng, split_of

PERSONS = np.array([9, 4, 9, 2, 9, 4])


def mixed(counts, num_classes=6):
    """A split in which person 10 + j has counts[j] samples, in random order."""
    persons = rng(3).permutation(np.repeat(10 + np.arange(len(counts)), counts))
    return split_of(rng(4).integers(0, num_classes, len(persons)), persons)


@pytest.mark.parametrize("num_clients", [0, 3])
def test_natural_by_hand(num_clients):
    partition = fp.natural(split_of(np.zeros(6), PERSONS), num_clients, rng())
    assert partition.sizes.tolist() == [1, 2, 3]  # persons 2, 4, 9
    assert partition.assignment().tolist() == [2, 1, 2, 0, 2, 1]


def test_merged_clients_are_whole_and_as_many_in_each_group():
    split = mixed([3, 8, 1, 5, 9, 2, 4])
    groups = []
    for seed in range(5):
        partition = fp.natural(split, 3, rng(seed), merge=True)
        check_partition(partition, 32, 3)
        owners = partition.assignment()
        group_of = [set(owners[split.clients == p]) for p in np.unique(split.clients)]
        assert all(len(group) == 1 for group in group_of)
        table = [group.pop() for group in group_of]
        assert sorted(np.bincount(table)) == [2, 2, 3]
        groups.append(tuple(table))
    assert len(set(groups)) > 1  # the generator draws them


@pytest.mark.parametrize(
    ("num_clients", "options", "message"),
    [
        (2, {}, "num_clients=2: .*3 natural clients; give 3, 0 .* with merge=True"),
        (4, {"merge": True}, "num_clients=4: .*3 natural clients"),
        (0, {"min_samples": 2}, "min_samples=2: natural client 2 has 1 samples"),
        (
            2,
            {"min_samples": 6, "merge": True},
            r"min_samples=6: natural client \d(, \d)? has \d samples; lower",
        ),
    ],
)
def test_natural_refuses_in_one_line(num_clients, options, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        fp.natural(split_of(np.zeros(6), PERSONS), num_clients, rng(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_the_protocol_of_uci_har_gives_105_clients(alpha):
    # As many windows as HAPT's volunteers have, about.
    split = mixed(rng(1).integers(280, 420, 21))
    partition = fp.natural_dirichlet(split, 0, rng(), alpha=alpha)
    check_partition(partition, split.size, 105)
    assert partition.sizes.min() >= 5
    persons = split.clients[partition.order]
    parts = np.repeat(np.arange(105), partition.sizes)
    np.testing.assert_array_equal(persons, 10 + parts // 5)
    given = fp.natural_dirichlet(split, 105, rng(), alpha=alpha)
    np.testing.assert_array_equal(partition.order, given.order)


def test_natural_dirichlet_follows_alpha():
    split = mixed([600, 600], num_classes=3)

    def classes_per_part(alpha):
        partition = fp.natural_dirichlet(
            split, 0, rng(), per_client=3, alpha=alpha, min_samples=1
        )
        return (class_counts(partition, split.labels) > 0).sum(axis=1)

    # One corner a class and a cap of the mean: each part is one class or two.
    assert classes_per_part(1e-6).max() <= 2
    np.testing.assert_array_equal(classes_per_part(1e8), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_client": 0}, "per_client=0: must be"),
        ({"per_client": 7}, "natural client 11, 6 samples in 7 parts: num_clients=7"),
        ({"alpha": 0.0}, "natural client 10, 40 samples in 5 parts: alpha=0.0"),
        ({"min_samples": 2}, "natural client 11, 6 samples .* min_samples=2: must"),
    ],
)
def test_natural_dirichlet_refuses_in_one_line(options, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        fp.natural_dirichlet(mixed([40, 6]), 0, rng(), **options)
    assert "\n" not in str(error.value)


def test_natural_dirichlet_tops_up_on_request():
    split = split_of(np.zeros(40), np.zeros(40))  # one class: one corner has it all
    options = {"per_client": 4, "alpha": 1e-6, "max_retries": 3}
    with pytest.raises(ValueError, match=r"natural client 0.*none of 4 draws.*top_up"):
        fp.natural_dirichlet(split, 0, rng(), **options)
    partition = fp.natural_dirichlet(split, 0, rng(), top_up=True, **options)
    assert sorted(partition.sizes) == [5, 5, 5, 25]
