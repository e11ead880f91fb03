"""The capacity of a federation's programs."""

import numpy as np
import pytest

from fedcmi_jax.assembly import coarse_capacity
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.testing.problem import SIZES, federation
from tests.test_config import tiny


def test_coarse_capacities_are_few_and_close():
    sizes = np.arange(1, 4096)
    rounded = np.array([coarse_capacity(int(n)) for n in sizes])
    assert (rounded >= sizes).all()
    assert (rounded < 1.125 * sizes + 1e-9).all()
    assert (np.diff(rounded) >= 0).all()
    assert len(set(rounded[2047:])) <= 9


def test_capacity_is_exact_unless_given():
    assert federation().max_size == max(SIZES)
    assert federation(capacity=20).max_size == 20
    with pytest.raises(ValueError, match="capacity: 11 is less than the 12 samples"):
        federation(capacity=11)


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_rounds_its_capacity_up(stream):
    # 60 samples at 3 clients are 20 each: a multiple of 2 = 16 / 8; at 7 clients 9.
    for clients, capacity in ((3, 20), (7, 9), (1, 60)):
        values = {"clients": clients, "clients_per_round": 1, "stream": stream}
        assert build(tiny(**values)).federation.max_size == capacity
    built = build(tiny(clients=1, clients_per_round=1, dataset=samples(67)))
    assert built.federation.max_size == 72


def samples(n):
    return {"name": "synthetic", "train_samples": n, "num_classes": 3, "features": 4}
