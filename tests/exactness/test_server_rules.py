import functools

import jax
import pytest

import fedcmi_jax as fc
from tests.exactness import server_rules
from tests.exactness.problem import Problem, assert_close
from tests.marks import slow

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

# Methods with quick conformance tests are slow here.
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.9])


@functools.cache
def problem(name, *static) -> Problem:
    return Problem(fc.methods.REGISTRY[name], dict(static))


@pytest.mark.parametrize("momentum", [slow(0.0), 0.9])
def test_fednova(momentum):
    nova = functools.partial(fc.methods.fednova, momentum=momentum)
    Problem(nova).run(server_rules.FedNova, momentum=momentum)


@pytest.mark.slow
@MOMENTA
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_feddyn(momentum, alpha):
    state, theirs = problem("feddyn", ("alpha", alpha)).run(
        server_rules.FedDyn, momentum=momentum
    )
    h = {k: x / alpha for k, x in theirs.h.items()}
    assert_close(state.shared, h, "h")
    for i, own in enumerate(theirs.lambdas):
        ours = jax.tree.map(lambda x, i=i: x[i], state.memory)
        assert_close(ours, {k: x / alpha for k, x in own.items()}, f"lambda_{i}")


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("lipschitz", [None, slow(3.0)])
def test_qfedavg(q, lipschitz):
    problem("qfedavg", ("lipschitz", lipschitz)).run(server_rules.QFedAvg, q=q)


def test_fedper():
    state, theirs = problem("fedper").run(server_rules.FedPer)
    for i, own in enumerate(theirs.own):
        ours = jax.tree.map(lambda x, i=i: x[i], state.personal)
        mine = {k: x for k, x in own.items() if k.startswith("fusion")}
        assert_close(ours, mine, f"client {i}")


@pytest.mark.slow
@pytest.mark.parametrize("head_share", [0.25, 0.5])
def test_fedrep(head_share):
    state, theirs = problem("fedrep", ("head_share", head_share)).run(
        server_rules.FedRep
    )
    for i, own in enumerate(theirs.own):
        ours = jax.tree.map(lambda x, i=i: x[i], state.personal)
        mine = {k: x for k, x in own.items() if k.startswith("fusion")}
        assert_close(ours, mine, f"client {i}")


@MOMENTA
def test_moon(momentum):
    problem("moon").run(server_rules.Moon, momentum=momentum, mu=0.7)
