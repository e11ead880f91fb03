"""FedAvg, heads only and FedCMI on the digit data sets: a table of docs/results.md.

    python experiments/digits_study.py noisy-digits
    python experiments/digits_study.py cg-digits

20 clients, 5 per round, Dirichlet alpha 0.3 and 100, all clients multimodal or half of
them, five seeds, a tenth of every client's samples for validation. The protocol is
that of ``study.py``.
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
VIEWS = {"noisy-digits": ("clean", "noisy"), "cg-digits": ("color", "gray")}
ALPHAS = (0.3, 100.0)
MULTIMODAL_FRACTIONS = (1.0, 0.5)
SEEDS = 5
VALIDATION = 0.1


def main() -> None:
    """Runs the study of one preset and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=sorted(VIEWS))
    parser.add_argument("--rounds", type=int, help="default: the preset's")
    parser.add_argument("--every", type=int, default=5, help="rounds per evaluation")
    args = parser.parse_args()
    base = configs.to_dict(preset(args.preset))
    base |= {"validation_fraction": VALIDATION, "rounds": args.rounds or base["rounds"]}
    study = Study(args.preset, f"python experiments/digits_study.py {args.preset}")
    views = [f"acc_{m}_zero" for m in VIEWS[args.preset]]
    columns = ["acc", *views, "worst_class"]
    header = ("alpha", "multimodal_fraction", "method", *columns)
    study.row(*header, "acc - fedavg", "flat at round")
    runs = {}
    for alpha in ALPHAS:
        for multimodal_fraction in MULTIMODAL_FRACTIONS:
            label = (f"{alpha:g}", f"{multimodal_fraction:g}")
            partition = {"name": "dirichlet", "alpha": alpha}
            problem = base | {
                "partition": partition,
                "multimodal_fraction": multimodal_fraction,
            }
            rows = compare(
                problem,
                METHODS,
                columns,
                num_seeds=SEEDS,
                every=args.every,
                print_row=study.row,
                label=label,
            )
            runs |= {", ".join((*label, name)): run for name, run in rows.items()}
    study.write(base, runs)


if __name__ == "__main__":
    main()
