"""Every method on synthetic data with a strong and a weak modality: docs/results.md.

    python experiments/methods_study.py imbalance    the weak modality under each method
    python experiments/methods_study.py drift        SCAFFOLD at Dirichlet alpha 0.05
    python experiments/methods_study.py selection    rounds until an accuracy is reached
    python experiments/methods_study.py missing      samples that lack a modality
    python experiments/methods_study.py servers      FedOpt's server optimizers

Five seeds, a tenth of every client's samples for validation. The protocol is that of
``study.py``.
"""

import argparse
from typing import Any

from study import HEADS_ONLY, Study, cell, compare, flat_round, last, merged

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.history import histories

SEEDS = 5

BASE: dict[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "strengths": [3.5, 2.0],
        "train_samples": 2000,
        "test_samples": 2000,
    },
    "encoder": {"name": "mlp", "features": 64},
    "model": {"architecture": "two_projector", "width": 64},
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.01},
    "multimodal_fraction": 1.0,
    "clients": 20,
    "clients_per_round": 5,
    "rounds": 60,
    "chunk_size": 5,
    "validation_fraction": 0.1,
}
"""All methods train FedCMI's model, so that only the method differs."""

DRIFT = merged(
    BASE,
    {
        "model": {"architecture": "classifier"},
        "partition": {"name": "dirichlet", "alpha": 0.05},
        "rounds": 100,
    },
)
"""Clients that hardly share a class, and the plain model."""

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox"},
    "scaffold": {"name": "scaffold"},
    "fedproto": {"name": "fedproto"},
    "fedogm": {"name": "fedogm"},
    "fedogm, alpha = 0.3": {"name": "fedogm", "alpha": 0.3},
    "fedpmr": {"name": "fedpmr"},
    "fedagm": {"name": "fedagm"},
    "fedmsplit": {"name": "fedmsplit"},
    "power_of_choice": {"name": "power_of_choice"},
    "bmsfed": {"name": "bmsfed"},
    "bmsfed, theta = 1": {"name": "bmsfed", "threshold": 1.0},
    "fedcmi, heads only": HEADS_ONLY,
    "fedcmi": {"name": "fedcmi"},
}

VIEWS = ("acc", "acc_strong_zero", "acc_weak_zero")


def imbalance(study: Study) -> dict[str, Any]:
    """Fused, strong and weak accuracy of every method."""
    columns = (*VIEWS, "acc_weak_half", "client_mean")
    study.row("method", *columns, "acc - fedavg", "flat at round")
    return compare(
        BASE, METHODS, columns, num_seeds=SEEDS, every=5, print_row=study.row
    )


def drift(study: Study) -> dict[str, Any]:
    """SCAFFOLD against FedAvg where clients differ most, mean steps equally long."""
    rounds, early = DRIFT["rounds"], 20
    study.row(
        "method", "learning rate", f"acc at round {early}", f"at {rounds}", "flat at"
    )
    runs = {}
    for rate in (0.002, 0.01):
        for name in ("fedavg", "scaffold"):  # SCAFFOLD's rate is matched by itself
            change = {"method": {"name": name}, "local": {"learning_rate": rate}}
            config = configs.from_dict(merged(DRIFT, change))
            found = histories(config, range(SEEDS), early)
            runs[f"{name}, rate {rate:g}"] = found
            points = [cell([seed[i]["acc"] for seed in found]) for i in (0, -1)]
            study.row(name, f"{rate:g}", *points, str(flat_round(found)))
    return runs


def selection(study: Study) -> dict[str, Any]:
    """Rounds until the fused accuracy reaches a target; 60 if it does not."""
    target, limit = 0.9, 60
    study.row("method", f"rounds to {100 * target:.0f} %", f"acc at round {limit}")
    choices = {
        "fedavg": {"name": "fedavg"},
        "power_of_choice, d = 10": {"name": "power_of_choice"},
        "power_of_choice, d = 20": {"name": "power_of_choice", "candidates": 20},
        "bmsfed": {"name": "bmsfed"},
        "fedcmi, heads only": HEADS_ONLY,
        "fedcmi": {"name": "fedcmi"},
    }
    runs = {}
    for name, method in choices.items():
        values = merged(
            BASE,
            {
                "method": method,
                "partition": {"name": "dirichlet", "alpha": 0.2},
                "rounds": limit,
            },
        )
        runs[name] = histories(configs.from_dict(values), range(SEEDS), 1)
        reached = [
            min([p["round"] for p in seed if p["acc"] >= target], default=limit)
            for seed in runs[name]
        ]
        study.row(name, cell(reached, scale=1.0), cell(last(runs[name], "acc")))
    return runs


def missing(study: Study) -> dict[str, Any]:
    """Fused and weak accuracy where a share of the samples lacks one modality."""
    study.row("missing", "method", *VIEWS, "acc - fedavg", "flat at round")
    names = ("fedavg", "fedogm", "fedpmr", "fedcmi, heads only", "fedcmi")
    runs = {}
    for fraction in (0.1, 0.5):
        rows = compare(
            BASE | {"missing_fraction": fraction},
            {name: METHODS[name] for name in names},
            VIEWS,
            num_seeds=SEEDS,
            every=5,
            print_row=study.row,
            label=(f"{fraction:g}",),
        )
        runs |= {f"{fraction:g}, {name}": run for name, run in rows.items()}
    return runs


def servers(study: Study) -> dict[str, Any]:
    """FedAvg under every server optimizer at its default rate."""
    names = ("none", "avgm", "adagrad", "adam", "yogi", "optax_adam", "optax_yogi")
    study.row("server", *VIEWS, "acc - none", "flat at round")
    choices = {
        name: {"method": {"name": "fedavg"}, "server": {"optimizer": name}}
        for name in names
    }
    return compare(BASE, choices, VIEWS, num_seeds=SEEDS, every=5, print_row=study.row)


STUDIES = {f.__name__: f for f in (imbalance, drift, selection, missing, servers)}


def main() -> None:
    """Runs one study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    args = parser.parse_args()
    study = Study(
        f"methods-{args.study}", f"python experiments/methods_study.py {args.study}"
    )
    study.write(BASE, STUDIES[args.study](study))


if __name__ == "__main__":
    main()
