import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import fedcmi_jax
from fedcmi_jax.cli import parser
from fedcmi_jax.cli.command import Group
from fedcmi_jax.cli.commands import COMMANDS, What
from fedcmi_jax.cli.lists import LISTS
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.curve import drawn
from fedcmi_jax.experiment.presets import PRESETS
from tests.marks import slow
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


def parse(flags):
    """The configuration that fedcmi train reads from its flags."""
    return parser.parse(["train", *flags]).config


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
        (["--multi-ratio=1"], "did you mean 'multimodal_fraction'"),
        (["--partition.modalities=clean=1"], "did you mean 'modalities'"),
        (["--local.knee=1"], "did you mean 'local.decay_start'"),
        (["--frobnicate=5"], "frobnicate"),
        (["--preset=synthetic"], "preset"),
        (["--method.name=fedavg", "--method.mu=1"], "fedavg"),
        (["-x"], "-x"),
        (["synthetic", "stray"], "stray"),
        (["--rounds=5", "synthetic"], "'synthetic'; takes a preset first"),
        (["--method.name=fedavg", "--method.name"], "method.name: has no value"),
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
        (["--clients=2000"], "error: clients=2000"),
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
        path = "import" if path == "imports" else path  # a flag may, a field may not
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
        assert all(command in shown for command in COMMANDS.commands)
    assert main(["--version"]) == 0
    assert fedcmi_jax.__version__ in capsys.readouterr().out
    assert main(["resume", "--help"]) == 0


def commands(group=COMMANDS, path=()):
    """(path, command or group) of every level."""
    yield path, group
    for name, member in group.commands.items():
        if isinstance(member, Group):
            yield from commands(member, (*path, name))
        else:
            yield (*path, name), member


LEVELS = list(commands())


@pytest.mark.parametrize(("path", "command"), LEVELS)
def test_every_level_has_help(path, command, capsys):
    for flag in ("--help", "-h"):
        assert main([*path, flag]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.startswith(f"usage: {' '.join(['fedcmi', *path])} [-h]")
    if isinstance(command, Group):
        assert all(name in shown for name in command.commands)
        return
    assert command.__doc__.splitlines()[0] in shown
    default, _ = command.settle([]) if path != ("data", "prepare") else (None, [])
    for name, flag in parser.flags_of(default or command).items():
        written = f"--{name.replace('_', '-')}"
        assert flag.positional or re.search(rf"{re.escape(written)}[ ,]", shown), name


@pytest.mark.parametrize("command", [c for _, c in LEVELS if isinstance(c, type)])
def test_every_field_of_a_command_is_documented(command):
    for field in dataclasses.fields(command):
        assert f"  {field.name}: " in command.__doc__


def test_help_has_what_it_once_lacked(capsys):
    for path, flags in {
        ("train",): ("--seeds", "--host-devices", "--coordinator"),
        ("sweep", "clients"): ("--counts", "--participation", "--rounds"),
        ("data", "prepare", "hapt"): ("--manual-dir", "--data-dir"),
        ("resume",): ("RUN", "--process-id"),
    }.items():
        assert main([*path, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in flags), path


@pytest.mark.parametrize(
    ("argv", "never"),
    [
        (["--version"], {"jax", "tyro.extras", "rich"}),
        (["--help"], {"jax", "rich"}),
        (["list", "--help"], {"jax", "rich"}),
        (["bench", "--help"], {"jax", "rich"}),
        (["train", "--help"], {"orbax", "matplotlib", "tensorflow_datasets"}),
        slow(["train", "--rounds=x"], {"orbax", "matplotlib", "tensorflow_datasets"}),
        slow(["list", "methods"], {"orbax", "matplotlib", "tensorflow_datasets"}),
        slow(["sweep", "clients", "--help"], {"orbax", "matplotlib", "sklearn"}),
    ],
)
def test_a_command_imports_what_it_needs(argv, never):
    code = f"""
import sys
from fedcmi_jax.cli.main import main
main({argv})
print("imported", *sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "fedcmi_jax.cli.main" in imported
    assert not never & imported


def test_without_its_hook_the_parser_speaks_for_itself(capsys, monkeypatch):
    """tyro may change its module _errors: then its own message is shown."""
    monkeypatch.delattr("tyro._errors")
    assert main(["train", "--rounds=five"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "five" in captured.err
    assert list(Path.cwd().iterdir()) == []


def test_a_sweep_has_defaults_of_its_own():
    def config(*flags):
        return parser.parse(["sweep", "clients", *flags]).config

    plain, named = config(), config("synthetic", "--partition.name=shards")
    assert (plain.rounds, plain.partition.name, plain.chunk_size) == (5, "iid", 100)
    assert (plain.multimodal_fraction, plain.local.epochs) == (1.0, 1)
    assert (named.multimodal_fraction, named.local.epochs) == (0.5, 5)
    assert (named.rounds, named.partition.name) == (5, "shards")
    assert parser.parse(["sweep", "clients", "--counts=2,1"]).counts == (2, 1)


def test_lists(capsys):
    assert (*LISTS,) == typing.get_args(What)[1:]
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
    assert shown.endswith(f"picture {folder}/curve.svg\n")
    assert "strong alone" in shown
    assert "weak alone" in shown

    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [2, 3]
    assert (folder / "curve.svg").read_text() == drawn(lines)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output():
    arguments = ["train", *TINY_FLAGS, "--output=run"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert Path("run/summary.json").exists()


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM])
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
    argv = ["data", "prepare", "modelnet40", "--views=3,5"]
    assert parser.parse(argv).options.views == (3, 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset.train-samples=2000000000"], "train_samples=2000000000.*GiB"),
        (["--model.width=100000000"], "parameters .*GB.*more than this machine's"),
        (["--output="], "output: is empty"),
        (["--host-devices=10000"], "--host-devices: 10000 is more than"),
        (["--rounds=99999999999"], "rounds: 99999999999 is too large"),
        (["--local.learning-rate=1e-31"], "learning_rate: 1e-31 is below"),
        (["--clip-norm=inf"], "clip_norm: inf is not finite"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_any_work(flags, message, capsys):
    line = fails(["train", "synthetic", "--method.name=fedcmi", *flags], capsys)
    assert re.search(message, line)
    assert not Path("runs").exists()
