"""Metrics in TensorBoard's and Weights & Biases' own files, once per round."""

import importlib
import os
import struct
import sys

import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import loggers
from fedcmi_jax.experiment.callbacks import Begun, CallbackError, Callbacks
from fedcmi_jax.experiment.files import read_json

RECORDS = [{"round": r, "acc": r / 8, "per_class": [0.5, 0.5]} for r in (2, 4, 6)]


def needs(package):
    """The package; .ci/run says in FEDCMI_REQUIRE_EXTRAS where it must be there."""
    if package in os.environ.get("FEDCMI_REQUIRE_EXTRAS", "").split(","):
        return importlib.import_module(package)
    return pytest.importorskip(package)


def follow(name, folder, records, round=0, how="finished"):
    """A run, or a part of one, as its loggers see it."""
    logger = loggers.loggers([name])[0]
    told = Callbacks([logger])
    with told.run(Begun(fc.config.Config(), folder, round)):
        for record in records:
            told.evaluated(record)
        told.check("")
    told.finished(stopped=how == "stopped")


def shown(folder):
    """What TensorBoard shows: (name, step, value) of event files in their order.

    It drops the steps from where a later session starts.
    """
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # TFRecord: length, its checksum, data, their checksum
            (size,) = struct.unpack("<Q", content[:8])
            event = events.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == event.session_log.START:
                found = [x for x in found if x[1] < event.step]
            for value in event.summary.value:
                found.append((value.tag, event.step, value.simple_value))
    return found


def test_tensorboard_has_every_round_once(tmp_path, monkeypatch):
    needs("tensorboardX")
    expected = [("acc", r["round"], r["acc"]) for r in RECORDS]
    follow("tensorboard", tmp_path / "whole", RECORDS)
    assert shown(tmp_path / "whole/tensorboard") == expected
    # Killed after round 4, whose checkpoint was not written yet.
    now = importlib.import_module("time").time()
    follow("tensorboard", tmp_path / "cut", RECORDS[:2])
    monkeypatch.setattr("time.time", lambda: now + 10)  # file names are in seconds
    follow("tensorboard", tmp_path / "cut", RECORDS[1:], round=2)
    assert len(list((tmp_path / "cut/tensorboard").iterdir())) == 2
    assert shown(tmp_path / "cut/tensorboard") == expected


@pytest.fixture
def wandb(monkeypatch):
    """Offline, and without a word of it to the service."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return needs("wandb")


@pytest.mark.slow
def test_wandb_writes_offline_and_keeps_its_id(wandb, tmp_path):
    follow("wandb", tmp_path, RECORDS[:2])
    first = read_json(tmp_path / loggers.WANDB_ID)["id"]
    follow("wandb", tmp_path, RECORDS[1:], round=2)
    assert read_json(tmp_path / loggers.WANDB_ID)["id"] == first
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))
    assert files
    assert any(b"acc" in file.read_bytes() for file in files)


class Fake:
    """Stands in for wandb: keeps what it is told."""

    def __init__(self, logged_in):
        self.logged_in, self.options, self.lines, self.code = logged_in, {}, [], None

    def login(self, prompt):
        assert not prompt
        return self.logged_in

    def init(self, **options):
        self.options = options
        return self

    def log(self, numbers, step):
        self.lines.append((step, numbers))

    def finish(self, exit_code):
        self.code = exit_code


@pytest.mark.parametrize(
    ("logged_in", "mode", "resume"), [(True, None, "allow"), (False, "offline", None)]
)
def test_wandb_is_online_for_who_is_logged_in(
    logged_in, mode, resume, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = Fake(logged_in)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    follow("wandb", tmp_path, RECORDS)
    assert fake.lines == [(r["round"], {"acc": r["acc"]}) for r in RECORDS]
    assert (fake.options["mode"], fake.options["resume"]) == (mode, resume)
    assert fake.options["config"]["rounds"] == 100
    assert fake.code == 0


def test_a_missing_package_is_one_line_and_nothing_written(monkeypatch, capsys):
    for name, cls in loggers.LOGGERS.items():
        monkeypatch.setitem(sys.modules, cls.package, None)
        assert main(["train", f"--log={name}", "--output=no/such/folder"]) == 2
        error = capsys.readouterr().err
        assert f"pip install 'fedcmi_jax[{name}]'" in error
        assert error.count("\n") == 1
    assert main(["train", "--log=paper"]) == 2
    assert "choose from ['tensorboard', 'wandb']" in capsys.readouterr().err
    assert not os.path.lexists("no")


def test_a_logger_needs_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Fake(logged_in=False))
    with pytest.raises(CallbackError, match="give output"):
        follow("wandb", None, RECORDS)
