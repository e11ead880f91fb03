"""Does a signal of our own make FedCMI's distillation earn its keep? (methods 1.10).

    python experiments/study/signals.py choose hapt      all candidates, seeds 0-2
    python experiments/study/signals.py confirm hapt     the chosen ones, seeds 3-12
    python experiments/study/signals.py table            the tables of docs/results.md
    python experiments/study/signals.py stand-ins        one modality and its stand-in

Finished runs are in experiments/results/signals.json and are not repeated. The data
sets are found where `fedcmi data prepare` put them, or with --data-dir.

Pre-registration, written before the first run:

Question. Distillation's own gain, FedCMI against heads only (lambda = 0), was within
  one deviation everywhere so far. Does one of CANDIDATES have a gain that is not?
Data. HAPT (21 volunteers, natural partition), AV-MNIST and CG-MNIST (3,000 training and
  2,000 test samples, 20 clients, Dirichlet 3). Everybody has both modalities: the
  distillation then acts at every client, its largest effect.
Budget, the same for every method: 30 rounds of 5 clients, 2 local epochs, the presets'
  rates, MLP encoders of 64 features, width 64, evaluated at the last round only. Small,
  so that a run takes seconds; no claim about larger models. Candidates with held-out
  samples train on a tenth less, the price of their signal.
Measure, the only one that decides: the mean of fused test accuracy and that of the
  weakest modality alone (the other one zero; per run the lower of the two), at round
  30, differences paired over seeds.
Choice. All candidates on HAPT, seeds 0-2. The two with the largest mean difference to
  heads only go on, whatever its sign.
Confirmation. These two, FedCMI and heads only on seeds 3-12, which chose nothing, on
  HAPT, then AV-MNIST, then CG-MNIST. A candidate wins on a data set if the lower end of
  its paired t interval against heads only is above 0, at 95 % Holm-corrected over the
  two, and its mean difference to FedCMI is not negative.
Adoption. What wins on two of the three data sets becomes a recommended option; the
  others are reported in the same table. What the budget does not reach is "not run".
"""

import argparse
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from fedcmi_jax import backend
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.experiment import build, load_dataset, measure
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.initial import initial_state
from fedcmi_jax.experiment.loop import calls
from fedcmi_jax.experiment.parts import Parts
from fedcmi_jax.experiment.presets import PRESETS
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.experiment.training import versions
from fedcmi_jax.results.statistics import Paired, holm, moments, paired

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "signals.json"

ROUNDS = 30
CHOICE = range(3)
CONFIRMATION = range(3, 13)
CONFIRMED = 2
"""Candidates that go on."""

ALPHA = 0.05

SMALL: dict[str, Any] = {
    "multimodal_fraction": 1.0,
    "validation_fraction": 0.0,
    "encoder": {"name": "mlp", "features": 64},
    "encoder_names": [],
    "model": {"width": 64},
    "chunk_size": 5,
    "rounds": ROUNDS,
    "eval_every": ROUNDS,
}
DIGITS = {"train_samples": 3_000, "test_samples": 2_000}
DATA: dict[str, dict[str, Any]] = {
    "hapt": {},
    "av-mnist": {"dataset": {"name": "av_mnist"} | DIGITS},
    "cg-mnist": {"dataset": {"name": "cg_mnist"} | DIGITS},
}
"""Preset -> what else differs from it."""

HELD_OUT = {"probe_fraction": 0.1}

HEADS_ONLY, FEDCMI = "heads only", "fedcmi"

REFERENCES: dict[str, dict[str, Any]] = {
    HEADS_ONLY: {"method": {"lam": 0.0}},
    FEDCMI: {"method": {}},
}

CANDIDATES: dict[str, dict[str, Any]] = {
    # P is not saturated on samples that nobody trained on.
    "held out": HELD_OUT | {"method": {}},
    # Neither does the mean favour the numerator then.
    "held out, geometric": HELD_OUT | {"method": {"ratio_mean": "geometric"}},
    # A teacher that is wrong, or behind, has nothing to teach.
    "gate by sample": {"method": {"gate": "sample"}},
    # Whoever knows the sample better teaches, in either direction.
    "gate by sample, both ways": {"method": {"gate": "sample", "direction": "both"}},
    "gate by class, held out": HELD_OUT | {"method": {"gate": "class"}},
    # A tie in dominance is noise and should move nothing.
    "gap, held out": HELD_OUT
    | {"method": {"lam_scale": "gap", "ratio_mean": "geometric"}},
    # Together the modalities are the best teacher there is.
    "fused": {"method": {"teacher": "fused"}},
    "fused without student": {"method": {"teacher": "fused_without_student"}},
    # Targets as soft as the teacher is unsure, fitted where it was not trained.
    "calibrated, held out": HELD_OUT | {"method": {"calibration": "temperature"}},
    # Soft targets by hand: Hinton's T = 2 with his factor T^2 on lambda.
    "soft": {"method": {"temperature": "fixed", "fixed_temperature": 2.0, "lam": 4.0}},
    # Features differ where all logits agree.
    "features": {"method": {"level": "features"}},
}
"""Name -> changes, each with its reason; formulas in methods 1.10."""

METHODS = REFERENCES | CANDIDATES

Run = dict[str, float]
"""Metrics at the last round."""


def configuration(data: str, method: str, data_dir: str | None) -> configs.Config:
    """A preset, made small, with one method."""
    values = PRESETS[data].values | SMALL | DATA[data]
    changes = dict(METHODS[method])
    values |= {"method": {"name": "fedcmi"} | changes.pop("method")} | changes
    if data_dir is not None:
        values["dataset"] = values["dataset"] | {"data_dir": data_dir}
    return configs.from_dict(values)


def trained(
    config: configs.Config, seeds: list[int], dataset: Dataset
) -> Iterator[tuple[int, Run]]:
    """The metrics of one seed after the other; they share their programs."""
    shared = Shared()
    for seed in seeds:
        one = configs.from_dict(configs.to_dict(config) | {"seed": seed})
        experiment = build(one, shared=shared, parts=Parts(dataset=dataset))
        state = initial_state(experiment)
        for call in calls(experiment, state):
            state = call.state
        metrics = measure(experiment, state)
        yield seed, {k: v for k, v in metrics.items() if isinstance(v, float)}


def views(run: Run) -> list[float]:
    """Accuracy of each modality alone."""
    return [v for k, v in run.items() if k.startswith("acc_") and k.endswith("_zero")]


def primary(run: Run) -> float:
    """The measure that decides: mean of fused and weakest accuracy."""
    return (run["acc"] + min(views(run))) / 2


def read() -> dict[str, Any]:
    """Everything that has been run so far: data set -> method -> seed -> metrics."""
    return read_json(RESULTS)["runs"] if RESULTS.exists() else {}


def write(runs: dict[str, Any]) -> None:
    """Writes the file of results anew, whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "command": "python experiments/study/signals.py choose|confirm DATA",
        "small": SMALL,
        "data": DATA,
        "methods": METHODS,
        "versions": versions(),
        "runs": runs,
    }
    write_json(RESULTS, record)


def run_all(
    data: str, methods: list[str], seeds: range, data_dir: str | None, minutes: float
) -> None:
    """Trains what is missing, until it is done or the time is up."""
    end = time.monotonic() + 60 * minutes
    runs, dataset = read(), None
    for method in methods:
        done = runs.setdefault(data, {}).setdefault(method, {})
        missing = [seed for seed in seeds if str(seed) not in done]
        if not missing:
            continue
        config = configuration(data, method, data_dir)
        dataset = dataset or load_dataset(config.dataset, print)
        begun = time.monotonic()
        for seed, metrics in trained(config, missing, dataset):
            done[str(seed)] = metrics
            write(runs)
            took, begun = time.monotonic() - begun, time.monotonic()
            score = 100 * primary(metrics)
            print(f"{data}, {method}, seed {seed}: {score:.1f} ({took:.0f} s)")
            if time.monotonic() > end:
                print("time is up; the same command goes on")
                return
        jax.clear_caches()


def values(runs: dict[str, Any], method: str, seeds: range) -> list[float]:
    """The primary measure of a method, seed by seed, in percent."""
    return [100 * primary(runs[method][str(seed)]) for seed in seeds]


def complete(runs: dict[str, Any], method: str, seeds: range) -> bool:
    """Whether all these seeds have been run."""
    return all(str(seed) in runs.get(method, {}) for seed in seeds)


def chosen(runs: dict[str, Any]) -> list[str]:
    """The candidates that go on.

    Raises:
      SystemExit: Not all of them have been run.
    """
    hapt = runs.get("hapt", {})
    missing = [m for m in METHODS if not complete(hapt, m, CHOICE)]
    if missing:
        raise SystemExit(f"not run yet: {', '.join(missing)}; choose hapt goes on")
    base = values(hapt, HEADS_ONLY, CHOICE)
    gains = {m: paired(values(hapt, m, CHOICE), base).mean for m in CANDIDATES}
    return sorted(gains, key=lambda m: -gains[m])[:CONFIRMED]


def corrected(tests: dict[str, tuple[list[float], list[float]]]) -> dict[str, Paired]:
    """Paired intervals at Holm's levels: alpha / m for the least p, and so on."""
    plain = {m: paired(*pair) for m, pair in tests.items()}
    order = sorted(plain, key=lambda m: plain[m].p or 0.0)
    adjusted = holm([plain[m].p for m in order])
    return {
        m: paired(*tests[m], level=1 - ALPHA / (len(order) - i))._replace(p=p)
        for i, (m, p) in enumerate(zip(order, adjusted, strict=True))
    }


def cell(numbers: list[float]) -> str:
    """Mean +- sample deviation, in percent."""
    mean, deviation = moments(numbers)
    return f"{mean:.1f} ± {deviation:.1f}"


def interval(found: Paired) -> str:
    """Mean difference and its interval, in points."""
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def row(*cells: str) -> None:
    """Prints a row of a table."""
    print("| " + " | ".join(cells) + " |")


def table(runs: dict[str, Any], data: str, seeds: range) -> None:
    """A row per method: the measure, what it is made of, differences."""
    own = runs.get(data, {})
    names = [m for m in METHODS if complete(own, m, seeds)]
    if not {HEADS_ONLY, FEDCMI} <= set(names):
        print(f"{data}, seeds {seeds[0]}-{seeds[-1]}: not run")
        return
    base, published = (values(own, m, seeds) for m in (HEADS_ONLY, FEDCMI))
    tests = {m: (values(own, m, seeds), base) for m in names if m in CANDIDATES}
    final = seeds == CONFIRMATION
    against = corrected(tests) if final else {m: paired(*t) for m, t in tests.items()}
    against[FEDCMI] = paired(published, base)
    print(f"\n{data}, seeds {seeds[0]}-{seeds[-1]}")
    row("method", "measure", "fused", "weakest", "- heads only", "- fedcmi", "wins")
    row(*["---"] * 7)
    for m in names:
        own_runs = [own[m][str(seed)] for seed in seeds]
        wins = "-"
        to_fedcmi = paired(values(own, m, seeds), published)
        if m in CANDIDATES and final:
            won = against[m].low > 0 and to_fedcmi.mean >= 0
            wins = "yes" if won else "no"
        row(
            m,
            cell(values(own, m, seeds)),
            cell([100 * r["acc"] for r in own_runs]),
            cell([100 * min(views(r)) for r in own_runs]),
            interval(against[m]) if m in against else "-",
            interval(to_fedcmi) if m != FEDCMI else "-",
            wins,
        )


FEATURES = "features"


def stand_ins(runs: dict[str, Any]) -> None:
    """Prints accuracy with one modality: zero, stand-in or its own head.

    Not pre-registered: seen in HAPT's results, then asked of AV-MNIST and CG-MNIST.
    Plain columns are of heads only; the last is features less heads only, stand-ins.
    """

    def of(data: str, method: str, column: str) -> list[float]:
        return [100 * runs[data][method][str(s)][column] for s in CONFIRMATION]

    stand_in = (f"{m}, stand-in" for m in (FEDCMI, FEATURES))
    row("alone", "zero", "stand-in", "own head", *stand_in, "difference")
    row(*["---"] * 7)
    for data in DATA:
        shown = (HEADS_ONLY, FEDCMI, FEATURES)
        if not all(complete(runs.get(data, {}), m, CONFIRMATION) for m in shown):
            continue
        columns = runs[data][HEADS_ONLY][str(CONFIRMATION[0])]
        for view in (k.removesuffix("_zero") for k in columns if k.endswith("_zero")):
            base = of(data, HEADS_ONLY, f"{view}_infiltration")
            ours = of(data, FEATURES, f"{view}_infiltration")
            plain = (f"{view}_zero", f"{view}_infiltration", f"{view}_head")
            row(
                f"{data}, {view.removeprefix('acc_')}",
                *(f"{moments(of(data, HEADS_ONLY, c))[0]:.1f}" for c in plain),
                f"{moments(of(data, FEDCMI, plain[1]))[0]:.1f}",
                f"{moments(ours)[0]:.1f}",
                interval(paired(ours, base)),
            )


def main() -> None:
    """Runs a part of the study, or prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("choose", "confirm", "table", "stand-ins"))
    parser.add_argument("data", nargs="?", choices=DATA, default="hapt")
    parser.add_argument("--data-dir", help="folder of prepared data")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    args = parser.parse_args()
    if args.part == "stand-ins":
        stand_ins(read())
        return
    if args.part == "table":
        for data in DATA:
            table(read(), data, CHOICE)
            table(read(), data, CONFIRMATION)
        return
    backend.guard()
    methods, seeds = list(METHODS), CHOICE
    if args.part == "confirm":
        methods, seeds = [*REFERENCES, *chosen(read())], CONFIRMATION
    run_all(args.data, methods, seeds, args.data_dir, args.minutes)


if __name__ == "__main__":
    main()
