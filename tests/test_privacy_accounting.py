"""Epsilon of a run: dp-accounting's own values, calibration, printed and logged.

Needs the extra ``privacy``.
"""

import importlib
import math
import os
import sys

import pytest

import fedcmi_jax as fc
from fedcmi_jax.experiment import accounting, experiment
from fedcmi_jax.experiment.summary_file import read_summary
from fedcmi_jax.privacy import gaussian, places

N, K, ROUNDS = 5000, 50, 100


def needs(package):
    """The package; .ci/run says in FEDCMI_REQUIRE_EXTRAS where it must be there."""
    if "privacy" in os.environ.get("FEDCMI_REQUIRE_EXTRAS", "").split(","):
        return importlib.import_module(package)
    return pytest.importorskip(package)


@pytest.fixture
def dp():
    needs("dp_accounting.pld")
    needs("dp_accounting.rdp")
    return needs("dp_accounting")


def made(rounds=ROUNDS, **options):
    return accounting.guarantee(gaussian(**options), K, N, rounds)


def test_a_poisson_cohort_is_counted_by_privacy_loss_distributions(dp):
    """dp-accounting's grid is finer: its value is below, by less than a thousandth."""
    ours = made(noise_multiplier=1.0)
    theirs = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp.PoissonSampledDpEvent(K / N, dp.GaussianDpEvent(1.0))
    exact = theirs.compose(event, ROUNDS).get_epsilon(ours.delta)
    assert exact <= ours.epsilon(ROUNDS) < 1.001 * exact


@pytest.mark.slow
@pytest.mark.parametrize("cap", [80, None])
def test_a_cut_cohort_costs_no_less_than_the_exact_accounting_of_it(dp, cap):
    """Truncated Poisson batches, arXiv 2508.15089."""
    ours = made(noise_multiplier=1.0, cap=cap)
    most = places(ours.privacy, K, N)
    theirs = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp.TruncatedSubsampledGaussianDpEvent(N, K / N, most, 1.0)
    exact = theirs.compose(event, 1).get_epsilon(ours.delta)
    assert exact <= ours.epsilon(1)
    if cap is None:
        assert ours.epsilon(1) < 1.005 * exact


def test_a_uniform_cohort_is_counted_with_twice_the_bound(dp):
    ours = made(noise_multiplier=4.0, sampling="uniform")
    theirs = dp.rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
    )
    event = dp.SampledWithoutReplacementDpEvent(N, K, dp.GaussianDpEvent(2.0))
    exact = theirs.compose(event, ROUNDS).get_epsilon(ours.delta)
    assert ours.epsilon(ROUNDS) == pytest.approx(exact, rel=1e-9)


def test_full_participation_is_the_gaussian_mechanism(dp):
    """K = N without sampling: rounds add up as sqrt(T) less noise, exactly by RDP."""
    ours = accounting.guarantee(
        gaussian(noise_multiplier=40.0, sampling="uniform", delta=1e-5), 20, 20, 25
    )
    theirs = dp.rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
    )
    exact = theirs.compose(dp.GaussianDpEvent(20.0 / 5)).get_epsilon(1e-5)
    assert ours.epsilon(25) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("sampling", ["poisson", "uniform"])
def test_calibrated_noise_is_enough_and_hardly_more(dp, sampling):
    ours = made(target_epsilon=3.0, sampling=sampling)
    assert 2.95 < ours.epsilon(ROUNDS) <= 3.0
    assert ours.epsilon(0) == 0
    assert ours.epsilon(ROUNDS // 2) < ours.epsilon(ROUNDS) < ours.epsilon(2 * ROUNDS)


def test_a_cap_that_is_often_met_leaves_no_guarantee(dp):
    assert math.isinf(made(noise_multiplier=1.0, cap=K).epsilon(ROUNDS))
    with pytest.raises(ValueError, match="target_epsilon: 1.0 is out of reach"):
        made(target_epsilon=1.0, cap=K)


VALUES = {
    "dataset": {"name": "synthetic", "train_samples": 200, "test_samples": 40},
    "encoder": {"features": 8},
    "model": {"width": 8},
    "method": {"name": "fedavg"},
    "clients": 20,
    "rounds": 4,
    "eval_every": 2,
    "local": {"epochs": 1},
    "privacy": {"name": "gaussian", "target_epsilon": 8.0, "quantile": 0.5},
}


def test_a_run_says_what_it_promises_and_what_it_has_spent(dp, tmp_path):
    said = []
    config = fc.config.from_dict(VALUES)
    made = experiment.build(config, log=said.append)
    spent = made.guarantee.epsilon(4)
    assert said[-2].startswith(
        f"privacy: epsilon {spent:.3g} at delta 0.0371 after 4 rounds, for one client"
    )
    assert said[-1].startswith("privacy: not covered: ")
    history = fc.train(config, output=tmp_path / "run")
    lines = [(r["epsilon"], r["clip"]) for r in history.records]
    assert [e for e, _ in lines] == [made.guarantee.epsilon(r) for r in (2, 4)]
    assert 7.9 < lines[-1][0] <= 8
    assert lines[0][1] != lines[1][1]  # it adapts
    summary = read_summary(tmp_path / "run")
    assert summary["privacy"]["epsilon"] == lines[-1][0]
    # What the noise was calibrated for cannot grow.
    path = tmp_path / "run/config.json"
    path.write_text(path.read_text().replace('"rounds": 4', '"rounds": 6'))
    with pytest.raises(ValueError, match="for which privacy.target_epsilon set the"):
        fc.resume(tmp_path / "run")


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    noisy = {"name": "gaussian", "target_epsilon": 2.5}  # not in a cache yet
    config = fc.config.from_dict(VALUES | {"privacy": noisy})
    with pytest.raises(ValueError, match=r"pip install 'fedcmi_jax\[privacy\]'") as e:
        experiment.build(config)
    assert "\n" not in str(e.value)
    clipped = {"name": "gaussian", "noise_multiplier": 0.0}
    config = fc.config.from_dict(VALUES | {"privacy": clipped})
    assert math.isinf(experiment.build(config).guarantee.epsilon(4))
