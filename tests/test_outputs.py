"""Where commands are asked to write: refused before any work, or written."""

import os
import pathlib
import threading

import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import outputs, run_folder

NAMES = {
    "under a file": "file/run",
    "a dangling link": "link",
    "under a dangling link": "link/run",
    "a long name": "a" * 300,
    "a long path": "/".join(["a" * 200] * 30),
    "no UTF-8": "\udcff",
    "a place of the kernel's": "/proc/run",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path


def no_work(*_, **__):
    raise AssertionError("work was begun")


COMMANDS = {
    "train": ["train", "synthetic", "--output={}"],
    "sweep": ["sweep", "clients", "--output={}"],
    "describe": ["data", "describe", "synthetic", "--output={}.png"],
    "bench": ["bench", "--output={}"],
    "predict": ["predict", ".", "--input=file", "--output={}"],
    "export": ["export", ".", "--output={}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_is_refused_before_any_work(
    command, place, monkeypatch, capsys
):
    for name in ("launch.start", "describe.holdings", "use.load_run"):
        monkeypatch.setattr(f"fedcmi_jax.cli.{name}", no_work)
    before = sorted(os.listdir(place))
    for how, name in NAMES.items():
        if how == "a dangling link" and command == "describe":
            (place / "link.png").symlink_to("nowhere")
            before = sorted(os.listdir(place))
        arguments = [text.format(name) for text in COMMANDS[command]]
        assert main(arguments) == 2, how
        error = capsys.readouterr().err
        assert "--output" in error, how
        assert error.count("\n") == 1, how
        assert sorted(os.listdir(place)) == before, how


def test_a_folder_that_may_not_be_written_is_refused(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "mkdtemp", refuse)
    for check in (outputs.check_folder, outputs.check_file):
        with pytest.raises(ValueError, match="--output: new: Permission denied"):
            check("new")


def test_what_can_be_written_is_left_as_it_was(place):
    (place / "full").mkdir()
    (place / "full" / "a").write_text("kept")
    for check in (outputs.check_folder, outputs.check_file):
        check("new")
    outputs.check_folder("a/b/c")
    outputs.check_folder("full")
    outputs.check_file("full/a")
    assert sorted(os.listdir(place)) == ["file", "full", "link"]
    assert (place / "full" / "a").read_text() == "kept"
    assert os.listdir(place / "full") == ["a"]


def test_runs_that_start_together_have_a_folder_each(tmp_path):
    barrier, found = threading.Barrier(8), []

    def start():
        barrier.wait()
        found.append(run_folder.claim_folder(tmp_path / "runs" / "one"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {"one", *(f"one-{i}" for i in range(2, 9))}
    assert {path.name for path in found} == names
    assert set(os.listdir(tmp_path / "runs")) == names


def test_three_runs_of_one_second(tmp_path, monkeypatch, capsys):
    """They are named alike, for none has its folder yet when the last is named."""
    monkeypatch.chdir(tmp_path)
    same = pathlib.Path("runs") / "named-s0"
    monkeypatch.setattr("fedcmi_jax.cli.train.default_folder", lambda *_: same)
    monkeypatch.setattr("fedcmi_jax.cli.train.check_free", lambda _: None)
    monkeypatch.setattr("fedcmi_jax.cli.launch.start", lambda *_, **__: None)
    monkeypatch.setattr(
        "fedcmi_jax.cli.train._prepared", lambda *_, **__: lambda *_: "done"
    )
    for _ in range(3):
        assert main(["train", "synthetic"]) == 0
    assert sorted(os.listdir("runs")) == ["named-s0", "named-s0-2", "named-s0-3"]
    assert all((p / "config.json").is_file() for p in pathlib.Path("runs").iterdir())
