import numpy as np
import pytest

import fedcmi_jax as fc
from tests.exactness import servers
from tests.exactness.problem import MIXED, Problem, assert_close
from tests.marks import slow

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

MOSTLY_AUDIO = MIXED._replace(
    has=((1, 1), (1, 0), (1, 0), (0, 1), (1, 1), (1, 0)),
)
SEED = 38
"""Cohorts 3 4, 1 2, 0 5: nobody has modality v in the second round."""


@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        ("fed_adam", servers.FedAdam, {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
        slow("fed_yogi", servers.FedYogi, {"beta_1": 0.9, "beta_2": 0.9, "tau": 1e-2}),
        slow("fed_adagrad", servers.FedAdagrad, {"beta_1": 0.3, "tau": 1e-3}),
        slow("fed_avgm", servers.FedAvgM, {"momentum": 0.8}),
    ],
)
def test_server_optimizer(name, reference, options):
    def server():
        build = getattr(fc.server_optimizers, name)
        return build(reference.server_lr, **options)

    named = {"beta" if k == "momentum" else k: x for k, x in options.items()}
    configured = type(reference.__name__, (reference,), named)
    problem = Problem(
        fc.methods.fedavg, server=server, scene=MOSTLY_AUDIO, clients_per_round=2
    )
    problem.run(configured, seed=SEED, momentum=0.0)
    before, kept = {}, []
    for state, _, theirs in problem.rounds(configured, seed=SEED):
        for moment in ("m", "v") if name != "fed_avgm" else ():
            ours = getattr(state.server_optimizer, moment)
            assert_close(ours, getattr(theirs, moment), moment)
        encoder = {k: v for k, v in theirs.v.items() if k.startswith("encoder/v")}
        kept.append(
            before and all(np.array_equal(before[k], encoder[k]) for k in before)
        )
        before = encoder
    assert kept == [{}, True, False]
