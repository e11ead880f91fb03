import functools

import jax
import pytest

import fedcmi_jax as fc
from tests.exactness import baselines
from tests.exactness.problem import COHORT, Problem, assert_close
from tests.exactness.reference import FedAvg

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

# Methods with quick conformance tests are slow here.
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.9])


@functools.cache
def problem(name, *static) -> Problem:
    return Problem(fc.methods.REGISTRY[name], dict(static))


@MOMENTA
def test_fedavg(momentum):
    problem("fedavg").run(FedAvg, momentum=momentum)


@MOMENTA
@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_fedprox(momentum, mu):
    problem("fedprox").run(baselines.FedProx, momentum=momentum, mu=mu)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["data", "uniform"])
@pytest.mark.parametrize(("momentum", "variate_scale"), [(0.0, 1.0), (0.9, 0.3)])
def test_scaffold(weights, momentum, variate_scale):
    state, theirs = problem("scaffold", ("weights", weights)).run(
        baselines.Scaffold, momentum=momentum, variate_scale=variate_scale
    )
    assert_close(state.shared, theirs.c, "c")
    for i, c_i in enumerate(theirs.c_i):
        assert_close(jax.tree.map(lambda x, i=i: x[i], state.memory), c_i, f"c_{i}")


@pytest.mark.slow
def test_scaffold_undoes_the_length_of_steps_with_momentum():
    def method():
        return fc.methods.scaffold(momentum=0.9)

    state, theirs = Problem(method).run(baselines.Scaffold, momentum=0.9)
    assert_close(state.shared, theirs.c, "c")


@MOMENTA
@pytest.mark.parametrize(
    "form",
    [
        "distance_ce",
        pytest.param("prototype_mse", marks=pytest.mark.slow),
        pytest.param("sample_mse", marks=pytest.mark.slow),
    ],
)
def test_fedproto(momentum, form):
    problem("fedproto", ("form", form)).run(
        baselines.FedProto, momentum=momentum, lam=0.5
    )


@pytest.mark.slow
@pytest.mark.parametrize("average", ["uniform", "by_size"])
def test_power_of_choice(average):
    def cohort(info, theirs):
        chosen = sorted(info.cohort.tolist())
        assert chosen == theirs.choose(COHORT)
        return chosen

    problem("power_of_choice", ("average", average)).run(
        baselines.PowerOfChoice, cohort=cohort
    )


@pytest.mark.slow
@MOMENTA
def test_fedmsplit_style(momentum):
    mixing = problem("fedmsplit", ("eta", 0.4), ("tau", 0.3))
    state, theirs = mixing.run(baselines.FedMSplitStyle, momentum=momentum)
    for i, theta in enumerate(theirs.theta):
        own = jax.tree.map(lambda x, i=i: x[i], state.memory)
        assert_close(own, theta, f"theta_{i}")
