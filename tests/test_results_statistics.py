"""Statistics over few seeds, against numbers worked by hand."""

import numpy as np
import pytest

from fedcmi_jax.results.statistics import Paired, holm, moments, paired

T_2 = 4.302652729911275
"""97.5 % quantile of Student's t with 2 degrees of freedom, from any table."""


def test_moments_of_three_numbers():
    assert moments([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))


def test_one_value_has_a_mean_and_no_deviation():
    assert moments([0.25]) == (0.25, None)


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one number"):
        moments([])


def test_t_interval_of_three_differences():
    # Differences 1, 2, 6: mean 3, deviation sqrt(7), t = 3 / sqrt(7 / 3) = 1.964.
    found = paired([11.0, 22.0, 36.0], [10.0, 20.0, 30.0])
    half = T_2 * (7 / 3) ** 0.5
    assert (found.mean, found.n) == (3.0, 3)
    assert found.std == pytest.approx(7**0.5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    # With 2 degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t^2).
    t = 3 / (7 / 3) ** 0.5
    assert found.p == pytest.approx(1 - t / (2 + t * t) ** 0.5)


def test_the_level_sets_the_interval():
    # With 1 degree of freedom the quantile is tan(pi level / 2): 1 at level 0.5.
    found = paired([1.0, 3.0], [0.0, 0.0], level=0.5)
    assert (found.low, found.high) == pytest.approx((1.0, 3.0))


def test_one_pair_has_no_interval():
    assert paired([0.5], [0.25]) == Paired(0.25, None, None, None, 1, None)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_equal_differences_have_an_interval_of_length_zero(shift, p):
    found = paired([0.5 + shift, 0.75 + shift], [0.5, 0.75])
    assert found == Paired(shift, 0.0, shift, shift, 2, p)


def test_pairs_matter_and_not_their_order():
    one = paired([1.0, 5.0, 9.0], [0.0, 5.0, 7.0])
    assert one == paired([9.0, 1.0, 5.0], [7.0, 0.0, 5.0])
    assert one.std != paired([1.0, 5.0, 9.0], [7.0, 0.0, 5.0]).std


def test_interval_keeps_its_level_without_a_difference():
    """What the percentile bootstrap misses: 5 % of intervals leave zero out."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(2000, 2, 3))
    missed = [not found.low <= 0 <= found.high for found in (paired(*x) for x in pairs)]
    assert 0.035 < np.mean(missed) < 0.065


@pytest.mark.parametrize(
    ("values", "baseline", "level", "words"),
    [
        ([1.0], [1.0, 2.0], 0.95, "2 values and not 1"),
        ([], [], 0.95, "at least one number"),
        ([1.0], [1.0], 95, "outside"),
    ],
)
def test_bad_input_is_named(values, baseline, level, words):
    with pytest.raises(ValueError, match=words):
        paired(values, baseline, level)


def test_holm_by_hand():
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, max(0.06, 0.04 * 1)
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_holm_caps_at_one_and_skips_what_has_no_test():
    assert holm([0.9, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []
