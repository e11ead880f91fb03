"""FedAvg, heads only and FedCMI on the digit data sets: a table of BUILD_NOTES.md.

    python experiments/digits_study.py noisy-digits
    python experiments/digits_study.py cg-digits

20 clients, 5 per round, Dirichlet alpha 0.3 and 100, all clients multimodal or half of
them, five seeds. Prints mean +- standard deviation (over seeds) of the last round's
test accuracies in percent, and writes every run's metrics to experiments/results/.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import jax

from fedcmi_jax import config as configs
from fedcmi_jax import evaluation
from fedcmi_jax.experiment import build
from fedcmi_jax.presets import PRESETS, preset
from fedcmi_jax.run import versions

RESULTS = pathlib.Path(__file__).parent / "results"
METHODS = {
    "fedavg": {"name": "fedavg"},
    "heads only": {"name": "fedcmi", "lam": 0.0},
    "fedcmi": {"name": "fedcmi"},
}
ALPHAS = (0.3, 100.0)
MULTI_RATIOS = (1.0, 0.5)
SEEDS = range(5)
CAPACITY_STEP = 64
"""The longest client's size is rounded up to this: one program serves many seeds."""


def final_metrics(config: configs.Config) -> dict:
    """Trains without a run folder and evaluates the last round."""
    experiment = build(config)
    algorithm, federation = experiment.algorithm, experiment.federation
    capacity = -(-federation.max_size // CAPACITY_STEP) * CAPACITY_STEP
    federation = dataclasses.replace(federation, max_size=capacity)
    state = jax.jit(algorithm.init)(experiment.key, federation)
    state, infos = algorithm.run(state, federation, config.rounds)
    params = algorithm.deploy(state, federation)
    metrics = evaluation.summarise(experiment.evaluate(params, state.batch_stats))
    return metrics | {"rejected": int(infos.rejected.sum())}


def cell(values: list[float]) -> str:
    """Mean +- standard deviation in percent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def main() -> None:
    """Runs the study of one preset and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--rounds", type=int, help="default: the preset's")
    args = parser.parse_args()
    base = configs.to_dict(preset(args.preset))
    rounds = args.rounds or base["rounds"]
    base |= {"rounds": rounds, "rounds_per_call": rounds}
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    runs, header = [], None
    begun = time.perf_counter()
    for alpha in ALPHAS:
        for multi_ratio in MULTI_RATIOS:
            for label, method in METHODS.items():
                results = []
                for seed in SEEDS:
                    config = configs.from_dict(
                        base
                        | {
                            "partition": {"name": "dirichlet", "alpha": alpha},
                            "multi_ratio": multi_ratio,
                            "method": method,
                            "seed": seed,
                        }
                    )
                    results.append(final_metrics(config))
                    jax.clear_caches()
                views = ["acc", *(k for k in results[0] if k.endswith("_zero"))]
                if header is None:
                    header = ["alpha", "multi_ratio", "method", *views, "worst_class"]
                    print("| " + " | ".join(header) + " |")
                    print("|" + "---|" * len(header))
                cells = [cell([r[v] for r in results]) for v in header[3:]]
                row = [f"{alpha:g}", f"{multi_ratio:g}", label, *cells]
                print("| " + " | ".join(row) + " |", flush=True)
                for seed, result in zip(SEEDS, results, strict=True):
                    run = {"alpha": alpha, "multi_ratio": multi_ratio, "seed": seed}
                    runs.append(run | {"method": label} | result)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": f"python experiments/digits_study.py {args.preset}",
        "rounds": rounds,
        "seconds": round(time.perf_counter() - begun),
        "versions": versions(),
        "runs": runs,
    }
    path = RESULTS / f"{args.preset}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
