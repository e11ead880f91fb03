"""Who has which modality: counts by hand, the draw, bad tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedcmi_jax as fc
from fedcmi_jax import partition as fp
from tests.partition.cases import reproducible, rng


@reproducible
@given(
    st.integers(1, 200), st.integers(1, 6), st.sampled_from([0, 1]) | st.floats(0, 1)
)
def test_modality_counts(num_clients, num_modalities, multimodal_fraction):
    table = fp.allocate_modalities(
        num_clients, num_modalities, rng(), multimodal_fraction=multimodal_fraction
    )
    assert table.shape == (num_clients, num_modalities)
    fp.check_available(table, num_clients, num_modalities)
    if num_modalities == 1:
        return
    held = table.sum(axis=1)
    assert set(held) <= {1, num_modalities}
    assert (held > 1).sum() == int(multimodal_fraction * num_clients)
    single = table[held == 1].sum(axis=0)
    assert single.max() - single.min() <= 1
    assert (np.diff(single) >= 0).all()  # the remainder goes to the last modalities


@pytest.mark.parametrize(
    ("num_clients", "num_modalities", "multimodal_fraction", "single"),
    [
        (20, 2, 0.5, [5, 5]),
        (11, 2, 0.5, [3, 3]),
        (9, 2, 0.5, [2, 3]),
        (1, 2, 0.5, [0, 1]),
        (11, 3, 0.0, [3, 4, 4]),
        (4, 3, 1.0, [0, 0, 0]),
    ],
)
def test_modality_counts_by_hand(
    num_clients, num_modalities, multimodal_fraction, single
):
    table = fp.allocate_modalities(
        num_clients, num_modalities, rng(), multimodal_fraction=multimodal_fraction
    )
    assert table[~table.all(axis=1)].sum(axis=0).tolist() == single


def test_modalities_are_drawn_at_random():
    tables = np.array([fp.allocate_modalities(8, 2, rng(s)) for s in range(400)])
    both = tables.all(axis=2).mean(axis=0)
    np.testing.assert_allclose(both, 0.5, atol=0.1)
    np.testing.assert_array_equal(tables[0], fp.allocate_modalities(8, 2, rng(0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, 0.5), "num_clients=0"),
        ((5, 0, 0.5), "num_modalities=0"),
        ((5, 2, 1.1), "multimodal_fraction=1.1"),
        ((5, 2, -0.1), "multimodal_fraction=-0.1"),
        ((5, 2, float("nan")), "multimodal_fraction=nan"),
    ],
)
def test_allocation_refuses_bad_arguments(arguments, message):
    num_clients, num_modalities, multimodal_fraction = arguments
    with pytest.raises(ValueError, match="^" + message):
        fp.allocate_modalities(
            num_clients, num_modalities, rng(), multimodal_fraction=multimodal_fraction
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 0]], r"shape \(1, 2\); must be .* \(2, 2\)"),
        ([[1, 0], [0, 0]], "client 1 has no modality"),
        ([[1, 0], [2, 1]], r"available\[1, 0\]=2"),
        ([[1, 0], [np.nan, 1]], r"available\[1, 0\]=nan"),
    ],
)
def test_check_available_refuses_bad_tables(table, message):
    with pytest.raises(ValueError, match=message):
        fp.check_available(np.array(table), 2, 2)
    good = fp.check_available(np.array([[1.0, 0.0], [1.0, 1.0]]), 2, 2)
    assert good.dtype == bool


def test_samples_that_lack_a_modality():
    """Of clients with both, the asked share lacks one; nobody lacks all it has."""
    rng = np.random.default_rng(0)
    split = fc.data.Split({}, np.zeros(70, np.int32))
    order = rng.permutation(70)[:60]  # ten samples are nobody's
    parts = fc.partition.Partition(order, np.array([20, 20, 20]))
    table = np.array([[1, 1], [1, 0], [1, 1]], bool)
    present = fc.partition.drop_modalities(split, parts, table, rng, fraction=0.25)
    of_client = present[order].reshape(3, 20, 2)
    assert (~of_client).sum(axis=(1, 2))[[0, 2]].sum() == 10
    assert of_client[1].all()
    assert present[np.setdiff1d(np.arange(70), order)].all()
    assert present.any(axis=1).all()


def test_a_sample_keeps_one_of_its_clients_modalities():
    already = np.ones((8, 3), bool)
    already[:, 0] = False
    split = fc.data.Split({}, np.zeros(8, np.int32), available=already)
    parts = fc.partition.Partition(np.arange(8), np.array([8]))
    rng = np.random.default_rng(0)
    table = np.ones((1, 3), bool)
    present = fc.partition.drop_modalities(split, parts, table, rng, fraction=1.0)
    np.testing.assert_array_equal(present.sum(axis=1), 1)
    assert not present[:, 0].any()


def test_a_share_of_samples_out_of_range_is_refused():
    split = fc.data.Split({}, np.zeros(2, np.int32))
    parts = fc.partition.Partition(np.arange(2), np.array([2]))
    with pytest.raises(ValueError, match="missing_fraction=1.5"):
        fc.partition.drop_modalities(
            split, parts, np.ones((1, 2)), np.random.default_rng(0), fraction=1.5
        )
