"""Does jaxlib 0.10.2's wrong reduction touch a published table? See docs/results.md.

    python experiments/miscompile_study.py [--manual-dir=DIR]

For every table's problem the first three rounds and an evaluation are run twice from
one seed, in fresh processes with and without the flag that avoids the defect. Prints
the largest difference of any parameter, relative to the largest parameter, and of the
fused test accuracy. A wrong reduction would be off by percents; rounding is 1e-7.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from fedcmi_jax import backend

PROBLEMS = ("noisy-digits", "cg-digits", "hapt", "av-mnist", "cg-mnist", "synthetic")
"""Presets behind the tables; the methods study trains on ``synthetic``."""

METHODS = ("fedavg", "fedcmi")
ROUNDS = 3


def child(problem: str, method: str, manual_dir: str, output: str) -> None:
    """Trains in this process, as its flags are, and saves what came out."""
    import jax

    from fedcmi_jax.evaluation.summary import summarise
    from fedcmi_jax.experiment import config as configs
    from fedcmi_jax.experiment.experiment import build
    from fedcmi_jax.experiment.presets import preset

    values = configs.to_dict(preset(problem)) | {"method": {"name": method}}
    values["rounds_per_call"] = ROUNDS
    if "manual_dir" in values["dataset"]:
        values["dataset"]["manual_dir"] = manual_dir or None
    experiment = build(configs.from_dict(values))
    algorithm, federation = experiment.algorithm, experiment.federation
    state = jax.jit(algorithm.init)(experiment.key, federation)
    state, _ = algorithm.run(state, federation, np.int32(ROUNDS))
    metrics = summarise(experiment.evaluate(state.params, state.batch_stats))
    leaves = [np.ravel(x) for x in jax.tree.leaves((state.params, state.batch_stats))]
    np.savez(output, params=np.concatenate(leaves), acc=metrics["acc"])


def trained(problem: str, method: str, manual_dir: str, flags: str):
    """What a fresh process with these XLA_FLAGS computes."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(pathlib.Path(folder) / "result.npz")
        job = json.dumps([problem, method, manual_dir, output])
        environment = os.environ | {"XLA_FLAGS": flags}
        subprocess.run([sys.executable, __file__, job], env=environment, check=True)
        with np.load(output) as result:
            return result["params"], float(result["acc"])


def main() -> None:
    """Prints one row a problem and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manual-dir", default="", help="raw HAPT and MNIST files")
    args = parser.parse_args()
    print("| problem | method | parameters | accuracy |\n|---|---|---|---|")
    for problem in PROBLEMS:
        for method in METHODS:
            given = (problem, method, args.manual_dir)
            right, right_acc = trained(*given, backend.FLAG)
            plain, plain_acc = trained(*given, "")
            gap = np.abs(right - plain).max() / np.abs(right).max()
            change = 100 * abs(right_acc - plain_acc)
            print(
                f"| {problem} | {method} | {gap:.1e} | {change:.2f} points |",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("["):
        child(*json.loads(sys.argv[1]))
    else:
        main()
