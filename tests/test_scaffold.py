"""SCAFFOLD's fair learning rate and its control variates under momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.experiment import bound, experiment
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.methods.seen import LocalUpdate
from fedcmi_jax.optimizers import torch_sgd
from fedcmi_jax.types import Frozen


@pytest.mark.parametrize(("steps", "expected"), [(1, 1.0), (5, 2.63), (20, 6.05)])
def test_momentum_gain_by_hand(steps, expected):
    by_hand = np.mean([(1 - 0.9**s) / (1 - 0.9) for s in range(1, steps + 1)])
    assert by_hand == pytest.approx(expected, abs=0.005)
    assert float(fc.momentum_gain(0.9, steps)) == pytest.approx(by_hand, rel=1e-5)
    assert float(fc.momentum_gain(0.0, steps)) == 1.0
    assert float(jax.jit(fc.momentum_gain)(0.9, steps)) == pytest.approx(by_hand, 1e-5)


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_a_constant_gradient_moves_as_far_with_and_without_momentum(steps):
    def moved(momentum, rate):
        optimizer = torch_sgd(momentum=momentum, weight_decay=0.0)(rate)
        w = jnp.zeros(())
        state = optimizer.init(w)
        for _ in range(steps):
            step, state = optimizer.update(jnp.ones(()), state, w)
            w = w + step
        return float(w)

    gain = float(fc.momentum_gain(0.9, steps))
    assert moved(0.0, 0.01 * gain) == pytest.approx(moved(0.9, 0.01), rel=1e-5)


class Scalar:
    """One weight, owned by everybody."""

    modalities = ("m",)
    num_classes = 2
    trained = staticmethod(lambda available: {"w": jnp.ones(())})
    frozen = Frozen()


class Samples:
    num_examples = jnp.array(3)
    available = jnp.ones(1)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_variates_measure_the_mean_gradient_under_momentum(momentum, steps):
    """With a constant gradient of 2 and c = c_i = 0, c_i+ is 2."""
    rate, gradient, w, buffer = 0.05, 2.0, 1.0, 0.0
    for _ in range(steps):
        buffer = momentum * buffer + gradient
        w -= rate * buffer
    zero = {"w": jnp.zeros(())}
    client = fc.methods.Client(
        Scalar,
        {"w": jnp.ones(())},
        {},
        zero,
        zero,
        Samples,
        0,
        learning_rate=jnp.array(rate),
        num_steps=jnp.array(steps),
    )
    ended = LocalUpdate({"w": jnp.array(w)}, {})
    method = fc.methods.scaffold(momentum=momentum)
    _, variate = method.finish(client, ended, ())
    assert float(variate["w"]) == pytest.approx(gradient, rel=1e-4)


def config(**changes):
    """Five clients of 60 to 100 samples: 3 epochs of 4 steps at the median client."""
    values = {
        "dataset": {"name": "synthetic", "train_samples": 400, "test_samples": 20},
        "encoder": {"name": "mlp", "features": 4},
        "method": {"name": "scaffold"},
        "partition": {"name": "quantity_skew", "alpha": 1.0},
        "local": {"epochs": 3, "batch_size": 20, "learning_rate": 0.02},
        "clients": 5,
        "clients_per_round": 2,
        "rounds": 4,
    }
    local = values["local"] | changes.pop("local", {})
    return configs.from_dict(values | {"local": local} | changes)


@pytest.fixture
def rates(monkeypatch):
    """(config, rounds) -> learning rates of a run, what was said, sizes of clients."""
    monkeypatch.setattr(bound, "build_algorithm", lambda *_, local, **__: local)
    monkeypatch.setattr(experiment, "check_state", lambda *_: None)

    def look(config, rounds=(0,)):
        said = []
        built = experiment.build(config, log=said.append)
        found = [float(built.algorithm.rate(jnp.int32(t))) for t in rounds]
        return found, said, np.asarray(built.federation.sizes)

    return look


def test_scaffold_gets_the_median_clients_gain(rates):
    found, said, sizes = rates(config())
    assert len(set(sizes.tolist())) > 1
    steps = 3 * -(-int(np.median(sizes)) // 20)
    gain = np.mean([(1 - 0.9**s) / 0.1 for s in range(1, steps + 1)])
    assert found == pytest.approx([0.02 * gain], rel=1e-5)
    (line,) = said
    assert f"learning rate 0.02 x {gain:.2f} = {0.02 * gain:.3g}" in line
    assert f"over {steps} steps" in line
    assert "--local.rate-scale=1" in line


def test_a_falling_rate_is_scaled_at_both_ends(rates):
    local = {"learning_rate_min": 0.002}
    scaled, _, _ = rates(config(local=local), (0, 4))
    plain, _, _ = rates(config(local=local | {"rate_scale": 1.0}), (0, 4))
    assert plain == pytest.approx([0.02, 0.002], rel=1e-5)
    assert np.divide(scaled, plain).tolist() == pytest.approx([scaled[0] / 0.02] * 2)
    assert scaled[0] > 2 * plain[0]


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"local": {"rate_scale": 1.0}}, 0.02, ""),
        ({"local": {"rate_scale": 3.0}}, 0.06, ""),
        ({"local": {"momentum": 0.0}}, 0.02, ""),
        ({"local": {"momentum": 0.9}}, 0.02, "overrides its own 0"),
        ({"local": {"optimizer": "adam"}}, 0.02, ""),
        ({"method": {"name": "fedavg"}}, 0.02, ""),
        ({"method": {"name": "scaffold", "momentum": 0.9}}, 0.02, ""),
    ],
    ids=str,
)
def test_rates_that_are_taken_as_they_are(rates, changes, expected, said):
    found, lines, _ = rates(config(**changes))
    assert found == pytest.approx([expected], rel=1e-6)
    assert said in " ".join(lines)
    assert bool(lines) == bool(said)


def test_the_choice_is_in_the_configuration():
    """What config.json keeps gives the same rates when a run is resumed."""
    for local in ({}, {"rate_scale": 2.5}):
        first = config(local=local)
        again = configs.from_dict(configs.to_dict(first))
        assert again == first
    with pytest.raises(ValueError, match=r"local.rate_scale: 0.0 is below 1e-30"):
        configs.check_config(config(local={"rate_scale": 0.0}))
