"""dirichlet: its cap, its minimum, its cuts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcmi_jax import partition as fp
from fedcmi_jax.partition.dirichlet import _dirichlet_counts
from tests.partition.cases import (
    balanced,
    check_partition,
    class_counts,
    reproducible,
    rng,
    splits_and_clients,
)

ALPHAS = st.floats(1e-6, 1e8) | st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e8, 1e308])


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
    fixed = _dirichlet_counts(counts, 20, rng(), 3.0, np.inf, False)
    legacy = _dirichlet_counts(counts, 20, rng(), 3.0, np.inf, True)
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
