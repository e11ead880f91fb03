import functools

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from tests.exactness import modulation
from tests.exactness.problem import SEED, Problem, Scene, federation, flat, model

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

# Methods with quick conformance tests are slow here.
MOMENTA = pytest.mark.parametrize("momentum", [0.0, 0.9])


@functools.cache
def problem(name, *static) -> Problem:
    return Problem(fc.methods.REGISTRY[name], dict(static))


@MOMENTA
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_fedogm(momentum, alpha):
    problem("fedogm", ("ge", False)).run(
        modulation.FedOGM, momentum=momentum, alpha=alpha
    )


ALONE = Scene(sizes=(10,), has=((1, 1),), noise_a=(1.0,), noise_v=(1.0,))


def one_step(method, keys):
    """The parameters, and those after one step of each key: w - gradient."""
    local = fc.LocalTraining(
        batch_size=sum(ALONE.sizes),
        learning_rate=1.0,
        optimizer=fc.torch_sgd(momentum=0.0, weight_decay=0.0),
    )
    algorithm = fc.build_algorithm(
        method, model("classifier"), clients_per_round=1, local=local
    )
    clients = federation(ALONE)
    state = algorithm.init(jax.random.key(SEED), clients)
    step = jax.jit(
        jax.vmap(lambda key: algorithm.round(state._replace(key=key), clients)[0])
    )
    return flat(state.params), flat(step(keys).params)


@pytest.mark.slow
def test_noise_of_fedogm_has_the_deviation_of_the_gradient():
    keys = jax.random.split(jax.random.key(0), 2000)
    start, plain = one_step(fc.methods.fedavg(), keys[:1])
    _, noisy = one_step(fc.methods.fedogm(alpha=0.0, ge=True), keys)
    for name, w in start.items():
        noise = noisy[name] - plain[name]
        if name.startswith("encoder") and name.endswith("kernel"):
            deviation = np.std(plain[name][0] - w, ddof=1)
            np.testing.assert_allclose(noise.std(), deviation, rtol=0.02)
            assert abs(noise.mean()) < 0.02 * deviation
        else:
            np.testing.assert_allclose(noise, 0.0, atol=1e-6)


@pytest.mark.slow
@MOMENTA
@pytest.mark.parametrize("coefficient", ["switch", "soft"])
def test_fedpmr(momentum, coefficient):
    problem("fedpmr", ("coefficient", coefficient)).run(
        modulation.FedPMR, momentum=momentum, alpha=0.7
    )


@pytest.mark.slow
def test_fedpmr_with_slow_prototypes_and_entropy():
    def method(keep, **options):
        return fc.methods.fedpmr(momentum=keep, **options)

    options = {"keep": 0.4, "entropy": 0.3, "entropy_rounds": 2}
    Problem(method, options).run(modulation.FedPMR)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        ("sign", "original"),
        ("sign", "fl_port"),
        ("score_state", "reset"),
        ("pad", "feature"),
        ("pad_grad", False),
    ],
    ids=str,
)
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_fedagm(option, alpha):
    state, theirs = problem("fedagm", option).run(modulation.FedAGM, alpha=alpha)
    assert theirs.clipped
    np.testing.assert_array_equal(state.memory.steps, theirs.count)
    means = [[mean[m] for m in "av"] for mean in theirs.mean]
    np.testing.assert_allclose(state.memory.means, means, atol=1e-5)
