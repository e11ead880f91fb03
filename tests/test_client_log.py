"""clients.jsonl: who took part, the same bytes however often a run is killed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli import train as commands
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import one_call
from fedcmi_jax.experiment.client_log import ClientLog
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.types import RoundInfo
from tests.test_callbacks import SPARSE, Broken, Rounds
from tests.test_launch import metrics

LOGGED = SPARSE | {"log_clients": "all"}


@pytest.fixture(scope="module")
def built():
    return build(fc.config.from_dict(LOGGED))


@pytest.fixture
def _one_program(built, monkeypatch):
    """Of runs that differ in their log only."""
    for module in (one_call, commands):
        monkeypatch.setattr(
            module, "build", lambda config, *_, **__: built._replace(config=config)
        )


def infos(cohort, accepted=None):
    cohort = np.asarray(cohort, np.int32)
    accepted = np.ones(cohort.shape, bool) if accepted is None else accepted
    rest = len(RoundInfo._fields) - 2
    return RoundInfo(cohort, accepted, *[None] * rest)


@pytest.mark.usefixtures("_one_program")
def test_it_has_who_took_part(built, tmp_path):
    rounds = Rounds()
    folder = tmp_path / "run"
    fc.train(LOGGED, output=folder, callbacks=[rounds])
    first, *lines = fc.load_run(folder).clients()
    n = built.federation.num_clients
    assert first == {"round": 0, "examples": built.federation.sizes.tolist()}
    assert [x["round"] for x in lines] == [1, 2, 3, 4, 5]
    assert [x["cohort"] for x in lines] == [c.tolist() for _, c in rounds.infos]
    evaluated = {r["round"]: r for r in fc.load_run(folder).records()}
    for line in lines:
        weights = np.asarray(first["examples"])[line["cohort"]]
        mean = np.average(line["loss"], weights=weights)  # all have the same epochs
        if line["round"] in evaluated:
            loss = evaluated[line["round"]]["loss_task"]
            assert mean == pytest.approx(loss, abs=1e-4)
    assert [x["round"] for x in lines if "accuracy" in x] == [3, 5]
    own = np.array(lines[-1]["accuracy"])
    assert own.shape == (n,)
    assert own.mean() == pytest.approx(metrics(folder)[-1]["client_mean"], abs=1e-4)
    assert not {"clients", "accuracy"} & metrics(folder)[-1].keys()


@pytest.mark.usefixtures("_one_program")
@pytest.mark.parametrize("what", ["cohort", "all"])
def test_a_run_that_goes_on_has_the_same_bytes(what, tmp_path):
    values = LOGGED | {"log_clients": what}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fc.train(values, output=whole)
    with pytest.raises(Exception, match="Broken"):
        fc.train(values, output=cut, callbacks=[Broken(3)])
    text = (whole / "clients.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    path = cut / "clients.jsonl"
    assert path.read_text() == "".join(lines[:4])
    # What a killed process wrote after its last checkpoint.
    path.write_text("".join(lines[:5]) + lines[5][:9])
    assert main(["resume", str(cut), "--devices=1"]) == 0
    assert path.read_text() == text
    assert ("accuracy" in text) == (what == "all")


@pytest.mark.usefixtures("_one_program")
def test_it_changes_nothing_else_and_needs_a_folder(tmp_path):
    for what in ("none", "all"):
        fc.train(LOGGED | {"log_clients": what}, output=tmp_path / what)
    assert metrics(tmp_path / "none") == metrics(tmp_path / "all")
    assert not (tmp_path / "none" / "clients.jsonl").exists()
    with pytest.raises(ValueError, match="no such file; train with log_clients"):
        fc.load_run(tmp_path / "none").clients()
    with pytest.raises(ValueError, match="log_clients: is a file in a run's folder"):
        fc.train(LOGGED)


def test_mapped_seeds_are_refused():
    values = LOGGED | {"seeds": 2, "map_seeds": True}
    with pytest.raises(ValueError, match="log_clients: mapped seeds have cohorts"):
        fc.experiment.build(fc.config.from_dict(values))


def test_padding_is_left_out_and_the_rejected_are_named(tmp_path):
    log = ClientLog(tmp_path / "clients.jsonl", np.array([3, 2, 1]))
    assert log.start(0) == ""
    accepted = np.array([[True, False, False], [True, True, True]])
    log.append(range(1, 3), infos([[0, 2, 3], [1, 0, 2]], accepted), [0.5, np.nan, 1])
    lines = [json.loads(x) for x in log.path.read_text().splitlines()]
    assert lines[1:] == [
        {"round": 1, "cohort": [0, 2], "rejected": [2]},
        {"round": 2, "cohort": [1, 0, 2], "accuracy": [0.5, None, 1.0]},
    ]


@pytest.mark.parametrize(
    "content",
    [
        b'{"round":0,"examples":[1]}\n{"round":2,"cohort":[0]}\n',  # 3 is not there
        b'{"round":0,"examples":[1]}\n{"round":1,"coh\n{"round":3,"cohort":[0]}\n',
        b"\xff\xfe\n",
    ],
)
def test_what_is_not_of_the_run_is_moved_aside(content, tmp_path):
    path = tmp_path / "clients.jsonl"
    path.write_bytes(content)
    log = ClientLog(path, np.array([1]))
    assert "is damaged, or lacks round 3; what was there is" in log.start(3)
    assert (tmp_path / "clients.jsonl.damaged-1").read_bytes() == content
    log.append(range(4, 5), infos([[0]]))
    assert log.start(4) == ""  # once is enough
    assert path.read_text().count("\n") == 2


def test_a_hundred_thousand_clients_are_as_large_as_stated(tmp_path):
    n = 100_000
    log = ClientLog(tmp_path / "clients.jsonl", np.full(n, 32))
    log.start(0)
    before = log.path.stat().st_size
    whole = infos([np.arange(n)])
    log.append(range(1, 2), whole)
    assert 0.5e6 < log.path.stat().st_size - before < 0.6e6
    log.losses, before = True, log.path.stat().st_size
    losses = np.linspace(0, 99, n, dtype=np.float32)[None]
    log.append(range(2, 3), whole._replace(client_loss=losses))
    assert log.path.stat().st_size - before < 1.4e6
    log.losses = False
    before = log.path.stat().st_size
    log.append(range(3, 4), infos([[0]]), np.linspace(0, 1, n, dtype=np.float32))
    assert log.path.stat().st_size - before < 7 * n + 100


class Kill(fc.Callback):
    """Kills the process while it holds lines that no checkpoint has."""

    def evaluated(self, record):
        if record["round"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)


KILLED = LOGGED | {"rounds": 12, "checkpoint_every": 4}


@pytest.mark.slow
@pytest.mark.shipped_flags  # as in the process that is killed
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fc.train(KILLED, output=whole)
    program = (
        "import sys, fedcmi_jax as fc\n"
        "from tests.test_client_log import KILLED, Kill\n"
        "fc.train(KILLED, output=sys.argv[1], callbacks=[Kill()])\n"
    )
    child = subprocess.run([sys.executable, "-c", program, str(cut)])
    assert child.returncode == -signal.SIGKILL
    path, text = cut / "clients.jsonl", (whole / "clients.jsonl").read_bytes()
    assert text.startswith(path.read_bytes())
    assert main(["resume", str(cut), "--devices=1"]) == 0
    assert path.read_bytes() == text
    assert metrics(cut) == metrics(whole)
