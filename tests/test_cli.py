import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedcmi_jax
from fedcmi_jax.cli.flags import parse_options
from fedcmi_jax.cli.main import COMMANDS, LISTS, main, parse
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.presets import PRESETS
from tests.test_config import ENTRIES, TINY

PROGRAM = "import sys; from fedcmi_jax.cli.main import main; sys.exit(main())"
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def flags(values, prefix=""):
    """A nested table as command-line flags."""
    result = []
    for name, value in values.items():
        if isinstance(value, dict):
            result += flags(value, f"{prefix}{name}.")
        else:
            result.append(f"--{prefix}{name}={value}")
    return result


TINY_FLAGS = ["synthetic", *flags(TINY), "--method.name=fedavg", "--local.epochs=1"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(argv, capsys):
    """The one line on standard error of a command that refuses and writes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("fedcmi: error: ")
    assert sorted(Path.cwd().rglob("*")) == before
    return line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["noisy-digit"], "did you mean 'noisy-digits'"),
        (["zzz"], "choose from"),
        (["--method.name=fedcim"], "did you mean 'fedcmi'"),
        (["--dataset.name", "digitz"], "dataset.name"),
        (["--partition.name=iids"], "did you mean 'iid'"),
        (["--encoder.name=resnet"], "encoder.name"),
        (["--encoder.name"], "encoder.name"),
        (["--round=5"], "did you mean 'rounds'"),
        (["--frobnicate=5"], "frobnicate"),
        (["--preset=synthetic"], "preset"),
        (["--method.name=fedavg", "--method.mu=1"], "fedavg"),
        (["-x"], "-x"),
        (["synthetic", "stray"], "stray"),
        (["--rounds"], "rounds"),
        (["--rounds="], "rounds"),
        (["--rounds=five"], "five"),
        (["--rounds=1.5"], "1.5"),
        (["--local.learning-rate=fast"], "fast"),
        (["--method.personal-infiltration=maybe"], "maybe"),
        (["--server.optimizer=lion"], "lion"),
        (["--partition.alpha=0"], "alpha"),
        (["--partition.alpha", "-1"], "alpha"),
        (["--clients-per-round=21"], "clients_per_round: 21 is more than clients"),
        (["--local.batch-size=0"], "local.batch_size: 0"),
        (["--encoder.features=0"], "encoder.features: 0"),
        (["--clients=2000"], "num_clients=2000"),
        (["--seed=-1"], "seed: -1"),
        (["--dataset.noise=-1"], "noise"),
        (["--method.lam=-1"], "lam"),
        (["--model.architecture=classifier"], "needs projectors"),
    ],
)
def test_train_refuses_in_one_line(argv, message, capsys):
    assert message in fails(["train", *argv], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["--frobnicate"], "--frobnicate"),
        (["resume"], "takes a run folder"),
        (["resume", "a", "--rounds=5"], "takes a run folder"),
        (["resume", "nowhere"], "no such folder"),
        (["resume", "."], "no config.json"),
        (["list", "method"], "did you mean 'methods'"),
        (["list", "methods", "presets"], "takes one of"),
    ],
)
def test_commands_refuse_in_one_line(argv, message, capsys):
    assert message in fails(argv, capsys)


def test_train_refuses_a_folder_that_exists(capsys):
    Path("old").mkdir()
    Path("old/notes.txt").write_text("mine")
    assert "old exists" in fails(["train", "--output=old"], capsys)
    assert "is a file" in fails(["train", "--output=old/notes.txt"], capsys)


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {"rounds": {}}}', "{}"])
def test_resume_refuses_a_damaged_config(content, capsys):
    Path("run").mkdir()
    Path("run/config.json").write_text(content)
    Path("run/.lock").touch()
    assert "config.json" in fails(["resume", "run"], capsys)


def test_flags_in_all_forms():
    config = parse(
        [
            "synthetic",
            "--method.name=fedprox",
            "--method.mu",
            "0.5",
            "--partition.name",
            "iid",
            "--rounds=7",
            "--clip-norm=2",
            "--clients_per_round=3",
            "--encoder.hidden=8,4",
            "--local.legacy-schedule=True",
        ]
    )
    assert config is not None
    assert (config.method.name, config.method.mu) == ("fedprox", 0.5)
    assert config.partition == configs.section("partition", "iid")()
    assert (config.rounds, config.clip_norm, config.clients_per_round) == (7, 2.0, 3)
    assert config.encoder.hidden == (8, 4)
    assert config.local.legacy_schedule
    assert config.preset == "synthetic"


def test_booleans_can_be_switched_off():
    on = ["--method.personal-infiltration=true"]
    for off in (
        "--method.personal_infiltration=False",
        "--method.no-personal-infiltration",
    ):
        config = parse([*on, off])
        assert config is not None
        assert config.method.personal_infiltration is False


def test_no_preset_is_noisy_digits():
    assert parse([]) == parse(["noisy-digits"])
    assert parse(["noisy_digits"]) == parse([])


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_help_documents_every_field(kind, name, capsys):
    assert main(["train", f"--{kind}.name={name}", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    config = configs.from_dict({kind: {"name": name}})
    for path in _paths(configs.to_dict(config)):
        flag = re.escape(f"--{path.replace('_', '-')}")
        assert re.search(rf"{flag}[ ,]", shown) or path == "preset", path


def _paths(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        shown = capsys.readouterr().out
        assert all(command in shown for command in COMMANDS)
    assert main(["--version"]) == 0
    assert fedcmi_jax.__version__ in capsys.readouterr().out
    assert main(["resume", "--help"]) == 0


def test_lists(capsys):
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    names = [*LISTS, *PRESETS, *(name for _, name in ENTRIES)]
    assert all(name in everything for name in names)
    for name in LISTS:
        assert main(["list", name]) == 0


def test_train_list_resume_and_summary(capsys):
    output = ["--output=runs/a-name-that-is-too-long-for-eighty-columns-" + 50 * "x"]
    assert main(["train", *TINY_FLAGS, *output, "--rounds=3", "--eval-every=2"]) == 0
    shown = capsys.readouterr().out
    folder = Path(output[0].removeprefix("--output="))
    assert f"run folder {folder}" in shown
    assert "strong alone" in shown
    assert "weak alone" in shown

    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [2, 3]
    for name in ("acc", "acc_weak_zero", "loss_task", "learning_rate", "num_examples"):
        assert name in lines[-1]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final"] == lines[-1]
    assert summary["best"] is summary["chosen_on"] is None  # never chosen on test
    assert summary["rounds"] == 3
    assert summary["parameters"] > 0
    assert summary["seconds"] > 0
    stored = json.loads((folder / "config.json").read_text())
    assert stored["config"]["preset"] == "synthetic"
    assert {"jax", "numpy", "python", "fedcmi_jax"} <= set(stored["versions"])

    assert main(["list", "runs"]) == 0
    (row,) = [x for x in capsys.readouterr().out.splitlines() if str(folder) in x]
    assert "finished" in row
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert main(["resume", str(folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert "exists" in fails(["train", *TINY_FLAGS, *output], capsys)


def test_few_lines_for_many_rounds(capsys):
    assert main(["train", *TINY_FLAGS, "--rounds=90", "--output=run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert 15 <= sum(line.startswith("round ") for line in shown) <= 22


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-c", PROGRAM, "list"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number):
    arguments = ["train", *TINY_FLAGS, "--rounds=1000000", "--output=run"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("round "):
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "fedcmi resume run" in out + err
    assert "Traceback" not in err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert (Path("run/checkpoints") / str(last["round"])).is_dir()
    assert not Path("run/summary.json").exists()


def test_lists_are_spelled_alike_in_all_commands():
    """--views=1,7 of data prepare, as of train."""
    section = configs.section("dataset", "modelnet40")
    options = parse_options(section, ["--views=3,5"], "fedcmi data prepare")
    assert options.views == (3, 5)
