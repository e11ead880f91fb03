"""A run that went wrong says so."""

import json

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.final_block import final_block
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.health import signs

LINES = [{"round": 5, "acc": 0.9}, {"round": 7, "rejected": [3]}]


@pytest.mark.parametrize(
    ("acc", "classes", "growth", "count"),
    [
        (0.12, 10, 2.0, 1),  # half of the best, and chance
        (0.40, 10, 2.0, 0),  # half of the best, not chance
        (0.50, 2, 2.0, 0),  # chance, not half of the best
        (0.90, 10, 1001.0, 1),
        (0.10, 10, float("inf"), 2),
        (0.90, 10, float("nan"), 1),
    ],
)
def test_signs(acc, classes, growth, count):
    assert len(signs([*LINES, {"round": 10, "acc": acc}], classes, growth)) == count


@pytest.mark.up_to_rounding
def test_a_poisoned_run_names_it_in_output_and_summary(tmp_path):
    """Two of five clients send a millionfold, and nothing guards."""
    values = {
        "dataset": {"name": "synthetic", "train_samples": 100, "test_samples": 50},
        "partition": {"name": "iid"},
        "encoder": {"name": "mlp", "features": 4},
        "method": {"name": "fedavg"},
        "attack": {"name": "scale", "fraction": 0.4, "factor": 1e6},
        "guard_factor": float("inf"),
        "clients": 5,
        "clients_per_round": 5,
        "rounds": 2,
    }
    notes = []

    class Notes(fc.Callback):
        def note(self, text):
            notes.append(text)

    experiment = build(configs.from_dict(values))
    summary = training.train(experiment, tmp_path, [Notes()])
    written = json.loads((tmp_path / training.SUMMARY).read_text())
    grown = [sign for sign in written["signs"] if "grew" in sign]
    assert len(grown) == 1
    assert grown[0] in notes
    assert grown[0] in final_block(summary)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert not any("set_aside" in line for line in lines)
    assert np.isfinite(summary.final["acc"])
