"""Learning rates chosen on validation samples: a table of docs/results.md.

    python experiments/tuning_study.py server      rates of the server optimizers
    python experiments/tuning_study.py scaffold    is SCAFFOLD's default rate fair?

A fifth of every client's training samples is held out; the best rate of a group is the
one with the highest accuracy on them in the last round, the smaller one of equals. Test
accuracy is reported and chooses nothing. One seed: one validation split.
"""

import argparse
from typing import Any

from methods_study import DRIFT
from study import History, Study, merged

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.history import histories

FACTORS = (1, 3, 10)
"""Of the usual learning rate."""

VALIDATION = {"validation_fraction": 0.2}

DIGITS: dict[str, Any] = VALIDATION | {
    "dataset": {"name": "noisy_digits"},
    "encoder": {"name": "mlp", "features": 64},
    "method": {"name": "fedavg"},
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "local": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
    "clients": 20,
    "clients_per_round": 5,
    "chunk_size": 5,
    "rounds": 40,
}
"""The default data set, few local steps: there is something left to the server."""

SERVER_RATES: dict[str, tuple[float, ...]] = {
    "adagrad": (0.01, 0.03, 0.1, 0.3),
    "adam": (0.003, 0.01, 0.03, 0.1),
    "yogi": (0.003, 0.01, 0.03, 0.1),
    "avgm": (0.1, 0.3, 1.0),
    "optax_adam": (0.003, 0.01, 0.03, 0.1),
    "optax_yogi": (0.003, 0.01, 0.03, 0.1),
}

Job = tuple[str, str, dict[str, Any]]
"""Group, setting, configuration."""


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
            rate = DRIFT["local"]["learning_rate"] * factor
            local = options | {"learning_rate": rate}
            change = {"method": {"name": method}, "local": local}
            jobs.append((group, f"{factor} x", merged(DRIFT | VALIDATION, change)))
    return jobs


STUDIES = {f.__name__: f for f in (server, scaffold)}


def trained(values: dict[str, Any]) -> History:
    """Metrics after a fifth of the rounds and so on; all 0 where training diverged."""
    config = configs.from_dict(values)
    every = config.rounds // 5
    try:
        return histories(config, [0], every)[0]
    except training.DivergedError:
        return [{"round": config.rounds, "val_acc": 0.0, "acc": 0.0}]


def main() -> None:
    """Runs one study, prints its table and the best of every group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    args = parser.parse_args()
    study = Study(
        f"tuning-{args.study}", f"python experiments/tuning_study.py {args.study}"
    )
    study.row("group", "setting", "val_acc", "acc", "acc after a fifth of the rounds")
    runs: dict[str, list[History]] = {}
    best: dict[str, tuple[float, str]] = {}
    for group, setting, values in STUDIES[args.study]():
        found = trained(values)
        runs[f"{group}, {setting}"] = [found]
        scores = (found[-1]["val_acc"], found[-1]["acc"], found[0]["acc"])
        study.row(group, setting, *(f"{100 * score:.1f}" for score in scores))
        if scores[0] > best.get(group, (-1.0, ""))[0]:
            best[group] = (scores[0], setting)
    for group, (_, setting) in best.items():
        print(f"best on validation, {group}: {setting}")
    study.write(DIGITS if args.study == "server" else DRIFT | VALIDATION, runs)


if __name__ == "__main__":
    main()
