"""custom: the inverse of Partition.assignment."""

import numpy as np
import pytest
from hypothesis import given

from fedcmi_jax import partition as fp
from tests.partition.cases import (
    check_partition,
    reproducible,
    rng,
    splits_and_clients,
)


@reproducible
@given(splits_and_clients())
def test_custom_inverts_assignment(case):
    split, num_clients = case
    table = fp.iid(split, num_clients, rng()).assignment()
    for generator in (None, rng()):
        partition = fp.custom(table, num_clients, rng=generator)
        check_partition(partition, split.size, num_clients)
        np.testing.assert_array_equal(partition.assignment(), table)


def test_custom_by_hand():
    partition = fp.custom(np.array([2, 0, 2, 0, 0]), 4, allow_empty=True)
    assert partition.order.tolist() == [1, 3, 4, 0, 2]
    assert partition.sizes.tolist() == [3, 0, 2, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0, 1, 2], r"assignment\[2\]=2: .*\[0, 2\)"),
        ([0, -1, 1], r"assignment\[1\]=-1"),
        ([1, 1], "client 0 has no samples.*allow_empty=True"),
        ([[0, 1]], r"assignment: int64 of shape \(1, 2\)"),
        ([0.0, 1.0], "assignment: float64"),
        ([], "assignment: .*one integer client id per sample"),
    ],
)
def test_custom_refuses_bad_tables(table, message):
    with pytest.raises(ValueError, match=message):
        fp.custom(np.array(table), 2)
    with pytest.raises(ValueError, match="num_clients=0"):
        fp.custom(np.array([0]), 0)
