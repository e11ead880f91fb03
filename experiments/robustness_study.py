"""What holds against poisoned clients: the table of docs/results.md.

    python experiments/robustness_study.py --rounds=12 --methods=fedavg

noisy_digits, 20 clients of which 4 attack, 10 in a round, all multimodal so that every
block has owners enough; three seeds. Test accuracy at the last round.
"""

import argparse
from typing import Any

from study import Study, cell, last, merged

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.history import histories
from fedcmi_jax.experiment.loop import DivergedError
from fedcmi_jax.guard import FACTOR

SEEDS = 3

BASE: dict[str, Any] = {
    "dataset": {"name": "noisy_digits"},
    "clients": 20,
    "clients_per_round": 10,
    "multimodal_fraction": 1.0,
    "chunk_size": 5,
    "guard_factor": "inf",
    "attack": {"name": "none"},
    "aggregator": {"name": "mean"},
}
"""The other fields have their defaults."""

DEFENCES: dict[str, dict[str, Any]] = {
    "mean, no guard": {},
    "mean, guard": {"guard_factor": FACTOR},
    "median": {"aggregator": {"name": "median"}},
    "trimmed mean": {"aggregator": {"name": "trimmed_mean", "fraction": 0.3}},
}
"""By chance 3 of 10 may attack where 4 of 20 do, so 0.3 is trimmed."""

ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "scale": {"name": "scale", "fraction": 0.2},
    "sign_flip": {"name": "sign_flip", "fraction": 0.2},
    "alie": {"name": "alie", "fraction": 0.2},
}


def accuracy(config: configs.Config, rounds: int) -> tuple[str, list[Any]]:
    """A cell of the table, and the seeds' histories; runs may diverge."""
    try:
        runs = histories(config, range(SEEDS), rounds)
    except DivergedError as error:
        print(f"diverged: {error}", flush=True)
        return "diverged", []
    return cell(last(runs, "acc")), runs


def main() -> None:
    """Runs the study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--methods", default="fedavg,fedcmi,scaffold")
    args = parser.parse_args()
    flags = f"--rounds={args.rounds} --methods={args.methods}"
    name = "-".join(["robustness", *args.methods.split(",")])
    study = Study(name, f"python experiments/robustness_study.py {flags}")
    study.row("method", "aggregation", *ATTACKS)
    found = {}
    for method in args.methods.split(","):
        for defence, change in DEFENCES.items():
            cells = []
            for attack, section in ATTACKS.items():
                values = merged(
                    BASE,
                    {"method": {"name": method}, "rounds": args.rounds},
                    {"attack": section},
                    change,
                )
                text, runs = accuracy(configs.from_dict(values), args.rounds)
                cells.append(text)
                if runs:
                    found[f"{method}, {defence}, {attack}"] = runs
            study.row(method, defence, *cells)
    study.write(BASE | {"rounds": args.rounds}, found)


if __name__ == "__main__":
    main()
