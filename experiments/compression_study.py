"""Accuracy against bytes: the table of docs/results.md.

    python experiments/compression_study.py

noisy_digits at its defaults (20 clients, 5 in a round, Dirichlet 0.3), three seeds.
Test accuracy at the last round, the megabytes that all clients sent up to there, and
those after which the mean accuracy had reached ``GOAL``.
"""

import argparse
from typing import Any

from study import Study, cell, last, lines, merged

from fedcmi_jax.experiment import config as configs

SEEDS = 3

EVERY = 5
"""Rounds between evaluations."""

GOAL = 0.85
"""Test accuracy whose price is shown."""

BASE: dict[str, Any] = {"dataset": {"name": "noisy_digits"}, "rounds": 60}
"""The other fields have their defaults."""

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "bfloat16": {"name": "bfloat16"},
    "8 bits": {"name": "quantize", "bits": 8},
    "4 bits": {"name": "quantize", "bits": 4},
    "2 bits": {"name": "quantize", "bits": 2},
    "top 10 %": {"name": "top_k", "share": 0.1},
    "top 1 %": {"name": "top_k", "share": 0.01},
    "top 1 %, no feedback": {"name": "top_k", "share": 0.01, "feedback": False},
    "top 1 %, 4 bits": {"name": "top_k", "share": 0.01, "bits": 4},
    "random 10 %": {"name": "random_k", "share": 0.1},
}


def main() -> None:
    """Runs the study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="fedavg")
    args = parser.parse_args()
    methods = args.methods.split(",")
    study = Study(
        "-".join(["compression", *methods]),
        f"python experiments/compression_study.py --methods={args.methods}",
    )
    study.row("method", "sent", "acc", "weak alone", "MB", f"MB to {GOAL:.0%}")
    found = {}
    for method in methods:
        for name, section in COMPRESSIONS.items():
            change = {"method": {"name": method}, "compression": section}
            runs = lines(configs.from_dict(merged(BASE, change)), SEEDS, EVERY)
            sent = [[line["sent"] / 1e6 for line in run] for run in runs]
            study.row(
                method,
                name,
                cell(last(runs, "acc")),
                cell(last(runs, "acc_noisy_zero")),
                f"{sum(map(sum, sent)) / SEEDS:.3g}",
                to_goal(runs, sent),
            )
            found[f"{method}, {name}"] = runs
    study.write(BASE, found)


def to_goal(runs: list[list[dict[str, float]]], sent: list[list[float]]) -> str:
    """Mean megabytes up to the first evaluation whose mean accuracy is the goal."""
    for i in range(len(runs[0])):
        if sum(run[i]["acc"] for run in runs) >= GOAL * len(runs):
            return f"{sum(sum(x[: i + 1]) for x in sent) / len(runs):.3g}"
    return "-"


if __name__ == "__main__":
    main()
