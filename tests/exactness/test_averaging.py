"""x"""

import time

import numpy as np
import pytest

import fedcmi_jax as fc
from tests.exactness import problem, reference


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavg(momentum):
    t = time.time()
    for state, info, theirs in problem.run(
        fc.methods.fedavg(), reference.FedAvg, momentum=momentum
    ):
        d = max(
            np.abs(v - theirs.params[k]).max()
            for k, v in problem.flat(state.params).items()
        )
        print(info.cohort, d, time.time() - t)
