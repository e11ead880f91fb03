"""Folders of runs and sweeps with made-up numbers, as training would leave them."""

import json

import numpy as np

import fedcmi_jax as fc
from fedcmi_jax.experiment import presets, seeds
from fedcmi_jax.experiment.config import to_dict
from fedcmi_jax.experiment.config_file import write_config

SIZES = {"encoder/a": 1000.0, "fusion": 250.0}
"""Bytes of a client's blocks, each way."""
DATA = {"train_samples": 120, "test_samples": 30, "num_classes": 3}
"""Of the data set, so that it is dealt in no time."""


def config(method="fedavg", **values):
    base = to_dict(presets.preset("synthetic"))
    base["dataset"] = base["dataset"] | DATA
    options = method if isinstance(method, dict) else {"name": method}
    return fc.config.from_dict(base | {"clients": 6, "method": options} | values)


def lines_of(accuracies, every=5, **columns):
    """A line per accuracy: 2 s each, modalities alone at less, three classes."""
    return [
        {
            "round": every * (i + 1),
            "acc": acc,
            "acc_strong_zero": 0.9 * acc,
            "acc_weak_zero": 0.5 * acc,
            "macro_f1": acc,
            "worst_class": 0.5 * acc,
            "per_class": [0.5 * acc, acc, None],
            **{f"client_{k}": acc * w for k, w in SPREAD.items()},
            "seconds": 2.0,
            **columns,
        }
        for i, acc in enumerate(accuracies)
    ]


SPREAD = {"mean": 0.8, "std": 0.1, "min": 0.5, "p10": 0.6, "median": 0.85, "max": 1.0}


def write_run(folder, config, curves, unfinished=()):
    """A run folder of the seeds in ``curves``: seed -> metrics lines."""
    folder.mkdir(parents=True)
    write_config(folder, config)
    for seed, lines in curves.items():
        own = seeds.folder_of(folder, seed) if config.seeds > 1 else folder
        own.mkdir(exist_ok=True)
        write_config(own, seeds.alone(config, seed))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (own / "metrics.jsonl").write_text(text)
        if seed not in unfinished:
            write_summary(own, lines)


def write_summary(folder, lines):
    summary = {
        "rounds": lines[-1]["round"],
        "bytes_per_client": {"down": SIZES, "up": SIZES},
        "parameters": 321,
        "final": lines[-1],
        "best": None,
        "seconds": 2.0 * len(lines),
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_sweep(folder, methods, alphas, num_seeds=2, rounds=6, **plan):
    """A sweep over methods and Dirichlet's alpha, all cells finished."""
    rng = np.random.default_rng(0)
    cells = []
    for method in methods:
        for alpha in alphas:
            name = f"{method},alpha={alpha}"
            one = config(
                method,
                partition={"name": "dirichlet", "alpha": alpha},
                seeds=num_seeds,
                rounds=5 * rounds,
            )
            best = 0.6 + 0.1 * np.tanh(alpha) + 0.05 * methods.index(method)
            extra = {}
            if method == "fedcmi":
                extra = {"imbalance": 1.5, "temperature_mean": 0.8}
                extra |= {"temperature_min": 0.4, "clients_dominant_strong": 3.0}
            curves = {}
            for s in range(num_seeds):
                x = best * (1 - np.exp(-np.arange(1, rounds + 1) / 2))
                noise = 0.02 * rng.normal(size=rounds)
                curves[s] = lines_of(np.clip(x + noise, 0, 1).tolist(), **extra)
            write_run(folder / "cells" / name, one, curves)
            values = {"method": method, "partition.alpha": alpha}
            where = f"cells/{name}"
            own = {"name": name, "values": values, "folder": where}
            cells.append(own | {"config": to_dict(one)})
    axes = ["method", "partition.alpha"]
    content = {
        "format": 1,
        "source": "fedcmi compare synthetic --methods=...",
        "measure": "acc",
        "baseline": cells[0]["name"],
        "axes": axes,
        "seeds": list(range(num_seeds)),
        "cells": cells,
    }
    (folder / "plan.json").write_text(json.dumps(content | plan))
