"""Sweeps carried out: tables, going on, failing cells, tuning, shared programs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import sharing
from fedcmi_jax.experiment.config import from_dict, to_dict
from fedcmi_jax.experiment.config_file import read_config
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.run_folder import lock
from fedcmi_jax.experiment.run_list import find_runs
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.results.statistics import Paired
from fedcmi_jax.sweeps import run, table
from fedcmi_jax.sweeps.estimate import estimate
from fedcmi_jax.sweeps.one_call import comparison, sweep
from fedcmi_jax.sweeps.plan import read_plan
from tests.test_config import TINY

TABLES = ("table.csv", "table.md")

# Almost IID, so that arrays of all cells and seeds have the same shapes.
BASE = TINY | {
    "dataset": TINY["dataset"] | {"train_samples": 80},
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "validation_fraction": 0.2,
    "rounds": 2,
    "seeds": 2,
    "local": {"epochs": 1},
}


def planned(methods=("fedavg", "fedprox"), **values):
    grid = values.pop("grid", {"partition.alpha": [1000.0, 5000.0]})
    options = {k: values.pop(k) for k in ("tune", "tune_seeds") if k in values}
    return comparison(BASE | values, methods, grid=grid, **options)


def carried_out(plan, folder, **options):
    run.begin(plan, folder)
    return run.carry_on(folder, **options)


def tables(folder):
    return [(folder / name).read_bytes() for name in TABLES]


def figures(folder):
    with open(folder / "table.csv") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two methods at two alphas with two seeds, nothing interrupted."""
    folder, shared, lines = tmp_path_factory.mktemp("sweeps") / "whole", Shared(), []
    done = carried_out(planned(), folder, shared=shared, log=lines.append)
    return folder, shared, lines, done


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "sweep")


def final(folder, cell):
    summary = json.loads((folder / "cells" / cell / "summary.json").read_text())
    return summary["final"]["per_seed"]["acc"]


def test_the_table_has_the_figures_of_the_cells(whole):
    folder, _, lines, done = whole
    assert not done.failures
    rows = figures(folder)
    names = [f"{m},alpha={a}" for m in ("fedavg", "fedprox") for a in ("1000", "5000")]
    assert list(rows) == [row.cell for row in done.rows] == names
    for alpha in ("1000", "5000"):
        ours, theirs = (
            final(folder, f"{method},alpha={alpha}") for method in ("fedprox", "fedavg")
        )
        row = rows[f"fedprox,alpha={alpha}"]
        assert float(row["acc"]) == pytest.approx((ours[0] + ours[1]) / 2)
        gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert float(row["difference"]) == pytest.approx(sum(gaps) / 2)
        assert row["partition.alpha"] == f"{alpha}.0"
        assert rows[f"fedavg,alpha={alpha}"]["difference"] == ""
    assert [line.split(":")[0] for line in lines] == [
        f"cell {i} of 4, {name}" for i, name in enumerate(names, 1)
    ]
    assert all("left" in line for line in lines[:-1])
    assert "left" not in lines[-1]


@pytest.mark.slow
def test_a_crowded_process_forgets_and_gets_the_same_figures(
    whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(sharing, "CROWDED", -1.0)
    cleared = []
    forget = jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(forget()))
    carried_out(planned(["fedavg"]), tmp_path / "crowded")
    assert len(cleared) == 4  # two cells of two seeds
    usual = figures(whole[0])
    for name, row in figures(tmp_path / "crowded").items():
        assert row == {k: v for k, v in usual[name].items() if k in row}


def test_cells_are_runs_as_train_writes_them(whole):
    folder = whole[0]
    plan = read_plan(folder)
    for cell in plan.cells:
        assert read_config(folder / cell.folder) == cell.config
        own = read_config(folder / cell.folder / "seed-1")
        assert (own.seed, own.seeds) == (1, 1)
    listed = find_runs(folder)
    assert [row.folder for row in listed] == [
        folder,
        *(folder / cell.folder for cell in plan.cells),
    ]
    assert listed[0].state == "sweep, 4 of 4 cells finished"
    assert {row.state for row in listed[1:]} == {"finished"}


def test_two_alphas_and_all_seeds_are_one_program(whole):
    """Of 4 cells x 2 seeds: one round per method, and one evaluation for both."""
    shared = whole[1]
    experiments = [
        build(from_dict(to_dict(cell.config) | {"seeds": 1}), shared=shared)
        for cell in planned().cells
    ]
    algorithms = {e.algorithm.run for e in experiments}
    assert len(algorithms) == 2
    assert [run._cache_size() for run in algorithms] == [1, 1]
    whole_test = {e.measures.compiled.views.whole for e in experiments}
    # Test and validation samples have other shapes.
    assert [program._cache_size() <= 3 for program in whole_test] == [True]


def test_later_cells_are_trained_again_to_the_same_bytes(copied, whole):
    for name in (*TABLES, "timings.json"):
        (copied / name).unlink()
    plan = (copied / "plan.json").read_bytes()
    shutil.rmtree(copied / "cells" / "fedprox,alpha=5000")
    # Killed between the seeds of a cell.
    shutil.rmtree(copied / "cells" / "fedprox,alpha=1000" / "seed-1")
    (copied / "cells" / "fedprox,alpha=1000" / "summary.json").unlink()
    kept = copied / "cells" / "fedavg,alpha=5000" / "summary.json"
    before = kept.stat().st_mtime_ns
    lines = []
    run.carry_on(copied, shared=whole[1], log=lines.append)
    assert len(lines) == 2
    assert tables(copied) == tables(whole[0])
    assert (copied / "plan.json").read_bytes() == plan
    assert kept.stat().st_mtime_ns == before


def test_a_finished_sweep_trains_nothing_and_writes_lost_tables(copied, whole):
    for name in TABLES:
        (copied / name).unlink()
    lines = []
    rows = sweep(planned(), copied, log=lines.append)
    assert not lines
    assert rows == whole[3].rows
    assert tables(copied) == tables(whole[0])
    with pytest.raises(ValueError, match="of another plan"):
        sweep(planned(rounds=3), copied)


def test_a_cell_in_work_elsewhere_is_passed_over(copied, whole):
    gone = ("fedavg,alpha=5000", "fedprox,alpha=5000")
    for name in gone:
        (copied / "cells" / name / "summary.json").unlink()
    with lock(copied / "cells" / gone[0]):
        done = run.carry_on(copied, shared=whole[1])
    assert done.elsewhere == (gone[0],)
    states = {row.cell: row.state for row in done.rows}
    assert [states[name] for name in gone] == ["waiting", "finished"]
    assert run.carry_on(copied, shared=whole[1]).elsewhere == ()
    assert tables(copied) == tables(whole[0])


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(tmp_path, capsys, whole):
    impossible = {"partition": {"name": "dirichlet", "min_samples": 999}}
    methods = {"impossible": {"method": {"name": "fedavg"}} | impossible, "fedavg": {}}
    plan = planned(methods, grid={})
    for _ in range(2):  # tried again, and recorded again
        done = carried_out(plan, tmp_path / "sweep", shared=whole[1])
        assert list(done.failures) == ["impossible"]
        assert "min_samples" in done.failures["impossible"]
        assert [row.state for row in done.rows] == ["failed", "finished"]
    recorded = json.loads((tmp_path / "sweep" / "failures.json").read_text())
    assert recorded == done.failures
    assert figures(tmp_path / "sweep")["impossible"]["acc"] == ""
    assert main(["sweep", str(tmp_path / "sweep"), "--devices=1"]) == 1
    assert "impossible failed: " in capsys.readouterr().err


def test_a_cell_of_another_configuration_is_refused_and_kept(copied, whole):
    cell = copied / "cells" / "fedavg,alpha=5000"
    (cell / "summary.json").unlink()
    values = json.loads((cell / "config.json").read_text())
    values["config"]["rounds"] = 7
    (cell / "config.json").write_text(json.dumps(values))
    done = run.carry_on(copied, shared=whole[1])
    assert "is not that of the plan" in done.failures["fedavg,alpha=5000"]


@pytest.mark.parametrize("name", ["plan.json", "failures.json", "timings.json"])
def test_damaged_files_are_named(name, copied, whole):
    shutil.rmtree(copied / "cells" / "fedavg,alpha=5000")
    (copied / name).write_text("[")
    with pytest.raises(ValueError, match=f"{name}: not valid JSON"):
        run.carry_on(copied, shared=whole[1])


def test_tuning_takes_what_the_recorded_figures_say(tmp_path, whole):
    tune = {"label_noise": [0.9, 0.0]}  # of no effect on the program
    near = {"name": "dirichlet", "alpha": 1000.0}
    plan = planned(
        ["fedavg"], grid={}, partition=near, seeds=1, tune=tune, tune_seeds=2
    )
    folder = tmp_path / "sweep"
    carried_out(plan, folder, shared=whole[1])
    record = json.loads((folder / "tuning.json").read_text())["fedavg"]
    for trial in record["trials"]:
        summary = json.loads((folder / trial["folder"] / "summary.json").read_text())
        assert summary["final"]["val_acc"] == trial["val_acc"]
        assert summary["seeds"] == [0, 1]
    best = max(record["trials"], key=lambda trial: trial["val_acc"])
    assert record["chosen"] == best["values"]
    config = read_config(folder / "cells" / "fedavg")
    assert config.label_noise == best["values"]["label_noise"]
    assert config.seeds == 1
    # Killed when the trials were done: the same choice, and trained to the same table.
    before = tables(folder)
    for lost in ("tuning.json", "cells/fedavg/summary.json"):
        (folder / lost).unlink()
    run.carry_on(folder, shared=whole[1])
    again = json.loads((folder / "tuning.json").read_text())["fedavg"]
    assert again == record
    assert tables(folder) == before
    assert [row.folder for row in find_runs(folder)] == [
        folder,
        folder / "cells" / "fedavg",
    ]


def test_differences_are_worked_out_by_hand():
    plan = planned(["fedavg", "fedprox"], grid={})
    metrics = ({"acc": [0.5, 0.7]}, {"acc": [0.6, 1.0]})
    rows = [
        table.Row("fedavg", {"method": "fedavg"}, "finished", metrics[0]),
        table.Row(
            "fedprox",
            {"method": "fedprox"},
            "finished",
            metrics[1],
            # t_1 = 12.706, s = 0.1414, so 12.706 x 0.1414 / sqrt(2) = 1.2706
            Paired(0.2, 0.1414, -1.0706, 1.4706, 2, 0.295),
        ),
        table.Row("lost", {"method": "a|b"}, "failed"),
    ]
    assert table.as_markdown(plan, rows) == (
        "| method | acc, n = 2 | difference to fedavg [95 % interval] |\n"
        "| --- | --- | --- |\n"
        "| fedavg | 0.6000 ± 0.1414 |  |\n"
        "| fedprox | 0.8000 ± 0.2828 | +0.2000 [-1.0706, +1.4706] |\n"
        "| a/b | failed |  |\n"
    )
    header, first, second, third = table.as_csv(plan, rows).splitlines()
    assert header == (
        "cell,method,state,seeds,acc,acc_std,"
        "difference,difference_std,difference_low,difference_high,difference_p"
    )
    assert first.startswith("fedavg,fedavg,finished,2,0.6,0.14142135623730948,")
    assert second.endswith(",0.2,0.1414,-1.0706,1.4706,0.295")
    assert third == "lost,a|b,failed,2,,,,,,,"


def test_an_estimate_measures_each_program_once(whole):
    plan = planned(["fedavg"])
    (measured,) = estimate(plan)
    assert (measured.cell, measured.cells) == ("fedavg,alpha=1000", 2)
    runs = 4  # two cells of two seeds, two rounds and two evaluations each
    each = measured.setup + 2 * measured.round + 2 * measured.evaluation
    assert measured.seconds == pytest.approx(measured.compile + runs * each)


def test_an_estimate_counts_the_programs_of_trials(whole):
    grid, tune = {}, {"clip_norm": [1.0, 2.0], "label_noise": [0.0, 0.1]}
    plan = planned(["fedavg"], grid=grid, tune=tune)
    (measured,) = estimate(plan)
    each = measured.setup + 2 * measured.round + 2 * measured.evaluation
    runs = 2 + 4  # two seeds, and four trials of one
    assert measured.seconds == pytest.approx(2 * measured.compile + runs * each)


def test_only_what_is_left_is_estimated(copied):
    plan = read_plan(copied)
    assert run.unfinished(plan, copied).cells == ()
    (copied / plan.cells[2].folder / "summary.json").unlink()
    assert run.unfinished(plan, copied).cells == (plan.cells[2],)


def test_a_failure_of_a_finished_cell_is_dropped(copied, whole):
    (copied / "failures.json").write_text('{"fedavg,alpha=1000": "killed then"}')
    assert run.carry_on(copied, shared=whole[1]).failures == {}
    assert not (copied / "failures.json").exists()


FLAGS = [
    *("--dataset.train-samples=60", "--dataset.test-samples=20", "--clients=4"),
    *("--encoder.features=4", "--model.width=4", "--clients-per-round=2"),
    *("--rounds=2", "--devices=1"),
]


@pytest.mark.slow
def test_compare_prints_the_table_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "out"
    flags = [*FLAGS, "--seeds=2", f"--output={folder}"]
    command = ["compare", "synthetic", "--methods=fedavg,fedprox", *flags]
    assert main([*command, "--dry-run"]) == 0
    assert "2 cells" in capsys.readouterr().out
    assert not folder.exists()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert (folder / "table.md").read_text() in out
    assert out.endswith(f"sweep folder {folder}\n")
    before = tables(folder)
    (folder / "table.md").unlink()
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert tables(folder) == before


@pytest.mark.slow
def test_killed_and_stopped_and_gone_on_to_the_same_bytes(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(
        """
        preset = "synthetic"
        seeds = 2
        methods = ["fedavg"]
        [base]
        dataset = {train_samples = 400, test_samples = 20}
        encoder.features = 4
        rounds = 4
        checkpoint_every = 1
        [grid]
        partition.alpha = [0.5, 1, 2, 5]
        """
    )
    command = [sys.executable, "-m", "fedcmi_jax.cli", "sweep"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}

    def go_on(*args, after=None, number=signal.SIGKILL):
        with subprocess.Popen(
            [*command, *args], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if after and line.startswith(after):
                    process.send_signal(number)
        return process.returncode

    whole, killed = (str(tmp_path / name) for name in ("whole", "killed"))
    assert go_on(str(file), f"--output={whole}") == 0
    args = (str(file), f"--output={killed}")
    assert go_on(*args, after="cell 1") == -signal.SIGKILL
    assert go_on(killed, after="cell ") == -signal.SIGKILL
    assert go_on(killed, after="cell ", number=signal.SIGINT) == 128 + signal.SIGINT
    assert go_on(*args) == 0
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
