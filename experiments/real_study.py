"""FedAvg and FedCMI on real data sets: a table of BUILD_NOTES.md.

    python experiments/real_study.py hapt       21 volunteers, natural partition
    python experiments/real_study.py av-mnist   20 clients, Dirichlet alpha 3
    python experiments/real_study.py cg-mnist   20 clients, Dirichlet alpha 3

The presets' CPU-sized settings, half of the clients with one modality, three seeds of
which each has its own partition of the same data. Prints mean +- standard deviation
over seeds of the last round's test accuracies in percent, and writes them to
experiments/results/.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax

from fedcmi_jax import config as configs
from fedcmi_jax.evaluation import summarise
from fedcmi_jax.experiment import build
from fedcmi_jax.presets import preset
from fedcmi_jax.run import versions

RESULTS = pathlib.Path(__file__).parent / "results"
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedcmi": {"name": "fedcmi"},
}
PRESETS = ("hapt", "av-mnist", "cg-mnist")
SEEDS = range(3)


def final_metrics(config: configs.Config) -> dict[str, Any]:
    """Trains without a run folder and evaluates the last round."""
    experiment = build(config)
    algorithm, federation = experiment.algorithm, experiment.federation
    state = jax.jit(algorithm.init)(experiment.key, federation)
    state, infos = algorithm.run(state, federation, config.rounds)
    params = algorithm.deploy(state, federation)
    metrics = summarise(experiment.evaluate(params, state.batch_stats, state.memory))
    return metrics | {"rejected": int(infos.rejected.sum())}


def cell(values: list[float]) -> str:
    """Mean +- standard deviation in percent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def main() -> None:
    """Runs the study of one preset and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--rounds", type=int, help="default: the preset's")
    parser.add_argument("--manual-dir", help="where the raw files are, if at hand")
    args = parser.parse_args()
    base = configs.to_dict(preset(args.preset))
    base["rounds"] = args.rounds or base["rounds"]
    base["rounds_per_call"] = base["rounds"]
    base["dataset"]["manual_dir"] = args.manual_dir
    runs, header = [], []
    begun = time.perf_counter()
    for label, method in METHODS.items():
        results = []
        for seed in SEEDS:
            config = configs.from_dict(base | {"method": method, "seed": seed})
            results.append(final_metrics(config))
            runs.append({"method": label, "seed": seed} | results[-1])
            jax.clear_caches()
        if not header:
            views = [name for name in results[0] if name.endswith("_zero")]
            header = ["method", "acc", *views, "worst_class", "client_mean"]
            print("| " + " | ".join(header) + " |")
            print("|" + "---|" * len(header))
        cells = [cell([r[name] for r in results]) for name in header[1:]]
        print("| " + " | ".join([label, *cells]) + " |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": f"python experiments/real_study.py {args.preset}",
        "rounds": base["rounds"],
        "seconds": round(time.perf_counter() - begun),
        "versions": versions(),
        "runs": runs,
    }
    path = RESULTS / f"real-{args.preset}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
