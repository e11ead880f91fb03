"""Splits, and what every partition must be."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from fedcmi_jax.data import Split

reproducible = settings(deadline=None, derandomize=True, max_examples=100)


def rng(seed=0):
    return np.random.default_rng(seed)


def split_of(labels, clients=None):
    clients = None if clients is None else np.asarray(clients, np.int32)
    return Split({}, np.asarray(labels, np.int32), clients)


def balanced(n, num_classes=10):
    return split_of(np.arange(n) % num_classes)


@st.composite
def splits_and_clients(draw):
    """Random labels and natural clients, classes and ids missing; 1 to n clients."""
    n = draw(st.integers(1, 120))
    source = rng(draw(st.integers(0, 99)))
    labels = source.integers(0, draw(st.integers(1, 12)), n)
    persons = source.integers(5, 5 + draw(st.integers(1, 8)), n)
    num_clients = draw(st.sampled_from([1, n]) | st.integers(1, n))
    return split_of(labels, persons), num_clients


def check_partition(partition, n, num_clients):
    assert partition.order.dtype == partition.sizes.dtype == np.int64
    assert partition.num_clients == len(partition.sizes) == num_clients
    assert partition.sizes.sum() == n
    np.testing.assert_array_equal(np.sort(partition.order), np.arange(n))
    table = partition.assignment()
    assert len(table) == n
    counts = np.bincount(table, minlength=num_clients)
    np.testing.assert_array_equal(counts, partition.sizes)


def class_counts(partition, labels):
    """[N, C] samples of each client and class."""
    counts = np.zeros((partition.num_clients, labels.max() + 1), int)
    owners = np.repeat(np.arange(partition.num_clients), partition.sizes)
    np.add.at(counts, (owners, labels[partition.order]), 1)
    return counts
