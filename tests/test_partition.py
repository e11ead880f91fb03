"""Partitions: every sample exactly once, whatever the options; modality tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcmi_jax import partition as fp
from fedcmi_jax.data import Split

reproducible = settings(deadline=None, derandomize=True, max_examples=100)

ALPHAS = st.floats(1e-6, 1e8) | st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e8, 1e308])


def rng(seed=0):
    return np.random.default_rng(seed)


def split_of(labels):
    return Split({}, np.asarray(labels, np.int32))


def balanced(n, num_classes=10):
    return split_of(np.arange(n) % num_classes)


@st.composite
def splits_and_clients(draw):
    """Random labels with classes missing, and 1 to n clients."""
    n = draw(st.integers(1, 120))
    labels = rng(draw(st.integers(0, 99))).integers(0, draw(st.integers(1, 12)), n)
    num_clients = draw(st.sampled_from([1, n]) | st.integers(1, n))
    return split_of(labels), num_clients


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


@reproducible
@given(splits_and_clients(), st.integers(0, 2**32 - 1))
def test_iid_deals_every_sample_once_and_evenly(case, seed):
    split, num_clients = case
    partition = fp.iid(split, num_clients, rng(seed))
    check_partition(partition, split.size, num_clients)
    assert partition.sizes.max() - partition.sizes.min() <= 1


@reproducible
@given(splits_and_clients(), ALPHAS, st.sampled_from([1.0, 1.1, 2.0, np.inf]))
def test_dirichlet_deals_every_sample_once(case, alpha, cap):
    split, num_clients = case
    partition = fp.dirichlet(
        split, num_clients, rng(), alpha=alpha, cap=cap, min_samples=0
    )
    check_partition(partition, split.size, num_clients)
    # The cap is tested before a class is dealt: without the last class that a client
    # got something of, it holds less than the cap.
    counts = class_counts(partition, split.labels)
    for row in counts[partition.sizes > 0]:
        before = row.sum() - row[np.flatnonzero(row)[-1]]
        assert before < cap * split.size / num_clients


@reproducible
@given(splits_and_clients(), ALPHAS, st.integers(0, 3))
def test_top_up_reaches_any_feasible_minimum(case, alpha, min_samples):
    split, num_clients = case
    min_samples = min(min_samples, split.size // num_clients)
    partition = fp.dirichlet(
        split,
        num_clients,
        rng(),
        alpha=alpha,
        min_samples=min_samples,
        max_retries=2,
        top_up=True,
    )
    check_partition(partition, split.size, num_clients)
    assert partition.sizes.min() >= min_samples


def test_top_up_changes_nothing_where_resampling_suffices():
    split = balanced(1437)
    plain = fp.dirichlet(split, 20, rng(), alpha=0.3)
    topped = fp.dirichlet(split, 20, rng(), alpha=0.3, top_up=True)
    np.testing.assert_array_equal(plain.order, topped.order)


@pytest.mark.parametrize("name", fp.REGISTRY)
def test_partitioners_are_deterministic_and_follow_the_generator(name):
    first, again, other = (
        fp.REGISTRY[name](balanced(200), 7, rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.sizes, again.sizes)
    assert not np.array_equal(first.order, other.order)


@pytest.mark.parametrize("name", fp.REGISTRY)
def test_samples_are_shuffled_within_a_client(name):
    labels = np.repeat([0, 1], 500)
    partition = fp.REGISTRY[name](split_of(labels), 1, rng())
    assert 200 < labels[partition.order[:500]].sum() < 300
    assert 200 < labels[partition.order[500:]].sum() < 300


def test_defaults_suffice_for_skewed_digits_with_any_seed():
    for seed in range(100):
        partition = fp.dirichlet(balanced(1437), 20, rng(seed), alpha=0.1)
        assert partition.sizes.min() >= 1


def test_alpha_sets_the_skew():
    split = balanced(2000)

    def largest_share(alpha):
        partition = fp.dirichlet(split, 10, rng(), alpha=alpha, min_samples=0)
        return class_counts(partition, split.labels).max(axis=0).mean() / 200

    assert largest_share(1e8) == pytest.approx(0.1, abs=0.01)
    assert 0.15 < largest_share(3.0) < 0.35
    assert largest_share(1e-6) == 1.0


def test_tiny_alpha_with_cap_by_hand():
    # One corner of the simplex per class; a client with one of the 5 classes of equal
    # size holds n / N, below the cap of 1.1; with two it is full.
    split = balanced(50, num_classes=5)
    partition = fp.dirichlet(split, 5, rng(), alpha=1e-6, min_samples=0)
    assert set(partition.sizes) <= {0, 10, 20}
    # At a cap of 1 one class fills a client, so every client gets exactly one.
    partition = fp.dirichlet(split, 5, rng(), alpha=1e-6, cap=1.0)
    assert partition.sizes.tolist() == [10] * 5
    # Without a cap nothing keeps classes apart.
    sizes = [
        fp.dirichlet(
            split, 5, rng(s), alpha=1e-6, cap=np.inf, min_samples=0
        ).sizes.max()
        for s in range(50)
    ]
    assert max(sizes) >= 30


def test_legacy_truncation_loses_last_samples_and_the_default_does_not():
    split = balanced(2000)
    lost = []
    for seed in range(30):
        partition = fp.dirichlet(split, 20, rng(seed), alpha=3.0, legacy_truncate=True)
        kept = partition.order
        assert len(np.unique(kept)) == len(kept) == partition.sizes.sum()
        per_class = np.bincount(split.labels[kept], minlength=10)
        lost.append(200 - per_class)
        table = partition.assignment(num_samples=2000)
        assert (table == -1).sum() == 2000 - len(kept)
        fixed = fp.dirichlet(split, 20, rng(seed), alpha=3.0)
        assert len(fixed.order) == 2000
    assert set(np.ravel(lost)) == {0, 1}  # never more than the last one of a class
    assert 0.1 < np.mean(lost) < 0.5


def test_the_fixed_cut_moves_one_sample_at_most():
    counts = np.full(10, 200)
    fixed = fp._dirichlet_counts(counts, 20, rng(), 3.0, np.inf, False)
    legacy = fp._dirichlet_counts(counts, 20, rng(), 3.0, np.inf, True)
    np.testing.assert_array_equal(fixed[:-1], legacy[:-1])
    assert set(fixed[-1] - legacy[-1]) <= {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0: must be"),
        ({"alpha": float("nan")}, "alpha=nan: must be"),
        ({"alpha": float("inf")}, "alpha=inf: must be"),
        ({"cap": 0.9}, "cap=0.9: must be"),
        ({"cap": float("nan")}, "cap=nan: must be"),
        ({"max_retries": -1}, "max_retries=-1: must be"),
        ({"min_samples": -1}, "min_samples=-1: must"),
        ({"min_samples": 11}, r"min_samples=11: must lie in \[0, 10\]"),
        ({"top_up": True, "legacy_truncate": True}, "top_up=True: undoes"),
    ],
)
def test_dirichlet_refuses_bad_options_in_one_line(options, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        fp.dirichlet(balanced(100), 10, rng(), **options)
    assert "\n" not in str(error.value)


def test_a_minimum_out_of_reach_is_refused_and_topped_up_on_request():
    split = balanced(100, num_classes=4)  # four corners cannot serve ten clients
    message = r"^alpha=1e-06: none of 4 draws.*num_clients=10.*min_samples=1 .*top_up"
    with pytest.raises(ValueError, match=message) as error:
        fp.dirichlet(split, 10, rng(), alpha=1e-6, max_retries=3)
    assert "\n" not in str(error.value)
    partition = fp.dirichlet(
        split, 10, rng(), alpha=1e-6, max_retries=3, min_samples=3, top_up=True
    )
    check_partition(partition, 100, 10)
    assert (partition.sizes == 3).sum() == 6


@pytest.mark.parametrize("name", fp.REGISTRY)
@pytest.mark.parametrize("num_clients", [0, -1, 6])
def test_number_of_clients_is_checked(name, num_clients):
    with pytest.raises(ValueError, match=rf"^num_clients={num_clients}: .*\[1, 5\]"):
        fp.REGISTRY[name](balanced(5), num_clients, rng())


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


@reproducible
@given(
    st.integers(1, 200), st.integers(1, 6), st.sampled_from([0, 1]) | st.floats(0, 1)
)
def test_modality_counts(num_clients, num_modalities, multi_ratio):
    table = fp.allocate_modalities(
        num_clients, num_modalities, rng(), multi_ratio=multi_ratio
    )
    assert table.shape == (num_clients, num_modalities)
    fp.check_available(table, num_clients, num_modalities)
    if num_modalities == 1:
        return
    held = table.sum(axis=1)
    assert set(held) <= {1, num_modalities}
    assert (held > 1).sum() == int(multi_ratio * num_clients)
    single = table[held == 1].sum(axis=0)
    assert single.max() - single.min() <= 1
    assert (np.diff(single) >= 0).all()  # the remainder goes to the last modalities


@pytest.mark.parametrize(
    ("num_clients", "num_modalities", "multi_ratio", "single"),
    [
        (20, 2, 0.5, [5, 5]),
        (11, 2, 0.5, [3, 3]),
        (9, 2, 0.5, [2, 3]),
        (1, 2, 0.5, [0, 1]),
        (11, 3, 0.0, [3, 4, 4]),
        (4, 3, 1.0, [0, 0, 0]),
    ],
)
def test_modality_counts_by_hand(num_clients, num_modalities, multi_ratio, single):
    table = fp.allocate_modalities(
        num_clients, num_modalities, rng(), multi_ratio=multi_ratio
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
        ((5, 2, 1.1), "multi_ratio=1.1"),
        ((5, 2, -0.1), "multi_ratio=-0.1"),
        ((5, 2, float("nan")), "multi_ratio=nan"),
    ],
)
def test_allocation_refuses_bad_arguments(arguments, message):
    num_clients, num_modalities, multi_ratio = arguments
    with pytest.raises(ValueError, match="^" + message):
        fp.allocate_modalities(
            num_clients, num_modalities, rng(), multi_ratio=multi_ratio
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
