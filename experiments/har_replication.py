"""FedMultimodal's UCI-HAR table (arXiv 2306.09486) on HAPT: docs/results.md.

    python experiments/har_replication.py                  all runs, then the table
    python experiments/har_replication.py --alpha=0.1      a part of them
    python experiments/har_replication.py --signal=uci-har --manual-dir=DIR
                                            with UCI-HAR's filters (har_data.py)

Protocol, with facts of the public code (usc-sail/fed-multimodal): windows of 128, every
axis of every window to mean 0 and deviation 1; a fifth of each of the 21 volunteers'
windows, drawn at random, to one pooled dev set; the rest of a volunteer split in 5 by
Dirichlet(alpha), at least 5 windows each; 10 of the 105 clients a round, 1 epoch,
batches of 16, SGD at 0.05 with momentum 0.9 and weight decay 1e-5, gradients clipped to
norm 10; the mean by samples, or FedAvgM on it (their "FedOpt": SGD at 0.025 on the mean
update divided by 0.05); macro-F1 on dev, and that on test at the round best on dev.

A finished run is a file in --runs and is not done again, one that was stopped has a
checkpoint there: started again, a study goes on where it was.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from har_data import deal, uci_har
from har_model import har_model
from study import RESULTS, cell

import fedcmi_jax as fc
from fedcmi_jax import backend
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation import summarise
from fedcmi_jax.experiment import checkpoint
from fedcmi_jax.experiment.training import versions

PUBLISHED = {
    (5.0, "fedavg"): 77.74,
    (5.0, "fedavgm"): 85.17,
    (0.1, "fedavg"): 76.66,
    (0.1, "fedavgm"): 79.80,
}
"""Test macro-F1 in percent, of the public code's README and the paper's table."""

SERVERS: dict[str, Callable[[], optax.GradientTransformation | None]] = {
    "fedavg": lambda: None,
    "fedavgm": lambda: fc.server_optimizers.fed_avgm(0.5, momentum=0.9),
}
ALPHAS = (5.0, 0.1)
COHORT = 10
SAVE_EVERY = 20
"""Rounds between checkpoints."""

LOCAL = fc.LocalTraining(
    epochs=1,
    batch_size=16,
    learning_rate=0.05,
    optimizer=fc.torch_sgd(momentum=0.9, weight_decay=1e-5),
    clip_grad_norm=10.0,
)


class Run(NamedTuple):
    """One training run of the study.

    Attributes:
      seed: Of dev set, partition, initial weights, cohorts, batches and dropout.
      alpha: Concentration of a volunteer's split.
      server: One of ``SERVERS``.
      rounds: Its length.
      every: Rounds between looks at dev.
      signal: raw, or uci-har: the recordings filtered.
    """

    seed: int
    alpha: float
    server: str
    rounds: int
    every: int
    signal: str = "raw"

    @property
    def file(self) -> str:
        """Name of its file."""
        words = (self.server, f"{self.alpha:g}", self.rounds, self.every, self.seed)
        signal = () if self.signal == "raw" else (self.signal,)
        return "-".join(map(str, (*signal, *words))) + ".json"


def algorithm(model: fc.Model, server: str) -> fc.FederatedAlgorithm:
    """The protocol's training, with one of ``SERVERS``."""
    return fc.build_algorithm(
        fc.methods.fedavg(),
        model,
        clients_per_round=COHORT,
        local=LOCAL,
        server_optimizer=SERVERS[server](),
        guard_factor=float("inf"),  # they have none
    )


class Study:
    """The data set, its model, and one algorithm a server, for all seeds."""

    def __init__(self, dataset: Dataset, model: fc.Model):
        """Compiles nothing yet."""
        self.dataset, self.model, train = dataset, model, dataset.train
        self.test = fc.build_evaluator(model, dataset.test, None)
        of_volunteer = np.unique(np.asarray(train.clients), return_counts=True)[1]
        self.capacity = int(of_volunteer.max())
        self.algorithms = {name: algorithm(model, name) for name in SERVERS}

    def train(self, run: Run, started: pathlib.Path) -> dict[str, Any]:
        """Trains; the test split is looked at where dev is better than ever before.

        Args:
          run: What to train.
          started: Folder of its checkpoints, from which it goes on; gone at the end.
        """
        algorithm, train = self.algorithms[run.server], self.dataset.train
        parts, held = deal(train, run.alpha, np.random.default_rng(run.seed))
        federation = fc.build_federation(self.dataset, parts, capacity=self.capacity)
        dev = fc.build_evaluator(self.model, train, None, rows=held)
        state = jax.jit(algorithm.init)(jax.random.key(run.seed), federation)
        done: dict[str, Any] = {"dev": [], "best": {"dev": -1.0}}
        if checkpoint.rounds(started):
            found = checkpoint.restore(started, jax.eval_shape(lambda: state))
            state, done = found.state, json.loads(found.log)
        for t in range(int(state.round) + 1, run.rounds + 1):
            state, _ = algorithm.run(state, federation, 1)
            if t % run.every == 0 or t == run.rounds:
                self._look(dev, state, t, done)
            if t % SAVE_EVERY == 0:
                log = json.dumps(done).encode()
                checkpoint.save(started, state, keep=1, log=log)
        last = _scores(summarise(self.test(state.params, state.batch_stats)))
        shutil.rmtree(started, ignore_errors=True)
        sizes = np.sort(parts.sizes).tolist()
        return run._asdict() | done | {"last": last, "sizes": sizes}

    def _look(self, dev: Any, state: Any, t: int, done: dict[str, Any]) -> None:
        """Appends macro-F1 on dev after t rounds, and replaces the best so far."""
        model = (state.params, state.batch_stats)
        done["dev"].append(summarise(dev(*model))["macro_f1"])
        if done["dev"][-1] > done["best"]["dev"]:
            found = _scores(summarise(self.test(*model)))
            done["best"] = {"dev": done["dev"][-1], "round": t} | found


def _scores(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("macro_f1", "acc", "per_class")}


def table(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Header and rows: theirs, ours, the gap, and where and what of ours."""
    rows: list[tuple[str, ...]] = [
        ("alpha", "server", "published", "ours", "gap", "at round", "acc", "last")
    ]
    for (alpha, server), theirs in PUBLISHED.items():
        own = [r for r in runs if (r["alpha"], r["server"]) == (alpha, server)]
        ours = [r["best"]["macro_f1"] for r in own]
        gap = f"{100 * np.mean(ours) - theirs:+.1f}"
        at = cell([r["best"]["round"] for r in own], 1.0)
        accuracies = cell([r["best"]["acc"] for r in own])
        last = cell([r["last"]["macro_f1"] for r in own])
        names = (f"{alpha:g}", server, f"{theirs:.1f}")
        rows.append((*names, cell(ours), gap, at, accuracies, last))
    return rows


def load(args: argparse.Namespace) -> Dataset:
    """The data set that the options name."""
    if args.signal == "uci-har":
        return uci_har(args.manual_dir)
    where = {"data_dir": args.data_dir, "manual_dir": args.manual_dir}
    return fc.data.load("hapt", normalize="window", **where)


def main() -> None:
    """Runs what is not done yet; prints and writes the table where all is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, choices=ALPHAS, help="only this one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="rounds per look at dev")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/har-replication")
    parser.add_argument("--signal", choices=("raw", "uci-har"), default="raw")
    parser.add_argument("--data-dir", help="folder of prepared data")
    parser.add_argument("--manual-dir", help="where the raw files are, if at hand")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds: {args.seeds} has no deviation; give 2 or more")
    if args.signal == "uci-har" and not args.manual_dir:
        parser.error("--manual-dir: is missing; name the folder with the raw files")
    backend.guard()
    args.runs.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(args.runs / "programs"))
    plan = [
        Run(seed, alpha, server, args.rounds, args.every, args.signal)
        for seed, alpha, server in itertools.product(range(args.seeds), ALPHAS, SERVERS)
    ]
    study = None
    for run in plan:
        path = args.runs / run.file
        if path.exists() or args.alpha not in (None, run.alpha):
            continue
        if study is None:
            data = load(args)
            study = Study(data, har_model(data.shapes, data.num_classes))
        result = study.train(run, args.runs / "started" / path.stem)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result) + "\n")
        os.replace(partial, path)
        f1, at = result["best"]["macro_f1"], result["best"]["round"]
        print(f"{run.file}: {100 * f1:.1f} at round {at}", flush=True)
    files = [args.runs / run.file for run in plan]
    missing = [f.name for f in files if not f.exists()]
    if missing:
        print(f"{len(missing)} runs to do: {', '.join(missing)}")
        return
    runs = [json.loads(f.read_text()) for f in files]
    rows = table(runs)
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    command = (
        f"python experiments/har_replication.py --seeds={args.seeds} "
        f"--rounds={args.rounds} --every={args.every} --signal={args.signal}"
    )
    record = {"command": command, "versions": versions(), "table": rows, "runs": runs}
    name = "har-replication" + ("" if args.signal == "raw" else "-filtered")
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
