"""Attacks: who they are, and what they send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import aggregate, attacks
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    all_equal,
    assert_close,
    assert_equal,
    federation,
    model,
    rounds,
)
from fedcmi_jax.types import Mean, Sum

KEY = jax.random.key(0)


def sent(values):
    """One number per client as parameters; an upload; everybody owns."""
    x = jnp.array(values, jnp.float32)[:, None]
    ones = jnp.ones(len(x))
    return aggregate.Sent(
        {"a": x}, {"a": 2 * x}, {"a": ones}, ones, ones, ones, (Mean(x, ones), Sum(x))
    )


def test_attackers_are_a_share_of_the_clients_and_stay():
    who = attacks.attackers(attacks.scale(fraction=0.25), KEY, 10)
    assert int(who.sum()) == 3
    again = attacks.attackers(attacks.ipm(fraction=0.25), KEY, 10)
    np.testing.assert_array_equal(who, again)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [(attacks.scale(factor=7.0), 14.0), (attacks.sign_flip(), -2.0)],
    ids=["scale", "sign_flip"],
)
def test_single_clients_change_all_that_they_send(attack, expected):
    x = jnp.array([2.0])
    honest = sent([2.0])._replace(
        delta={"a": x}, upload=(Mean(x, jnp.ones(())), Sum(x))
    )
    honest = honest._replace(stats={"a": x})
    bad = attacks.changed(attack, KEY, honest, jnp.array(True))
    for found in (bad.delta["a"], bad.stats["a"], *(u.value for u in bad.upload)):
        assert float(found[0]) == expected
    assert float(bad.upload[0].weight) == 1
    good = attacks.changed(attack, KEY, honest, jnp.array(False))
    assert_equal(good, honest)


def test_noise_has_its_deviation():
    many = sent(np.zeros(2000))
    bad = attacks.changed(attacks.gaussian(deviation=3.0), KEY, many, jnp.array(True))
    assert abs(float(bad.delta["a"].std()) - 3.0) < 0.2
    assert not all_equal(bad.delta, bad.stats)


def test_alie_by_hand():
    """Honest 1, 3, 5: mean 3, deviation sqrt(8/3)."""
    accepted, bad = jnp.array([1, 1, 1, 1, 1, 0], bool), jnp.array([0, 0, 0, 1, 1, 0])
    stack = sent([1.0, 3.0, 5.0, 99.0, 99.0, np.nan])
    found = attacks.crafted(attacks.alie(z=1.5), stack, accepted, bad > 0)
    expected = 3 - 1.5 * np.sqrt(8 / 3)
    values, uploaded = found.delta["a"][:5, 0], found.upload[1].value[3:5, 0]
    np.testing.assert_allclose(values, [1, 3, 5, expected, expected], rtol=1e-6)
    np.testing.assert_allclose(uploaded, [expected] * 2, rtol=1e-6)


def test_ipm_by_hand():
    stack = sent([1.0, 3.0, 5.0, 99.0])
    bad = jnp.array([False, False, False, True])
    found = attacks.crafted(attacks.ipm(factor=0.5), stack, jnp.ones(4, bool), bad)
    assert found.delta["a"][:, 0].tolist() == [1, 3, 5, -1.5]
    assert found.stats["a"][:, 0].tolist() == [2, 6, 10, -3]


def test_alie_hides_where_the_paper_says():
    """n = 50, m = 24: s = 26 - 24 = 2, Phi^-1(24 / 26) = 1.426."""
    attack = attacks.alie(z=None)
    z = -attack.craft(jnp.zeros(1), jnp.ones(1), jnp.array(50), jnp.array(24))
    np.testing.assert_allclose(z, [1.4261], atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(attacks.REGISTRY) - {"none"}))
def test_a_share_that_is_nobody_or_everybody_is_refused(name):
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"fraction: .* is outside \(0, 1\)"):
            attacks.REGISTRY[name](fraction=fraction)
    attack = attacks.REGISTRY[name](fraction=0.05)
    problem = algorithm(fc.methods.fedavg(), model("classifier"), attack=attack)
    with pytest.raises(ValueError, match="attack: fraction 0.05 of 5 clients is nob"):
        problem.init(KEY, federation())


@pytest.mark.up_to_rounding
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ipm", "label_flip"])
def test_a_round_under_attack(name):
    """IPM on the mean: the honest mean times a known share; labels: another model."""
    fed = federation(np.ones((5, 2), bool))
    method, net = fc.methods.fedavg(), model("classifier")
    attack = attacks.REGISTRY[name](fraction=0.4)

    def trained(attack, fed):
        problem = algorithm(method, net, attack=attack, guard_factor=np.inf)
        state, info = rounds(problem, fed, 1, step=jax.jit(problem.round))
        start = problem.init(KEY, fed)
        moved = jax.tree.map(jnp.subtract, state.params, start.params)
        return moved, info, start

    moved, info, start = trained(attack, fed)
    assert int(info.rejected) == 0
    if name == "label_flip":
        assert not all_equal(moved, trained(None, fed)[0])
        return
    key = jax.random.fold_in(start.key, fc.cohort.KEYS.index("attack"))
    bad = np.asarray(attacks.attackers(attack, key, 5))
    sizes = np.array(SIZES, np.float32)
    # Honest clients count alike for the attackers, and by their samples for the mean:
    # with equal weights the whole is (3 - 2 * 0.5) / 5 of the honest mean.
    alike = method._replace(weight=lambda client, context: jnp.ones(()))
    method = alike
    moved, _, _ = trained(attack, fed)
    method = alike._replace(
        weight=lambda client, context: (
            1.0
            - jnp.asarray(bad, jnp.float32)[
                jnp.argmax(sizes == client.data.num_examples)
            ]
        )
    )
    honest, _, _ = trained(None, fed)
    assert_close(moved, jax.tree.map(lambda x: x * 2 / 5, honest), atol=2e-6)
