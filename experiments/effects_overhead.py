"""What privacy, compression and systems effects cost in a round: docs/results.md.

    python experiments/effects_overhead.py

noisy_digits at its defaults, FedAvg and FedCMI. Processor seconds of a round, which
other work on the machine hardly changes, the least of five calls of ten rounds; the
variants take turns. Needs no dp-accounting: noise is added by a given multiplier.
"""

import time
from typing import Any

import jax
import numpy as np
from study import Study

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.bound import algorithm_of
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.sections import create

BASE: dict[str, Any] = {"dataset": {"name": "noisy_digits"}, "rounds_per_call": 10}

NOISE: dict[str, Any] = {
    "name": "gaussian",
    "noise_multiplier": 1.0,
    "sampling": "uniform",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "off": {},
    "clipping and noise": {"privacy": NOISE},
    "the same, adaptive": {"privacy": NOISE | {"quantile": 0.5, "count_deviation": 2}},
    "8 bits": {"compression": {"name": "quantize"}},
    "top 1 %, feedback": {"compression": {"name": "top_k"}},
    "random 1 %, feedback": {"compression": {"name": "random_k"}},
    "dropout, deadline": {
        "systems": {"name": "simulated", "dropout": 0.1, "deadline": 60.0}
    },
}
"""Cohorts are uniform everywhere, so that all train the same number of clients."""

CALLS, ROUNDS = 5, 10


class Variant:
    """A variant's program and where it has got to."""

    def __init__(self, made: Experiment, change: dict[str, Any]):
        """Compiles it."""
        config = configs.from_dict(configs.to_dict(made.config) | change)
        privacy = create("privacy", config.privacy)
        built = algorithm_of(config, made.method, made.model, privacy=privacy)
        self.run, self.federation = built.run, made.federation
        self.state = built.init(made.key, self.federation)
        self.seconds: list[float] = []
        self.call()
        self.seconds.clear()

    def call(self) -> None:
        """Ten rounds."""
        begun = time.process_time()
        self.state, _ = self.run(self.state, self.federation, np.int32(ROUNDS))
        jax.block_until_ready(self.state.params)
        self.seconds.append((time.process_time() - begun) / ROUNDS)


def main() -> None:
    """Measures, prints the table and writes it."""
    study = Study("effects-overhead", "python experiments/effects_overhead.py")
    study.row("method", "variant", "ms of processor time a round", "ratio")
    for method in ("fedavg", "fedcmi"):
        values = BASE | {"method": {"name": method}}
        made = build(configs.from_dict(values))
        variants = {name: Variant(made, change) for name, change in VARIANTS.items()}
        for _ in range(CALLS):
            for variant in variants.values():
                variant.call()
        off = min(variants["off"].seconds)
        for name, variant in variants.items():
            least = min(variant.seconds)
            study.row(method, name, f"{1e3 * least:.0f}", f"{least / off:.2f}")
    study.write(BASE, {})


if __name__ == "__main__":
    main()
