"""What client-level privacy costs: the table of docs/results.md.

    python experiments/privacy_study.py --methods=fedavg

noisy_mnist's 60,000 training samples at 5,000 clients, 200 of them expected in a round,
half of the clients with one modality; three seeds. Epsilon at delta = 5000^-1.1 after
the last round. Test accuracy then, fused and of the weak modality alone, and the share
of updates that were longer than the bound.
"""

import argparse
from typing import Any

from study import Study, cell, last, lines, merged

from fedcmi_jax.experiment import config as configs

SEEDS = 3

BASE: dict[str, Any] = {
    "dataset": {"name": "noisy_mnist"},
    "partition": {"name": "iid"},
    "clients": 5000,
    "clients_per_round": 200,
    "encoder": {"name": "mlp", "features": 32},
    "model": {"width": 32},
    "local": {"epochs": 2, "batch_size": 12, "learning_rate": 0.05},
    "chunk_size": 25,
    "rounds": 40,
}
"""The other fields have their defaults."""

EVERY = 10
"""Rounds between evaluations."""

CLIP = 1.0
"""A fifth of the first round's updates are longer, and none later."""

LEVELS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "infinity": {"name": "gaussian", "clip": CLIP, "noise_multiplier": 0.0},
} | {
    str(epsilon): {"name": "gaussian", "clip": CLIP, "target_epsilon": float(epsilon)}
    for epsilon in (8, 3, 1)
}
"""Epsilon -> section; infinity clips and adds no noise."""


def main() -> None:
    """Runs the study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="fedavg,fedcmi")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--manual-dir", default=None)
    args = parser.parse_args()
    methods = args.methods.split(",")
    study = Study(
        "-".join(["privacy", *methods]),
        f"python experiments/privacy_study.py --methods={args.methods}",
    )
    study.row("method", "epsilon", "fused", "weak alone", "clipped")
    found, where = {}, {"data_dir": args.data_dir, "manual_dir": args.manual_dir}
    for method in methods:
        for level, section in LEVELS.items():
            change = {"method": {"name": method}, "privacy": section}
            values = merged(BASE, change)
            values["dataset"] = values["dataset"] | where
            runs = lines(configs.from_dict(values), SEEDS, EVERY)
            clipped = cell(last(runs, "clipped")) if level != "none" else "-"
            study.row(
                method,
                level,
                cell(last(runs, "acc")),
                cell(last(runs, "acc_noisy_zero")),
                clipped,
            )
            found[f"{method}, {level}"] = runs
    study.write(BASE, found)


if __name__ == "__main__":
    main()
