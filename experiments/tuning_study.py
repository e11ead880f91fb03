"""Learning rates chosen on validation samples: BUILD_NOTES.md.

    python experiments/tuning_study.py server      rates of the server optimizers
    python experiments/tuning_study.py scaffold    is SCAFFOLD's default rate fair?

A share of every client's training samples is held out; the best rate of a row is the
one with the highest accuracy on them in the last round. Test accuracy is reported and
chooses nothing. Numbers are means over the seeds, in percent; everything is written to
experiments/results/.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from fedcmi_jax import config as configs
from fedcmi_jax import run
from fedcmi_jax.experiment import build
from fedcmi_jax.run_folder import MetricsLog

RESULTS = pathlib.Path(__file__).parent / "results"

FACTORS = (1, 3, 10)
"""Of the usual learning rate."""

DIGITS: dict[str, Any] = {
    "dataset": {"name": "noisy_digits"},
    "encoder": {"name": "mlp", "features": 64},
    "method": {"name": "fedavg"},
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "local": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
    "rounds": 40,
    "eval_every": 20,
}
"""The default data set, few local steps: there is something left to the server."""

DRIFT: dict[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "strengths": [3.5, 2.0],
        "train_samples": 2000,
        "test_samples": 2000,
    },
    "encoder": {"name": "mlp", "features": 64},
    "method": {"name": "fedavg"},
    "partition": {"name": "dirichlet", "alpha": 0.05},
    "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.01},
    "multi_ratio": 1.0,
    "rounds": 100,
    "eval_every": 20,
}
"""The problem of ``methods_study.py drift``: clients that hardly share a class."""

COMMON: dict[str, Any] = {
    "validation_fraction": 0.2,
    "clients": 20,
    "clients_per_round": 5,
    "chunk_size": 5,
}

SERVER_RATES: dict[str, tuple[float, ...]] = {
    "adagrad": (0.01, 0.03, 0.1, 0.3),
    "adam": (0.003, 0.01, 0.03, 0.1),
    "yogi": (0.003, 0.01, 0.03, 0.1),
    "avgm": (0.1, 0.3, 1.0),
    "optax_adam": (0.001, 0.003, 0.01, 0.03),
    "optax_yogi": (0.001, 0.003, 0.01, 0.03),
}

Row = dict[str, Any]

Job = tuple[str, str, dict[str, Any]]
"""Row group, setting, configuration."""


def train(values: dict[str, Any], seeds: int) -> list[list[dict[str, Any]]]:
    """Metric lines of every seed, one per evaluation."""
    found = []
    for seed in range(seeds):
        config = configs.from_dict(COMMON | values | {"seed": seed})
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            try:
                run.train(build(config), path)
            except run.DivergedError:
                found.append([{"val_acc": 0.0, "acc": 0.0}])
                continue
            lines = [x for x in MetricsLog(path / run.METRICS).read() if "acc" in x]
        if "val_acc" not in lines[-1]:
            raise ValueError("metrics: no val_acc; the validation split is missing")
        found.append(lines)
    return found


def row(group: str, label: str, values: dict[str, Any], seeds: int) -> Row:
    """One line of a table: what was trained, and its accuracies in percent."""
    found = train(values, seeds)

    def mean(name: str, at: int) -> float:
        return 100 * statistics.mean(lines[at][name] for lines in found)

    return {
        "group": group,
        "setting": label,
        "val_acc": mean("val_acc", -1),
        "acc": mean("acc", -1),
        "acc at first": mean("acc", 0),
        "learning_rate": found[0][-1].get("learning_rate"),
        "per_seed": [[x.get("val_acc"), x.get("acc")] for x in (s[-1] for s in found)],
    }


def server() -> list[Job]:
    """Every server optimizer at every rate of its grid, and plain averaging."""
    jobs = [("none", "-", DIGITS)]
    for name, rates in SERVER_RATES.items():
        for rate in rates:
            chosen = {"server": {"optimizer": name, "learning_rate": rate}}
            jobs.append((name, f"{rate:g}", DIGITS | chosen))
    return jobs


def scaffold() -> list[Job]:
    """FedAvg and SCAFFOLD at 1, 3 and 10 times the rate, and that rate times G."""
    groups = {
        "fedavg, momentum 0.9": ("fedavg", {}),
        "scaffold, rate as it is": ("scaffold", {"rate_scale": 1.0}),
        "scaffold, rate x G (default)": ("scaffold", {}),
    }
    jobs = []
    for group, (method, options) in groups.items():
        for factor in FACTORS:
            local = DRIFT["local"] | options
            local["learning_rate"] *= factor
            values = DRIFT | {"method": {"name": method}, "local": local}
            jobs.append((group, f"{factor} x", values))
    return jobs


STUDIES: dict[str, Callable[[], list[Job]]] = {"server": server, "scaffold": scaffold}


def main() -> None:
    """Runs one study, prints its table and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    begun = time.perf_counter()
    print("| group | setting | rate | val_acc | acc | acc at first evaluation |")
    print("|---|---|---|---|---|---|")
    rows: list[Row] = []
    for group, label, values in STUDIES[args.study]():
        found = row(group, label, values, args.seeds)
        numbers = [f"{found[k]:.1f}" for k in ("val_acc", "acc", "acc at first")]
        rate = f"{found['learning_rate'] or 0:.3g}"
        print("| " + " | ".join((group, label, rate, *numbers)) + " |", flush=True)
        rows.append(found)
    best = {}
    for found in rows:  # the first of equals: the smaller rate
        if found["val_acc"] > best.get(found["group"], {"val_acc": -1.0})["val_acc"]:
            best[found["group"]] = found
    for group, found in best.items():
        print(
            f"best on validation, {group}: {found['setting']}, acc {found['acc']:.1f}"
        )
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": f"python experiments/tuning_study.py {args.study}",
        "seeds": args.seeds,
        "seconds": round(time.perf_counter() - begun),
        "versions": run.versions(),
        "rows": rows,
        "best": {group: found["setting"] for group, found in best.items()},
    }
    path = RESULTS / f"tuning-{args.study}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
