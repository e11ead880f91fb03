import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import (
    checkpoint,
    files,
    metrics_log,
    resume,
    run_folder,
    sealed,
    training,
)
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.testing import problem as problems
from tests.marks import slow
from tests.test_config import TINY

# Resumed runs are to be equal as they are shipped.
pytestmark = pytest.mark.shipped_flags

# Rounds, evaluations, calls and checkpoints that do not divide each other.
SCHEDULE = {
    "rounds": 8,
    "eval_every": 3,
    "rounds_per_call": 2,
    "checkpoint_every": 2,
    "local": {"epochs": 1, "rate_scale": 1.0},
}


@functools.cache
def experiment(method="scaffold"):
    """One for all tests: they share its compiled programs.

    SCAFFOLD keeps something of every client and on the server, and compiles fast.
    """
    values = TINY | SCHEDULE | {"method": {"name": method}}
    return build(configs.from_dict(values))


def poisoned(*clients, method="fedavg", **values):
    """An experiment in which these clients' inputs are not numbers."""
    values = TINY | SCHEDULE | {"method": {"name": method}} | values
    built = build(configs.from_dict(values))
    federation = built.federation
    for client in clients:
        federation = problems.poison(federation, client)
    return built._replace(federation=federation)


def start(experiment, folder):
    run_folder.make_folder(folder)
    training.write_config(folder, experiment.config)
    return folder


def metrics(folder):
    """Metric lines without what a clock says."""
    lines = metrics_log.MetricsLog(folder / training.METRICS).read()
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def newest(folder, built):
    like = jax.eval_shape(built.algorithm.init, built.key, built.federation)
    return checkpoint.restore(folder / training.CHECKPOINTS, like)


def assert_same_run(folder, reference, built):
    assert metrics(folder) == metrics(reference)
    ours, theirs = newest(folder, built), newest(reference, built)
    assert ours.round == theirs.round == built.config.rounds
    problems.assert_equal(ours.state, theirs.state)
    assert (folder / training.SUMMARY).exists()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = start(experiment(), tmp_path_factory.mktemp("runs") / "reference")
    training.train(experiment(), folder)
    return folder


class At(fc.Callback):
    """Does something when a round has been evaluated, and keeps what it hears."""

    def __init__(self, round=0, do=lambda: None):
        self.round, self.do = round, do
        self.records, self.notes = [], []

    def evaluated(self, record):
        self.records.append(record)
        if record["round"] == self.round:
            self.do()

    def note(self, text):
        self.notes.append(text)


def test_one_trace_and_the_lines_of_a_run(tmp_path):
    built = build(experiment("fedavg").config)
    observer = At()
    folder = start(built, tmp_path / "run")
    summary = training.train(built, folder, [observer])
    assert built.algorithm.run._cache_size() == 1
    assert [r["round"] for r in observer.records] == [3, 6, 8]
    assert int(summary.state.round) == 8
    assert not summary.fixed_partition
    assert [line["round"] for line in metrics(folder)] == [3, 6, 8]
    assert checkpoint.rounds(folder / training.CHECKPOINTS)[-1] == 8
    for line in metrics(folder):
        assert line["cohort"] == 2
        assert line["learning_rate"] == pytest.approx(0.02)
        assert "rejected" not in line


@pytest.mark.slow
def test_rounds_per_call_changes_nothing(reference, tmp_path):
    values = configs.to_dict(experiment().config) | {"rounds_per_call": 3}
    built = build(configs.from_dict(values))
    folder = start(built, tmp_path / "run")
    training.train(built, folder)
    assert metrics(folder) == metrics(reference)
    problems.assert_equal(newest(folder, built).state, newest(reference, built).state)


def test_metrics_are_those_of_the_state(reference):
    built = experiment()
    state = newest(reference, built).state
    measured = measure(built, state)
    last = metrics(reference)[-1]
    assert {name: last[name] for name in measured} == json.loads(json.dumps(measured))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(number, reference, tmp_path):
    folder = start(experiment(), tmp_path / "run")
    observer = At(3, lambda: signal.raise_signal(number))
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(training.Interrupted) as stopped:
        training.train(experiment(), folder, [observer])
    assert (stopped.value.signal_number, stopped.value.round) == (number, 3)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert newest(folder, experiment()).round == 3
    assert not (folder / training.SUMMARY).exists()
    training.train(experiment(), folder)
    assert_same_run(folder, reference, experiment())
    assert experiment().algorithm.run._cache_size() == 1, "restored states compile"


@pytest.mark.slow
def test_fedcmi_interrupted_and_resumed(tmp_path):
    built = experiment("fedcmi")
    whole, cut = (start(built, tmp_path / name) for name in ("whole", "cut"))
    training.train(built, whole)
    with pytest.raises(training.Interrupted):
        training.train(built, cut, [At(3, lambda: signal.raise_signal(2))])
    assert newest(cut, built).round == 3
    kill(cut, "checkpoint", 2, "after")
    training.train(built, cut)
    assert_same_run(cut, whole, built)


# Ends the process, as SIGKILL does, at the n-th call of a function.
KILLED = """
import os, pathlib, signal, sys
from fedcmi_jax.cli import main as cli
from fedcmi_jax.experiment import checkpoint, metrics_log, training

where, calls, when, folder = sys.argv[1:]
owner, name = {
    "metric line": (metrics_log.MetricsLog, "append"),
    "checkpoint": (checkpoint, "save"),
    "rename": (os, "rename"),
    "summary": (training, "_finish"),
}[where]
inner, count = getattr(owner, name), 0


def deadly(*args, **options):
    global count
    count += 1
    if count == int(calls) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = inner(*args, **options)
    if count == int(calls):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(owner, name, deadly)
sys.exit(cli.main(["resume", folder, "--devices=1"]))
"""


def kill(folder, where, calls, when):
    """Resumes in a process that dies; its programs are those of this process.

    JAX finds compiled programs again where as many devices are there.
    """
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(len(jax.devices())),
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(calls), when, str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize(
    ("where", "calls", "when"),
    [
        slow("metric line", 1, "after"),  # no checkpoint but that of round 2
        slow("checkpoint", 1, "before"),  # none at all
        slow("checkpoint", 2, "after"),
        slow("metric line", 2, "after"),
        ("checkpoint", 4, "before"),  # a line of the last round, no checkpoint of it
        slow("summary", 1, "before"),
    ],
)
def test_killed_and_resumed(where, calls, when, reference, tmp_path, capsys):
    folder = start(experiment(), tmp_path / "run")
    kill(folder, where, calls, when)
    assert not (folder / training.SUMMARY).exists()
    training.train(experiment(), folder)
    assert_same_run(folder, reference, experiment())


def test_resume_command_takes_the_runs_own_configuration(reference, tmp_path, capsys):
    folder = start(experiment(), tmp_path / "run")
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert_same_run(folder, reference, experiment())


def test_a_corrupt_checkpoint_is_passed_over(reference, tmp_path, capsys):
    folder = start(experiment(), tmp_path / "run")
    with pytest.raises(training.Interrupted):
        training.train(experiment(), folder, [At(6, lambda: signal.raise_signal(2))])
    damaged = folder / training.CHECKPOINTS / "6"
    for file in (p for p in damaged.rglob("*") if p.is_file()):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    observer = At()
    training.train(experiment(), folder, [observer])
    assert any("6" in note for note in observer.notes)
    assert_same_run(folder, reference, experiment())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after round 6, with lines of rounds 3 and 6."""
    folder = start(experiment(), tmp_path_factory.mktemp("runs") / "stopped")
    with pytest.raises(training.Interrupted):
        training.train(experiment(), folder, [At(6, lambda: signal.raise_signal(2))])
    return folder


FOREIGN = b'{"round": 3, "acc": 0.5}\n{"round": 6, "acc": 0.5}\n'
DAMAGES = {
    "emptied": lambda text: b"",
    "halved": lambda text: text[: len(text) // 2],
    "foreign": lambda text: FOREIGN,
    "no log": lambda text: b"a shopping list\nof two lines\n",
    "first line missing": lambda text: text.split(b"\n", 1)[1],
    "last line missing": lambda text: text.split(b"\n", 1)[0] + b"\n",
    "no final newline": lambda text: text[:-1],
    "missing": lambda text: None,
    "an earlier round behind": lambda text: text + b'{"round": 2}\n',
}


def damaged(folder, how):
    """Damages a run's log; its content then."""
    path = folder / training.METRICS
    text = DAMAGES[how](path.read_bytes())
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    return text


def resumed(folder, monkeypatch):
    """Exit code of ``fedcmi resume``, with programs that are compiled already."""
    monkeypatch.setattr("fedcmi_jax.cli.train.build", lambda *_, **__: experiment())
    return main(["resume", str(folder), "--devices=1"])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_log_is_rebuilt_from_the_checkpoint(
    how, stopped, reference, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    text = damaged(folder, how)
    assert resumed(folder, monkeypatch) == 0
    assert_same_run(folder, reference, experiment())
    (note,) = [x for x in capsys.readouterr().err.splitlines() if "rebuilt" in x]
    aside = folder / f"{training.METRICS}.damaged-1"
    assert (aside.name in note) == bool(text) == aside.exists()
    if text:
        assert aside.read_bytes() == text


@pytest.mark.parametrize("how", ["halved", "missing"])
def test_the_log_of_a_finished_run_is_rebuilt(
    how, reference, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(reference, tmp_path / "run")
    damaged(folder, how)
    assert resumed(folder, monkeypatch) == 0
    assert "rebuilt" in capsys.readouterr().err
    assert (folder / training.METRICS).read_bytes() == (
        reference / training.METRICS
    ).read_bytes()


def spoil(folder, how):
    """Makes the newest checkpoint of a finished run useless."""
    newest = folder / training.CHECKPOINTS / "8"
    if how == "damaged":
        (newest / "metadata.json").write_text("{}")
    else:
        shutil.rmtree(folder / training.CHECKPOINTS if how == "a file" else newest)
    if how == "a file":
        (folder / training.CHECKPOINTS).write_text("")


SPOILT = ["damaged", "removed", "a file"]


@pytest.mark.parametrize("checkpoints", SPOILT)
@pytest.mark.parametrize("how", sorted(DAMAGES))
def test_a_finished_runs_log_that_no_checkpoint_holds_is_refused(
    how, checkpoints, reference, tmp_path, capsys
):
    folder = shutil.copytree(reference, tmp_path / "run")
    spoil(folder, checkpoints)
    damaged(folder, how)
    before = contents(folder)
    assert main(["resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / training.METRICS}: " in line
    assert "no usable checkpoint of round 8 holds a copy; put the file back" in line
    assert contents(folder) == before


@pytest.mark.parametrize("checkpoints", SPOILT)
def test_a_finished_run_with_a_whole_log_needs_no_checkpoint(
    checkpoints, reference, tmp_path, capsys
):
    folder = shutil.copytree(reference, tmp_path / "run")
    spoil(folder, checkpoints)
    before = contents(folder)
    assert main(["resume", str(folder)]) == 0
    assert "finished: 8 rounds" in capsys.readouterr().out
    assert contents(folder) == before


def test_a_damaged_log_never_takes_anothers_place(
    stopped, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / f"{training.METRICS}.damaged-1").write_text("mine")
    text = damaged(folder, "foreign")
    assert resumed(folder, monkeypatch) == 0
    assert (folder / f"{training.METRICS}.damaged-1").read_text() == "mine"
    assert (folder / f"{training.METRICS}.damaged-2").read_bytes() == text


def test_a_log_that_no_checkpoint_explains_is_moved_aside(
    stopped, reference, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(folder / training.CHECKPOINTS)
    text = (folder / training.METRICS).read_bytes()
    assert resumed(folder, monkeypatch) == 0
    assert "the run starts over" in capsys.readouterr().err
    assert (folder / f"{training.METRICS}.damaged-1").read_bytes() == text
    assert_same_run(folder, reference, experiment())


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        (b'{"round": 3, "acc": 0.5}\n{"rou', False),  # killed before a checkpoint
        (b'{"round": 1, "rejected": [0]}\n', False),
        (b'{"round": 2, "acc": 0.5}\n', True),  # round 2 is not evaluated
        (b'{"round": 6, "acc": 0.5}\n', True),
    ],
)
def test_only_what_a_killed_process_leaves_is_dropped(text, is_kept, tmp_path):
    config = configs.from_dict(TINY | SCHEDULE | {"checkpoint_every": 5})
    log = metrics_log.MetricsLog(tmp_path / training.METRICS)
    log.path.write_bytes(text)
    note = resume.start_log(log, config)
    assert log.read() == []
    aside = tmp_path / f"{training.METRICS}.damaged-1"
    assert bool(note) == aside.exists() == is_kept
    assert not is_kept or aside.read_bytes() == text


def contents(folder):
    return {
        p: p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if p.name != ".lock"
    }


def test_a_run_of_version_0_1_is_refused_with_the_remedy(
    stopped, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    for path in (folder / training.CHECKPOINTS).glob("*/metadata.json"):
        content = files.read_json(path) | {"format": 1}
        del content["checksum"], content["version"]
        files.write_json(path, content | {"checksum": sealed._checksum(content)})
    before = contents(folder)
    assert resumed(folder, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finish the run with fedcmi_jax 0.1.0, which wrote it" in line
    assert contents(folder) == before


def test_the_config_of_another_version_is_refused_with_the_remedy(
    stopped, tmp_path, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    values = files.read_json(folder / training.CONFIG)
    values["config"]["pace"] = 0.5  # a field that this version does not have
    files.write_json(folder / training.CONFIG, values)
    assert main(["resume", str(folder)]) == 2
    assert "finish it with" not in capsys.readouterr().err
    values["versions"]["fedcmi_jax"] = "0.0.7"
    files.write_json(folder / training.CONFIG, values)
    before = contents(folder)
    assert main(["resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pace: unknown field" in line
    assert "fedcmi_jax 0.0.7 wrote this run: finish it with that version" in line
    assert contents(folder) == before


@pytest.mark.parametrize("name", [training.CHECKPOINTS, training.METRICS])
def test_a_folder_that_cannot_be_used_is_refused_untouched(
    name, stopped, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    if name == training.METRICS:
        (folder / name).unlink()
        (folder / name).mkdir()
    else:
        shutil.rmtree(folder / name)
        (folder / name).write_text("a file")
    before = contents(folder)
    assert resumed(folder, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / name) in line
    assert "move it away" in line
    assert contents(folder) == before


def test_checkpoints_of_another_configuration_are_refused(tmp_path, capsys):
    built = experiment("fedavg")
    folder = start(built, tmp_path / "run")
    with pytest.raises(training.Interrupted):
        training.train(built, folder, [At(3, lambda: signal.raise_signal(2))])
    values = configs.to_dict(built.config)
    values["encoder"]["features"] = 5
    training.write_config(folder, configs.from_dict(values))
    before = sorted(folder.rglob("*"))
    assert main(["resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedcmi: error: ")
    assert sorted(p for p in folder.rglob("*") if p.name != ".lock") == before


def edited(folder, **values):
    """The run's config.json says something else now."""
    config = training.read_config(folder)
    training.write_config(folder, dataclasses.replace(config, **values))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"seed": 1}, "seed is 1, but the run was trained with 0"),
        ({"rounds": 7}, "rounds is 7.*it may only grow"),
        ({"clip_norm": 1.0}, "clip_norm is 1.0"),
        (
            {"local": configs.LocalConfig(epochs=1, rate_scale=1.0, weight_decay=0)},
            r"local.weight_decay is 0, but",
        ),
    ],
)
def test_what_fixes_results_may_not_change(values, field, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    edited(folder, **values)
    before = contents(folder)
    with pytest.raises(ValueError, match=field):
        training.train(build(training.read_config(folder)), folder)
    assert contents(folder) == before


def test_a_relative_path_of_data_is_the_same_after_a_resume(tmp_path, monkeypatch):
    """Config and checkpoints name the file in full, wherever the run was started."""
    monkeypatch.chdir(tmp_path)
    saved = []
    monkeypatch.setattr(
        checkpoint, "save", lambda *_, config, **__: saved.append(config)
    )
    values = {"dataset": {"name": "npz", "path": "own.npz"}}
    config = configs.from_dict(TINY | SCHEDULE | values)
    training.write_config(tmp_path, config)
    log = metrics_log.MetricsLog(tmp_path / training.METRICS)
    training._save(experiment()._replace(config=config), tmp_path, None, log)
    monkeypatch.chdir("/")
    read = training.read_config(tmp_path)
    resume.check_unchanged(tmp_path, read, *saved)
    assert read.dataset.path == str(tmp_path / "own.npz")


def test_clients_as_many_as_there_are_is_no_change(tmp_path):
    trained = configs.to_dict(configs.from_dict(TINY))
    asked = configs.from_dict(TINY | {"clients": 0})
    resume.check_unchanged(tmp_path, asked, trained)
    with pytest.raises(ValueError, match="clients is 3, but the run was trained with"):
        resume.check_unchanged(
            tmp_path, configs.from_dict(TINY | {"clients": 3}), trained
        )


@pytest.mark.parametrize("name", ["final", "best"])
def test_a_summary_that_is_not_the_logs_is_refused(name, reference, tmp_path, capsys):
    folder = shutil.copytree(reference, tmp_path / "run")
    summary = files.read_json(folder / training.SUMMARY)
    line = summary["final"] | {"acc": 0.987}
    files.write_json(folder / training.SUMMARY, summary | {name: line})
    assert main(["resume", str(folder)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{folder / training.SUMMARY}: {name!r} is no line of " in error


def test_a_finished_run_whose_configuration_changed_is_refused(
    reference, tmp_path, capsys
):
    folder = shutil.copytree(reference, tmp_path / "run")
    edited(folder, seed=5)
    before = contents(folder)
    assert main(["resume", str(folder)]) == 2
    assert "seed is 5, but the run was trained with 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seed is 5"):
        fc.load_run(folder).params()
    assert contents(folder) == before


def test_rounds_may_grow(reference, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    edited(folder, rounds=11)
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert metrics(folder)[-1]["round"] == 11
    assert metrics(folder)[:2] == metrics(reference)[:2]
    edited(folder, rounds=12)  # of a finished run, too
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert metrics(folder)[-1]["round"] == 12


@pytest.mark.slow
def test_rejected_clients_are_named(tmp_path):
    built = poisoned(1, clients_per_round=4)
    folder = start(built, tmp_path / "run")
    training.train(built, folder)
    lines = metrics(folder)
    assert [line["round"] for line in lines] == list(range(1, 9))
    assert all(line["rejected"] == [1] for line in lines)
    assert [line["round"] for line in lines if "acc" in line] == [3, 6, 8]
    state = newest(folder, built).state
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_round_that_rejects_all_stops_the_run(tmp_path, monkeypatch, capsys):
    built = poisoned(0, 1, 2, 3, method="fedcmi")
    monkeypatch.setattr("fedcmi_jax.cli.train.build", lambda *_, **__: built)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--output=run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("fedcmi: error: round 3", "fedcmi", "--local.learning-rate"):
        assert part in line
    assert "--method.min-temperature" in line
    assert "--clip-norm" in line
    folder = tmp_path / "run"
    assert checkpoint.rounds(folder / training.CHECKPOINTS) == [2]  # as at the start
    lines = metrics(folder)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert all(len(line["rejected"]) == 2 for line in lines)


def test_the_checkpoint_before_a_failed_round_stays(tmp_path):
    good = experiment("fedavg")
    folder = start(good, tmp_path / "run")
    with pytest.raises(training.Interrupted):
        training.train(good, folder, [At(3, lambda: signal.raise_signal(2))])
    kept = newest(folder, good)
    with pytest.raises(training.DivergedError, match="round 6.*3 rounds in a row"):
        training.train(poisoned(0, 1, 2, 3), folder)
    still = newest(folder, good).state
    problems.assert_equal(still._replace(round=kept.state.round), kept.state)


def test_a_round_whose_only_client_is_rejected_is_skipped(tmp_path):
    built = poisoned(1, clients_per_round=1)
    folder = start(built, tmp_path / "run")
    done = training.train(built, folder)
    assert int(done.state.round) == built.config.rounds
    skipped = [line["round"] for line in metrics(folder) if "rejected" in line]
    assert 0 < len(skipped) < built.config.rounds
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(done.state.params))


@pytest.mark.slow
def test_a_model_that_overflows_is_never_saved(tmp_path):
    # The clients' updates are finite, the server's step from them is not.
    server = {"optimizer": "avgm", "learning_rate": 3e38}
    values = TINY | SCHEDULE | {"method": {"name": "fedavg"}, "server": server}
    values |= {"local": {"epochs": 1, "learning_rate": 1e3}, "rounds_per_call": 1}
    built = build(configs.from_dict(values))
    folder = start(built, tmp_path / "run")
    with pytest.raises(
        training.DivergedError, match="round 1.*the model is not finite"
    ):
        training.train(built, folder)
    assert checkpoint.rounds(folder / training.CHECKPOINTS) == []


@pytest.mark.parametrize(
    ("method", "rate"), [("fedavg", "0.02"), slow("scaffold", "0.06 = 0.02 x 3")]
)
def test_the_remedy_names_the_rate_that_was_used(method, rate, tmp_path):
    local = {"epochs": 1} | ({"rate_scale": 3.0} if method == "scaffold" else {})
    built = poisoned(0, 1, 2, 3, method=method, local=local)
    folder = start(built, tmp_path / "run")
    with pytest.raises(training.DivergedError) as error:
        training.train(built, folder)
    assert f"lower --local.learning-rate (now {rate})" in str(error.value)


def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import signal; from fedcmi_jax.experiment import training\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # a job's parent may ignore it
        "with training.stop_requests(print):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('first')\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('second')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGINT
    assert "second" not in ended.stdout


def test_a_run_in_use_is_refused(tmp_path, capsys):
    folder = start(experiment(), tmp_path / "run")
    with run_folder.lock(folder):
        assert main(["resume", str(folder)]) == 2
    assert "in use" in capsys.readouterr().err


def test_library_loop_is_the_command_lines(reference):
    built = experiment()
    state = jax.jit(built.algorithm.init)(built.key, built.federation)
    for _ in range(built.config.rounds):
        state, _ = built.algorithm.run(state, built.federation, np.int32(1))
    problems.assert_equal(state, newest(reference, built).state)
    assert fc.FederationState is type(state)


def scripted(monkeypatch, values, **options):
    """An experiment whose validation accuracies at rounds 3, 6, 8 are these."""
    built = experiment("fedavg")

    def evaluate(experiment, state):
        return measure(experiment, state) | {"val_acc": values[int(state.round)]}

    monkeypatch.setattr("fedcmi_jax.experiment.loop.measure", evaluate)
    config = dataclasses.replace(built.config, validation_fraction=0.1, **options)
    return built._replace(config=config)


def result(folder):
    """A run's summary without what a clock says."""
    found = json.loads((folder / training.SUMMARY).read_text())
    del found["seconds"], found["final"]["seconds"], found["best"]["seconds"]
    return found


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({3: 0.5, 6: 0.75, 8: 0.5}, 6),
        ({3: 0.75, 6: 0.75, 8: 0.5}, 3),
        ({3: 0.0, 6: 0.5, 8: 0.75}, 8),
        ({3: float("nan"), 6: 0.0, 8: 0.0}, 6),
    ],
)
def test_the_best_round_is_kept(values, best, tmp_path, monkeypatch):
    built = scripted(monkeypatch, values)
    folder = start(built, tmp_path / "run")
    summary = training.train(built, folder)
    found = result(folder)
    assert found["best"]["round"] == best
    assert found["best"]["val_acc"] == values[best]
    assert (found["chosen_on"], found["stopped_early"]) == ("validation", None)
    assert found["final"]["round"] == summary.final["round"] == 8
    assert checkpoint.rounds(folder / training.BEST) == [best]
    restored = training.load_best(folder, built)
    assert int(restored.state.round) == restored.round == best
    line = next(x for x in metrics(folder) if x["round"] == best)
    assert measure(built, restored.state)["acc"] == line["acc"]


def test_without_validation_there_is_no_best(reference):
    found = json.loads((reference / training.SUMMARY).read_text())
    assert found["best"] is found["chosen_on"] is None
    assert not (reference / training.BEST).exists()
    with pytest.raises(ValueError, match="no best round.*--validation-frac") as error:
        training.load_best(reference)
    assert "\n" not in str(error.value)


class KilledError(BaseException):
    """The end of a process."""


def killed_at(save, when, built, folder, monkeypatch):
    """Trains until just before or after that call of ``checkpoint.save``."""
    calls = iter(range(1, 99))
    inner = checkpoint.save

    def deadly(*args, **options):
        is_last = next(calls) == save
        if is_last and when == "before":
            raise KilledError
        inner(*args, **options)
        if is_last:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", deadly)
        with pytest.raises(KilledError):
            training.train(built, folder)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("values", "options", "saves"),
    [
        # Checkpoints 2, 4, 6, 8, and the best rounds 3 and 8.
        slow({3: 0.5, 6: 0.5, 8: 0.75}, {}, 6),
        # Checkpoints 2, 4, 6, and the best round 3.
        ({3: 0.5, 6: 0.5}, {"early_stop_rounds": 3}, 4),
    ],
)
def test_best_and_stop_survive_a_kill(
    values, options, saves, when, tmp_path, monkeypatch
):
    built = scripted(monkeypatch, values, **options)
    whole = start(built, tmp_path / "whole")
    training.train(built, whole)
    for save in range(1, saves + 1):
        folder = start(built, tmp_path / f"killed-{save}")
        killed_at(save, when, built, folder, monkeypatch)
        assert not (folder / training.SUMMARY).exists()
        training.train(built, folder)
        assert metrics(folder) == metrics(whole)
        assert result(folder) == result(whole)
        ours, theirs = (training.load_best(f, built) for f in (folder, whole))
        assert ours.round == theirs.round
        problems.assert_equal(ours.state, theirs.state)
        problems.assert_equal(newest(folder, built).state, newest(whole, built).state)


@pytest.mark.parametrize(
    ("values", "patience", "end"),
    [
        ({3: 0.5, 6: 0.5, 8: 0.9}, 3, 6),
        ({3: 0.5, 6: 0.5, 8: 0.9}, 4, None),  # 6 - 3 < 4, then there is a better one
        ({3: 0.5, 6: 0.6, 8: 0.1}, 3, None),
        ({3: 0.5, 6: 0.6, 8: 0.1}, 2, None),  # at the last round nothing is early
        ({3: 0.5, 6: 0.4}, 1, 6),
    ],
)
def test_early_stopping(values, patience, end, tmp_path, monkeypatch, capsys):
    built = scripted(monkeypatch, values, early_stop_rounds=patience)
    folder = start(built, tmp_path / "run")
    summary = training.train(built, folder)
    found = result(folder)
    assert found["stopped_early"] == summary.stopped_early == end
    assert found["rounds"] == found["final"]["round"] == (end or 8)
    assert int(newest(folder, built).state.round) == (end or 8)
    assert main(["resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"finished: {end or 8} rounds" in said
    assert ("stopped early" in said) == bool(end)


def test_a_lost_best_checkpoint_is_noted(tmp_path, monkeypatch):
    built = scripted(monkeypatch, {3: 0.5, 6: 0.4, 8: 0.75})
    folder = start(built, tmp_path / "run")
    with pytest.raises(training.Interrupted):
        training.train(built, folder, [At(6, lambda: signal.raise_signal(2))])
    shutil.rmtree(folder / training.BEST / "3" / "state")
    with pytest.raises(ValueError, match="no usable checkpoint.*best"):
        training.load_best(folder, built)
    observer = At()
    training.train(built, folder, [observer])
    assert any("has lost round 3, the best so far" in n for n in observer.notes)
    assert training.load_best(folder, built).round == 8


@pytest.mark.slow
def test_the_best_round_is_chosen_on_real_validation_samples(tmp_path):
    values = TINY | SCHEDULE | {"method": {"name": "fedavg"}, "local": {"epochs": 3}}
    values |= {"validation_fraction": 0.4, "rounds_per_call": 3}
    built = build(configs.from_dict(values))
    folder = start(built, tmp_path / "run")
    training.train(built, folder)
    best = max(metrics(folder), key=lambda line: line["val_acc"])
    restored = training.load_best(folder)
    assert restored.round == best["round"]
    assert measure(built, restored.state)["val_acc"] == best["val_acc"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stop_rounds": 3}, "early_stop_rounds: 3 needs a validation split"),
        ({"early_stop_rounds": 0, "validation_fraction": 0.1}, "early_stop_rounds: 0"),
    ],
)
def test_early_stopping_needs_validation(values, message):
    with pytest.raises(ValueError, match=message) as error:
        configs.check_config(configs.from_dict(TINY | values))
    assert "\n" not in str(error.value)
