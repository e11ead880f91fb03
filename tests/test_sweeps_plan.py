"""Plans: cells by hand, and what is refused before anything is written."""

import json
import pathlib
import types

import jax
import pytest

from fedcmi_jax.cli import launch
from fedcmi_jax.cli.main import main
from fedcmi_jax.cli.sweeps import values_of
from fedcmi_jax.experiment.config import to_dict
from fedcmi_jax.experiment.sharing import signature
from fedcmi_jax.samples import Shape
from fedcmi_jax.sweeps import blocks
from fedcmi_jax.sweeps.estimate import programs
from fedcmi_jax.sweeps.fields import trial_of, tried
from fedcmi_jax.sweeps.one_call import comparison
from fedcmi_jax.sweeps.plan import check_same, described, read_plan, write_plan
from fedcmi_jax.sweeps.toml_file import parse_toml, read_toml
from tests.marks import slow

STUDY = pathlib.Path(__file__).parents[1] / "experiments" / "study"

WHOLE = """
seeds = 3
measure = "macro_f1"
baseline = "fedavg"
tune_seeds = 2
[base]
rounds = 7
"local.epochs" = 1
validation_fraction = 0.2
[grid]
partition.alpha = [0.1, 5]
[methods]
fedavg.tune."local.momentum" = [0.0, 0.9]
heads-only.tune."method.beta" = [1.0, 2.0]
strong = {method.name = "fedprox", method.mu = 1.0, tune."method.mu" = [0.1, 1.0]}
[[blocks]]
preset = "synthetic"
[[blocks]]
preset = "noisy-digits"
methods = ["fedavg", "fedcmi"]
grid.clients_per_round = [2]
base.rounds = 9
tune."local.learning_rate" = [0.1]
"""


def test_a_file_is_the_cells_that_one_works_out_by_hand():
    plan = parse_toml(WHOLE)
    names = [cell.name for cell in plan.cells]
    assert names == [
        *(f"synthetic,fedavg,alpha={a}" for a in ("0.1", "5")),
        *(f"synthetic,heads-only,alpha={a}" for a in ("0.1", "5")),
        *(f"synthetic,strong,alpha={a}" for a in ("0.1", "5")),
        *(
            f"noisy-digits,{m},alpha={a},clients_per_round=2"
            for m in ("fedavg", "fedcmi")
            for a in ("0.1", "5")
        ),
    ]
    axes = ("preset", "method", "partition.alpha", "clients_per_round")
    assert plan.axes == axes
    assert plan.seeds == [0, 1, 2]
    assert (plan.measure, plan.baseline, plan.tune_seeds) == ("macro_f1", "fedavg", 2)
    by_name = dict(zip(names, plan.cells, strict=True))
    heads = by_name["synthetic,heads-only,alpha=5"]
    assert heads.values == {
        "preset": "synthetic",
        "method": "heads-only",
        "partition.alpha": 5,
    }
    assert heads.tune == {"method.beta": (1.0, 2.0)}
    config = heads.config
    assert (config.method.name, config.method.lam, config.method.beta) == (
        *("fedcmi", 0.0),
        2.0,
    )
    assert (config.rounds, config.local.epochs, config.partition.alpha) == (7, 1, 5)
    assert config.model.width == 64  # the preset's
    strong = by_name["synthetic,strong,alpha=0.1"].config
    assert (strong.method.name, strong.method.mu) == ("fedprox", 1.0)
    other = by_name["noisy-digits,fedcmi,alpha=0.1,clients_per_round=2"]
    assert (other.config.rounds, other.config.clients_per_round) == (9, 2)
    assert other.tune == {"local.learning_rate": (0.1,)}


def test_sections_are_values_of_a_grid_and_names_are_folders():
    plan = parse_toml(
        """
        [grid]
        partition = [{name = "iid"}, {name = "dirichlet", alpha = 0.3}]
        "model.width" = [8, 16]
        "encoder.hidden" = [[8], [8, 4]]
        """
    )
    assert plan.baseline is None
    assert plan.axes == ("partition", "model.width", "encoder.hidden")
    last = plan.cells[-1]
    assert last.name == "partition=dirichlet-alpha=0.3,width=16,hidden=8-4"
    assert last.values["partition"] == "dirichlet alpha=0.3"
    assert last.config.partition.alpha == 0.3
    assert last.config.encoder.hidden == (8, 4)
    assert len({cell.folder for cell in plan.cells}) == 8


def test_names_that_end_alike_are_written_out_and_long_ones_cut():
    grid = {"local.learning_rate": [0.1], "server.learning_rate": [0.1]}
    (cell,) = comparison({}, ["fedavg"], grid=grid).cells
    assert cell.name == "fedavg,local.learning_rate=0.1,server.learning_rate=0.1"
    (one,) = comparison({}, {"a" * 300: {"method": {"name": "fedavg"}}}).cells
    (two,) = comparison({}, {"a" * 301: {"method": {"name": "fedavg"}}}).cells
    assert len(one.name) < 200
    assert one.name != two.name


def test_a_plan_comes_back_from_its_file_and_knows_another(tmp_path):
    plan = parse_toml(WHOLE)
    write_plan(tmp_path, plan)
    found = read_plan(tmp_path)
    assert described(found) == described(plan)
    assert found.source == WHOLE
    contract = json.loads((tmp_path / "plan.json").read_text())
    assert contract["cells"][0]["folder"] == "cells/synthetic,fedavg,alpha=0.1"
    assert contract["cells"][0]["config"]["seeds"] == 3
    check_same(tmp_path, parse_toml(f"# a comment\n{WHOLE}"))
    with pytest.raises(ValueError, match="cell 'synthetic,fedavg,alpha=0.1' differs"):
        check_same(tmp_path, parse_toml(WHOLE.replace("rounds = 7", "rounds = 8")))


def test_infinities_and_tuples_come_back_as_the_same_plan(tmp_path):
    grid = {"guard_factor": [3.0, float("inf")]}
    tune = {"encoder.hidden": [(8,), (8, 4)]}
    base = {"validation_fraction": 0.1}
    plan = comparison(base, ["fedavg"], grid=grid, tune=tune)
    write_plan(tmp_path, plan)
    check_same(tmp_path, plan)
    found = read_plan(tmp_path)
    assert [cell.config for cell in found.cells] == [c.config for c in plan.cells]
    with pytest.raises(ValueError, match="of another plan"):
        check_same(tmp_path, comparison(base, ["fedavg"], grid=grid))


@pytest.mark.parametrize(
    ("name", "value"), [("SLURM_NTASKS", "4"), ("TPU_WORKER_HOSTNAMES", "a,b")]
)
def test_a_sweep_does_not_wait_for_other_processes(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert main(["compare", "synthetic", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unset them" in line


def test_processes_that_have_met_already_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(launch, "start", lambda where, spreads: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert main(["compare", "synthetic", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "jax.distributed: joins 2 processes" in line


def test_data_sets_of_other_types_share_no_model():
    one, other = (
        types.SimpleNamespace(
            modalities=("a",), num_classes=2, shapes={"a": Shape((3,), kind)}
        )
        for kind in ("int32", "float32")
    )
    assert signature(one) != signature(other)


def test_cells_of_one_program_are_found():
    grid = {"partition.alpha": [0.1, 5], "local.epochs": [1, 2]}
    plan = comparison({}, ["fedavg", "fedprox"], grid=grid)
    assert list(programs(plan).values()) == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_flags_give_fields_and_values():
    words = ["partition.alpha=0.1", "5", "method.student=self", "local.momentum=null"]
    assert values_of("--grid", words) == {
        "partition.alpha": [0.1, 5],
        "method.student": ["self"],
        "local.momentum": [None],
    }


def test_trials_of_mapped_seeds_are_checked_as_they_are_run():
    """One seed of a trial is not mapped; so what mapped seeds cannot do, it may."""
    text = "seeds = 3\n[base]\nmap_seeds = true\nvalidation_fraction = 0.1\n"
    (cell,) = parse_toml(f"{text}[tune]\nclip_norm = [1, 2]").cells
    assert cell.config.map_seeds
    for seeds in (1, 2):
        trial = blocks.checked(trial_of(to_dict(cell.config), {"clip_norm": 2}, seeds))
        assert (trial.seeds, trial.map_seeds) == (seeds, seeds > 1)


def test_tables_of_a_block_are_laid_over_those_of_the_file_field_by_field():
    plan = parse_toml(
        """
        [base]
        local.epochs = 2
        "local.batch_size" = 4
        [grid]
        partition.alpha = [0.1, 1]
        partition.min_samples = [1]
        [[blocks]]
        base.local.batch_size = 8
        grid.partition.alpha = [5]
        [[blocks]]
        name = "other"
        """
    )
    first, *others = plan.cells
    assert first.values == {
        "block": "1",
        "partition.alpha": 5,
        "partition.min_samples": 1,
    }
    assert (first.config.local.epochs, first.config.local.batch_size) == (2, 8)
    assert [cell.values["partition.alpha"] for cell in others] == [0.1, 1]


BAD = {
    "": None,
    "seeds = ": "not valid TOML",
    "sedes = 3": "key: unknown 'sedes'; did you mean 'seeds'",
    "seeds = 'x'": "seeds: 'x' is not a whole number",
    "seeds = 0": "seeds: 0 is below 1",
    "preset = 'sintetic'": "preset: unknown 'sintetic'; did you mean 'synthetic'",
    "presets = []": "presets: is empty",
    "presets = ['hapt', 'hapt']": "2 are called 'hapt'",
    "presets = ['hapt']\npreset = 'hapt'": "leave out preset and blocks",
    "blocks = []": "blocks: is empty",
    "blocks = [3]": "blocks: 3 is no table",
    "[[blocks]]\nseeds = 3": "key: unknown 'seeds'",
    "methods = []": "methods: is empty",
    "methods = 'fedavg'": "methods: 'fedavg' is not a list or a table",
    "methods = [3]": "methods: 3 is not a text",
    "methods = ['fedavgg']": "methods: unknown 'fedavgg'; did you mean 'fedavg'",
    "methods = ['fedavg', 'fedavg']": "'fedavg' is there 2 times",
    "methods.fedavg = 3": "methods.fedavg: 3 is no table",
    "methods.mine.model.width = 3": "methods: unknown 'mine'",
    "methods.fedprox.method.mu = 'x'": "cell fedprox: method.mu: 'x' is not a number",
    "methods.fedprox.method.mu = -1": "cell fedprox: mu",
    "methods.fedprox.seed = 1": "methods.fedprox.seed: is the sweep's",
    "methods.fedprox.rouns = 1": "cell fedprox: rouns: unknown field",
    "base.rouns = 3": "rouns: unknown field",
    "base.rounds = 0": "cell all: rounds: 0 is below 1",
    "base = 3": "base: 3 is not a table",
    "base.noisy_clients = 0.5": "noisy_clients: 0.5 has no effect without label_noise",
    "seeds = 2\nbase.seeds = 3": "base.seeds: seeds stands above",
    "grid.alpha = [1]": "cell alpha=1: grid: unknown 'alpha'; did you mean 'partition",
    "grid.rounds = 3": "grid.rounds: 3 is no list",
    "grid.rounds = []": "grid.rounds: is empty",
    "grid.rounds = [3, 3]": "grid.rounds: 3 is there twice",
    "grid.rounds = [3, 'x']": "cell rounds=x: rounds: 'x' is not a whole number",
    "grid.seed = [1, 2]": "grid.seed: is the sweep's",
    "grid.partition = ['iid']": "partition: 'iid' is not a table",
    "methods.fedprox.method.mu = 1\ngrid.method.mu = [1]": "sets method.mu, too",
    "measure = 'accc'": "measure: 'accc' is no column",
    "baseline = 'x'\nmethods = ['fedavg']": "baseline: unknown 'x'",
    "tune_seeds = 0": "tune_seeds: 0 is below 1",
    "tune.clip_norm = [3]": "tune: needs a validation split",
    "tune.clip_norm = [3]\ngrid.clip_norm = [3]": "tune sets clip_norm, too",
    "base.validation_fraction = 0.1\ntune.lanes = [0]": "lanes: 0 is below 1",
    **{
        f"tune.{field} = [3]": f"tune.{field}: says when a run ends"
        for field in ("rounds", "early_stop_rounds", "eval_every")
    },
    "seeds = 3\nbase.map_seeds = true\ntune_seeds = 2\ntune.stream = [true]": (
        "map_seeds: mapped seeds have cohorts"
    ),
    "methods = ['fedavg']\ngrid.'method.name' = ['fedcmi']": (
        "grid.method.name: fedavg sets method.name, too"
    ),
    "methods = ['fedavg']\ngrid.method = [{name = 'fedcmi'}]": (
        "grid.method: fedavg sets method.name, too"
    ),
    "methods = ['fedavg']\ntune.method.name = ['fedcmi']": (
        "tune.method.name: fedavg sets method.name, too"
    ),
    "[grid]\npartition = [{name = 'iid'}]\n'partition.alpha' = [1]": (
        "grid.partition: overlaps with partition.alpha"
    ),
    "tune.local = [{epochs = 1}]\n[methods.fedavg]\ntune.'local.epochs' = [1]": (
        "tune.local: overlaps with local.epochs"
    ),
    "[grid]\npartition.alpha = [1]\n'partition.alpha' = [2]": (
        "grid.partition.alpha: is there twice"
    ),
    "[base]\nlocal.epochs = 1\n'local.epochs' = 2": (
        "base.local.epochs: is there twice"
    ),
    "[base]\nlocal = 1\n'local.epochs' = 2": "base.local: is there twice",
    "base.preset = 'hapt'": "base.preset: has no effect here; write preset = ...",
    "base.output = 'x'": "base.output: has no effect here; give --output",
    "tune-seeds = 2": "key: unknown 'tune-seeds'; did you mean 'tune_seeds'",
    "grid.'local.batch-size' = [2]": "did you mean 'local.batch_size'",
    "methods.a.method = 5": "methods.a.method: 5 is no table of options",
    **{
        f"measure = '{column}'": f"measure: '{column}' is no result"
        for column in ("seconds", "round", "rejected", "per_class", "val_per_class")
    },
    "measure = 'val_acc'": "measure: 'val_acc' needs validation_fraction, which is 0",
    "measure = 'holdout_mean'": "measure: 'holdout_mean' needs holdout_clients",
    "[methods]\nfedavg = {}\nfedprox.tune.'method.mu' = [1, 2]": (
        "different numbers of trials .fedavg 1, fedprox 2"
    ),
    "[[blocks]]\nbase.seed = 1\n[[blocks]]\nname='b'": "seed: 0 in cell b, 1 in 1",
}


@pytest.mark.parametrize("text", BAD)
def test_mistakes_are_one_line_and_nothing_is_written(text, tmp_path, capsys):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    if BAD[text] is None:
        assert [cell.name for cell in read_toml(file).cells] == ["all"]
        return
    with pytest.raises(ValueError, match=BAD[text]):
        read_toml(file)
    assert main(["sweep", str(file), f"--output={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedcmi: error: {file}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sweep", "no.toml"], "no.toml: No such file"),
        (["sweep", "client"], "did you mean 'clients'"),
        (["sweep", "."], "has no plan.json"),
        (["compare", "synthetic", "--grid"], "--grid: has no value"),
        (["compare", "--grid=5"], "'5' names no field"),
        (["compare", "--grid=rounds=1", "--grid=rounds=2"], "rounds is there twice"),
        (["compare", "--methods=fedavg,nope"], "methods: unknown 'nope'"),
        (["compare", "--tune=clip_norm=1,2"], "tune: needs a validation split"),
        (["compare", "--method.name=fedprox"], "--method.name: --methods names the"),
    ],
)
def test_mistakes_on_the_command_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "methods"), [("core", 6), slow("extended", 18), slow("full", 18)]
)
def test_the_studies_plans_are_possible(name, methods):
    """Every cell's configuration is checked; FedAvg is beside every method."""
    plan = read_toml(STUDY / f"{name}.toml")
    assert plan.seeds == [0, 1, 2, 3, 4]
    own = {c.values["method"] for c in plan.cells if c.values["block"] == "cg_mnist"}
    assert {"fedavg", "heads-only", "fedcmi"} < own
    assert len(own - {"central", "local-only"}) == methods
    budgets = {c.values["block"]: set() for c in plan.cells}
    for cell in plan.cells:
        budgets[cell.values["block"]].add(len(list(tried(cell.tune))))
    assert all(len(trials) == 1 for trials in budgets.values())


def test_every_ablation_is_a_variant_of_fedcmi():
    for name in blocks.ABLATIONS:
        whole, short = (blocks.variant(f"{x}{name}").changes for x in ("fedcmi-", ""))
        assert whole == short
        assert whole["method"]["name"] == "fedcmi"


def test_a_base_of_another_seed_is_every_cells(tmp_path):
    plan = comparison({"seed": 4, "seeds": 2}, ["fedavg", "fedcmi"])
    assert plan.seeds == [4, 5]
    assert {to_dict(cell.config)["seed"] for cell in plan.cells} == {4}
