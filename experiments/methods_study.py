"""Every method on synthetic data with a strong and a weak modality: BUILD_NOTES.md.

    python experiments/methods_study.py imbalance    the weak modality under each method
    python experiments/methods_study.py drift        SCAFFOLD at Dirichlet alpha 0.05
    python experiments/methods_study.py selection    rounds until an accuracy is reached
    python experiments/methods_study.py missing      samples that lack a modality

Five seeds, in one program; they share data and partition and differ in initial weights,
cohorts and batches. Prints mean +- standard deviation over seeds, in percent, and
writes everything to experiments/results/.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from fedcmi_jax import config as configs
from fedcmi_jax.evaluation import summarise
from fedcmi_jax.experiment import build
from fedcmi_jax.run import versions
from fedcmi_jax.seeds import mapped, seed_keys, start

RESULTS = pathlib.Path(__file__).parent / "results"
SEEDS = 5

BASE: dict[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "strengths": [3.0, 1.5],
        "train_samples": 2000,
        "test_samples": 2000,
    },
    "encoder": {"name": "mlp", "features": 64},
    "model": {"architecture": "two_projector", "width": 64},
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.01},
    "multi_ratio": 1.0,
    "clients": 20,
    "clients_per_round": 5,
    "rounds": 60,
    "chunk_size": 5,
}
"""All methods train FedCMI's model, so that only the method differs."""

CLASSIFIER = {"model": {"architecture": "classifier"}}

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox"},
    "scaffold": {"name": "scaffold"},
    "fedproto": {"name": "fedproto"},
    "fedogm": {"name": "fedogm", "alpha": 0.3},
    "fedpmr": {"name": "fedpmr"},
    "fedagm": {"name": "fedagm"},
    "fedmsplit": {"name": "fedmsplit"},
    "power_of_choice": {"name": "power_of_choice"},
    "bmsfed": {"name": "bmsfed"},
    "fedcmi, heads only": {"name": "fedcmi", "lam": 0.0},
    "fedcmi": {"name": "fedcmi"},
}


def curves(values: dict[str, Any], every: int) -> list[list[dict[str, float]]]:
    """Metrics of every seed [SEEDS] at every ``every`` rounds."""
    config = configs.from_dict(values | {"rounds_per_call": every})
    experiment = build(config)
    run = mapped(experiment)
    states = start(experiment, seed_keys(0, SEEDS))
    history: list[list[dict[str, float]]] = [[] for _ in range(SEEDS)]
    for done in range(every, config.rounds + 1, every):
        states = run(states, np.int32(every))
        for i in range(SEEDS):
            state = jax.tree.map(lambda x, i=i: x[i], states)
            params = experiment.algorithm.deploy(state, experiment.federation)
            result = summarise(
                experiment.evaluate(params, state.batch_stats, state.memory)
            )
            numbers = {k: v for k, v in result.items() if isinstance(v, float)}
            history[i].append({"round": done} | numbers)
    return history


def cell(values: list[float], scale: float = 100.0) -> str:
    """Mean +- standard deviation."""
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{scale * mean:.1f} ± {scale * deviation:.1f}"


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, later ones winning; a section that changes its name starts anew."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and "name" not in value:
                result[key] = result.get(key, {}) | value
            else:
                result[key] = value
    return result


def imbalance(print_row) -> dict[str, Any]:
    """Fused, strong and weak accuracy of every method."""
    columns = (
        "acc",
        "acc_strong_zero",
        "acc_weak_zero",
        "acc_weak_half",
        "client_mean",
    )
    print_row("method", *columns)
    runs = {}
    for name, method in METHODS.items():
        runs[name] = curves(merged(BASE, {"method": method}), every=60)
        final = [seed[-1] for seed in runs[name]]
        print_row(name, *(cell([f[c] for f in final]) for c in columns))
    return runs


def drift(print_row) -> dict[str, Any]:
    """SCAFFOLD against FedAvg, both without momentum, where clients differ most."""
    print_row("method", "learning rate", "acc at round 20", "at 100")
    runs = {}
    for rate in (0.02, 0.1):
        for name, momentum in (("fedavg", 0.0), ("fedavg", 0.9), ("scaffold", 0.0)):
            values = merged(
                BASE,
                CLASSIFIER,
                {
                    "method": {"name": name},
                    "partition": {"name": "dirichlet", "alpha": 0.05},
                    "local": {
                        "momentum": momentum,
                        "learning_rate": rate * (1 - momentum),
                    },
                    "rounds": 100,
                },
            )
            label = f"{name}, momentum {momentum:g}"
            runs[f"{label}, rate {rate:g}"] = curves(values, every=20)
            seeds = runs[f"{label}, rate {rate:g}"]
            points = [cell([seed[i]["acc"] for seed in seeds]) for i in (0, -1)]
            print_row(label, f"{rate * (1 - momentum):g}", *points)
    return runs


def selection(print_row) -> dict[str, Any]:
    """Rounds until the fused accuracy reaches a target; 60 if it does not."""
    target, limit = 0.9, 60
    print_row("method", f"rounds to {100 * target:.0f} %", "acc at round 60")
    choices = {
        "fedavg": {"name": "fedavg"},
        "power_of_choice, d = 10": {"name": "power_of_choice"},
        "power_of_choice, d = 20": {"name": "power_of_choice", "candidates": 20},
        "bmsfed": {"name": "bmsfed"},
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
        runs[name] = curves(values, every=1)
        reached = [
            min([p["round"] for p in seed if p["acc"] >= target], default=limit)
            for seed in runs[name]
        ]
        final = cell([seed[-1]["acc"] for seed in runs[name]])
        print_row(name, cell(reached, scale=1.0), final)
    return runs


def missing(print_row) -> dict[str, Any]:
    """Fused and weak accuracy where a share of the samples lacks one modality."""
    print_row("missing", "method", "acc", "acc_strong_zero", "acc_weak_zero")
    runs = {}
    for fraction in (0.1, 0.5):
        for name in ("fedavg", "fedogm", "fedpmr", "fedcmi"):
            values = merged(
                BASE, {"method": METHODS[name], "missing_fraction": fraction}
            )
            runs[f"{name}, {fraction:g}"] = seeds = curves(values, every=60)
            final = [seed[-1] for seed in seeds]
            columns = ("acc", "acc_strong_zero", "acc_weak_zero")
            print_row(
                f"{fraction:g}", name, *(cell([f[c] for f in final]) for c in columns)
            )
    return runs


STUDIES = {f.__name__: f for f in (imbalance, drift, selection, missing)}


def main() -> None:
    """Runs one study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    args = parser.parse_args()
    begun = time.perf_counter()
    rows: list[tuple[str, ...]] = []

    def print_row(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)
        if not rows:
            print("|" + "---|" * len(cells))
        rows.append(cells)

    runs = STUDIES[args.study](print_row)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": f"python experiments/methods_study.py {args.study}",
        "base": BASE,
        "seconds": round(time.perf_counter() - begun),
        "versions": versions(),
        "table": rows,
        "final": {k: [seed[-1] for seed in v] for k, v in runs.items()},
    }
    path = RESULTS / f"methods-{args.study}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
