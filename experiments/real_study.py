"""FedAvg, heads only and FedCMI on real data sets: a table of docs/results.md.

    python experiments/real_study.py hapt       21 volunteers, natural partition
    python experiments/real_study.py av-mnist   20 clients, Dirichlet alpha 3
    python experiments/real_study.py cg-mnist   20 clients, Dirichlet alpha 3

The presets' CPU-sized settings with their validation split, half of the clients with
one modality, three seeds. The protocol is that of ``study.py``.
"""

import argparse

from study import HEADS_ONLY, Study, compare

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.presets import preset

METHODS = {
    "fedavg": {"name": "fedavg"},
    "fedcmi, heads only": HEADS_ONLY,
    "fedcmi": {"name": "fedcmi"},
}
PRESETS = ("hapt", "av-mnist", "cg-mnist")
SEEDS = 3


def main() -> None:
    """Runs the study of one preset and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--rounds", type=int, help="default: the preset's")
    parser.add_argument("--every", type=int, default=5, help="rounds per evaluation")
    parser.add_argument("--manual-dir", help="where the raw files are, if at hand")
    args = parser.parse_args()
    base = configs.to_dict(preset(args.preset))
    base["rounds"] = args.rounds or base["rounds"]
    base["dataset"]["manual_dir"] = args.manual_dir
    study = Study(
        f"real-{args.preset}",
        f"python experiments/real_study.py {args.preset} --rounds={base['rounds']} "
        f"--every={args.every}",
    )
    modalities = {"hapt": ("acc", "gyro"), "av-mnist": ("audio", "image")}
    views = modalities.get(args.preset, ("color", "gray"))
    columns = ["acc", *(f"acc_{m}_zero" for m in views), "worst_class", "client_mean"]
    study.row("method", *columns, "acc - fedavg", "flat at round")
    runs = compare(
        base,
        METHODS,
        columns,
        num_seeds=SEEDS,
        every=args.every,
        print_row=study.row,
    )
    base["dataset"]["manual_dir"] = None  # of this machine
    study.write(base, runs)


if __name__ == "__main__":
    main()
