"""Deployments through Flower: in one process, simulated by it, and as real processes.

Needs the extra ``flower``; .ci/run has an environment with it.
"""

import importlib
import io
import json
import os
import pickle
import types
import zipfile

import jax
import numpy as np
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.data.raw.npy import read_npz
from fedcmi_jax.deploy import flower_client, flower_members
from fedcmi_jax.deploy import plan as plans
from fedcmi_jax.deploy.flower_server import Options, serve
from fedcmi_jax.deploy.session import Session
from fedcmi_jax.experiment import run_folder
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.pretrained import init_from
from tests.flower_processes import Localhost, until
from tests.test_deploy import planned, same, simulated, tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its dependencies'
]


def needs_flower():
    """Flower; .ci/run says in FEDCMI_REQUIRE_EXTRAS where it must be there."""
    if "flwr" in os.environ.get("FEDCMI_REQUIRE_EXTRAS", "").split(","):
        return importlib.import_module("flwr")
    return pytest.importorskip("flwr")


@pytest.fixture
def identity(monkeypatch):
    """The task that a process of Flower is, without such a process."""
    needs_flower()
    module = importlib.import_module("flwr.supercore.task_identity")
    server = types.SimpleNamespace(task_id=1, run_id=1, node_id=1)
    message = importlib.import_module("flwr.app.message.message")
    monkeypatch.setattr(message, "TaskIdentity", server)
    return module


class InProcess:
    """Stands in for Flower's Grid: every node is the ClientApp, called directly.

    Attributes:
      contexts: Node -> its context.
      online: Nodes that are there.
      tampers: Number of the train call -> ``(node, reply) -> reply`` or None: lost.
      joins: ``(node, reply) -> reply`` to join messages, or None: lost.
    """

    def __init__(self, plan_file, configs):
        from flwr.app import Context, RecordDict

        self.app = flower_client.client_app(plan_file)
        self.contexts = {
            node: Context(7, node, config, RecordDict(), {})
            for node, config in configs.items()
        }
        self.online, self.tampers, self.trained = set(configs), {}, 0
        self.joins, self.waiting = lambda node, reply: reply, {}

    def get_node_ids(self):
        return sorted(self.online)

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def pull_messages(self, ids):
        return [self.waiting.pop(id) for id in ids if id in self.waiting]

    def push_messages(self, messages):
        from flwr.app import Error, Message

        messages = list(messages)
        trains = any(m.metadata.message_type == "train" for m in messages)
        self.trained += trains
        tamper = self.tampers.get(self.trained) if trains else None
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            node = message.metadata.dst_node_id
            try:
                reply = self.app(message, self.contexts[node])
            except Exception as error:  # as a SuperNode does
                reply = Message(Error(1, repr(error)), reply_to=message)
            if message.metadata.message_type == "query.join":
                reply = self.joins(node, reply)
            if tamper is not None:
                reply = tamper(node, reply)
            if reply is not None:
                self.waiting[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]


def deployment(folder, **changes):
    """A configuration, its plan in a file, and nodes 10, 11, 12 for three clients."""
    experiment, plan = planned(tiny(**changes))
    path = folder / "plan.json"
    write_json(path, plans.to_json(plan))
    sites = {10 + i: {"partition-id": i, "folder": str(folder)} for i in range(3)}
    return experiment, plan, path, sites


class Clock:
    """Stands in for ``time`` where clients are waited for; sleeping costs nothing.

    Attributes:
      now: Seconds.
      later: ``(clock) -> None``, called after every sleep.
    """

    def __init__(self, monkeypatch):
        self.now, self.later = 0.0, lambda clock: None
        monkeypatch.setattr(flower_members, "time", self)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.later(self)


def lines_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


class Stopped(Exception):
    """Somebody pulled the plug of the server."""


def test_flower_carries_it_to_the_simulations_numbers(identity, tmp_path):
    experiment, plan, path, sites = deployment(tmp_path, method={"name": "scaffold"})
    options = Options(output=str(tmp_path / "run"), join_timeout=60)

    def unplugged(node, reply):
        raise Stopped

    grid = InProcess(path, sites)
    grid.tampers = {2: unplugged}
    with pytest.raises(Stopped):
        serve(grid, plan, options, "1")
    # The clients have trained round 2 by then, and must forget it.
    session = serve(InProcess(path, sites), plan, options, "2")
    want = simulated(experiment)
    for name in ("params", "batch_stats", "shared"):
        same(getattr(session.state, name), getattr(want, name))
    assert session.run == "1"
    lines = lines_of(tmp_path / "run")
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[-1]["acc"] == pytest.approx(measure(experiment, want)["acc"])
    start = init_from(experiment.model, str(tmp_path / "run" / "params.npz"))
    same(start.params, session.state.params, 0)


def test_a_round_goes_on_without_who_is_gone_or_sends_nonsense(
    identity, tmp_path, caplog
):
    from flwr.app import Array

    _, plan, path, sites = deployment(tmp_path, rounds=4)
    grid = InProcess(path, sites)

    def lose(node, reply):
        return None if node == 10 else reply

    def spoil(node, reply):
        arrays = reply.content.array_records["arrays"]
        name = next(n for n in arrays if n.startswith("delta"))
        bad = arrays[name].numpy().copy()
        bad.flat[0] = np.nan
        if node == 11:
            arrays[name] = Array(bad)
        if node == 12:
            arrays[name] = Array(bad[:1])
            grid.online.remove(10)
        return reply

    def break_off(node, reply):
        grid.online.add(10)
        if node == 11:
            array = next(iter(reply.content.array_records["arrays"].values()))
            array.data = array.data[:-3]
        return reply

    grid.tampers = {1: lose, 2: spoil, 3: break_off}
    session = serve(grid, plan, Options(output=str(tmp_path / "run")), "1")
    first, second, third, fourth = lines_of(tmp_path / "run")
    assert first["missing"] == {"0": "no answer in time"}
    assert set(second["missing"]) == {"1", "2"}
    assert "array delta" in second["missing"]["1"]
    assert "not finite" in second["missing"]["1"]
    assert "array delta" in second["missing"]["2"]
    assert "expected" in second["missing"]["2"]
    assert third["missing"]["0"] == "not there"
    assert "cannot be read" in third["missing"]["1"]
    assert "missing" not in fourth
    assert session.accepted.tolist() == [3, 3, 3]
    assert any("2 without client 1: array" in r.getMessage() for r in caplog.records)


def test_who_has_other_terms_is_refused_and_named(identity, tmp_path, caplog):
    from flwr.app import RecordDict

    _, plan, path, sites = deployment(tmp_path)
    sites[11]["plan"] = "beef"
    sites[12] = {"folder": str(tmp_path)}
    sites[13] = {"partition-id": 0, "folder": str(tmp_path)}
    grid = InProcess(path, sites)
    options = Options(output=str(tmp_path / "run"), join_timeout=0.1)
    with pytest.raises(ValueError, match=r"after 0.1 s clients \[1, 2\] have not"):
        serve(grid, plan, options, "1")
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert [line.partition(";")[0] for line in refused] == [
        f"refused: client 1: its owner wants plan beef, this one is {plan.digest[:12]}",
        "refused: partition-id: is missing",
        "refused: client 0: another node is it",
    ]
    message = types.SimpleNamespace(content=RecordDict())
    with pytest.raises(ValueError, match="does not say which run it is of"):
        flower_client.records.order(message.content)


def test_a_reply_of_nonsense_stops_nothing(identity, tmp_path, caplog):
    """Archives, pickles and endless shapes for arrays; a card of anything."""
    from flwr.app import ConfigRecord

    _, plan, path, sites = deployment(tmp_path, rounds=3)
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427, 9999), }"
    nonsense = [b"PK\x03\x04" + bytes(40), header + shape.ljust(117).encode() + b"\n"]
    nonsense.append(pickle.dumps([1]))

    def spoil(node, reply):
        array = next(iter(reply.content.array_records["arrays"].values()))
        array.data = nonsense[grid.trained - 1] if node == 11 else array.data
        return reply

    def strange(node, reply):
        if node == 13:
            reply.content.config_records["config"] = ConfigRecord({"client": [1, 2]})
        return reply

    sites[13] = sites[12]
    grid = InProcess(path, sites)
    grid.tampers, grid.joins = dict.fromkeys((1, 2, 3), spoil), strange
    serve(grid, plan, Options(output=str(tmp_path / "run")), "1")
    lines = lines_of(tmp_path / "run")
    assert [list(line["missing"]) for line in lines] == [["1"]] * 3
    assert all("cannot be read" in line["missing"]["1"] for line in lines)
    assert sum("refused: client" in r.getMessage() for r in caplog.records) == 1


def test_no_round_is_counted_while_nobody_is_there(identity, tmp_path, monkeypatch):
    _, plan, path, sites = deployment(tmp_path)
    options = Options(output=str(tmp_path / "run"), join_timeout=60.0)
    clock, grid = Clock(monkeypatch), InProcess(path, sites)

    def all_leave(node, reply):
        grid.online.clear()
        return reply

    grid.tampers = {1: all_leave}
    with pytest.raises(ValueError, match="after 60 s 0 clients are there.*needs 1"):
        serve(grid, plan, options, "1")
    assert clock.now == 60
    assert [line["round"] for line in lines_of(tmp_path / "run")] == [1]

    def one_comes(clock):
        grid.online |= {11} if clock.now > begun + 20 else set()

    grid, begun = InProcess(path, sites), clock.now
    grid.tampers, clock.later = {1: all_leave}, one_comes
    session = serve(grid, plan, options, "2")
    assert session.rounds_left == 0
    assert clock.now == begun + 21
    assert lines_of(tmp_path / "run")[-1]["missing"] == dict.fromkeys("02", "not there")


def test_a_silent_node_is_waited_for_once(identity, tmp_path, monkeypatch):
    _, plan, path, sites = deployment(tmp_path, rounds=4)
    options = Options(output=str(tmp_path / "run"), join_timeout=60.0, least_clients=2)
    clock, grid = Clock(monkeypatch), InProcess(path, sites)
    times = []

    def silent(node, reply):
        return None if node == 12 and grid.trained < 3 else reply

    def note(node, reply):
        times.append(clock.now)
        # Its message is given up, and it is asked again without anybody waiting.
        clock.now += 60 if grid.trained == 3 else 0
        return reply

    grid.joins, grid.tampers = silent, dict.fromkeys((1, 2, 3, 4), note)
    serve(grid, plan, options, "1")
    assert times[:5] == [60.0] * 5
    lines = lines_of(tmp_path / "run")
    assert [line.get("missing") for line in lines[:3]] == [{"2": "not there"}] * 3
    assert "missing" not in lines[3]


def test_an_output_folder_has_one_run_at_a_time(identity, tmp_path):
    _, plan, path, sites = deployment(tmp_path)
    (tmp_path / "run").mkdir()
    with (
        run_folder.lock(tmp_path / "run"),
        pytest.raises(ValueError, match="in use by another process"),
    ):
        serve(InProcess(path, sites), plan, Options(str(tmp_path / "run")), "1")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_what_flower_sends_to_clients_has_no_key(tmp_path):
    """A project, and a private run whose output was put into it."""
    needs_flower()
    build_fab = importlib.import_module("flwr.cli.build").build_fab_from_disk
    folder = tmp_path / "app"
    private = ["--privacy.name=gaussian", "--privacy.noise-multiplier=0"]
    assert main(["deploy", "init", "synthetic", str(folder), *FLAGS, *private]) == 0
    plan = plans.read_plan(folder / "fedcmi_app" / "plan.json")
    Session(plan, folder / "out", "r1")
    bundle = zipfile.ZipFile(io.BytesIO(build_fab(folder)))
    names = bundle.namelist()
    assert "fedcmi_app/plan.json" in names
    digits = (folder / "out" / "server_key").read_bytes().strip()
    assert not any(digits in bundle.read(name) for name in names)
    Session(plan, folder / "run", "r1")
    again = zipfile.ZipFile(io.BytesIO(build_fab(folder)))
    assert again.namelist() == names


FLAGS = [
    *("--clients=3", "--clients-per-round=3", "--rounds=3", "--local.epochs=1"),
    "--multimodal-fraction=0.4",
]


def app(folder):
    """A project of FedCMI on noisy-digits, and the simulation's results."""
    assert main(["deploy", "init", "noisy-digits", str(folder), *FLAGS]) == 0
    plan = plans.read_plan(folder / "fedcmi_app" / "plan.json")
    experiment = build(plan.config)
    state = simulated(experiment)
    return experiment, state


def agrees(experiment, state, folder):
    """Whether a folder has the simulation's parameters, and its accuracy."""
    found = read_npz(folder / "params.npz")
    start = init_from(experiment.model, str(folder / "params.npz"))
    assert len(found) == len(jax.tree.leaves((state.params, state.batch_stats)))
    same(start.params, state.params)
    lines = lines_of(folder)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert not any("missing" in line for line in lines)
    assert lines[-1]["acc"] == pytest.approx(measure(experiment, state)["acc"])


@pytest.mark.shipped_flags
def test_flowers_simulation_has_the_same_numbers(tmp_path):
    needs_flower()
    experiment, state = app(tmp_path / "app")
    with Localhost(tmp_path / "flower", simulation=True) as here:
        resources = "init-args-num-cpus=2 client-resources-num-cpus=1"
        settings = f"num-supernodes=3 {resources}"
        run = ["run", str(tmp_path / "app"), "here", "--stream"]
        here.flwr(*run, "--federation-config", settings)
    agrees(experiment, state, tmp_path / "app-run")


@pytest.mark.shipped_flags
def test_real_processes_have_the_same_numbers_and_one_of_them_dies(tmp_path):
    needs_flower()
    experiment, state = app(tmp_path / "app")
    with Localhost(tmp_path / "flower") as here:
        for i in range(3):
            here.node(i, f'partition-id={i} folder="{tmp_path / "sites"}"')
        here.node(3, "partition-id=0", registered=False)
        here.node(4, 'partition-id=0 plan="beef"')
        until("a key that is not registered", lambda: here.nodes[3].poll() is not None)
        run = ["run", str(tmp_path / "app"), "here", "--stream", "--run-config"]
        said = here.flwr(*run, "join-timeout=600.0")
        assert "refused: client 0: its owner wants plan beef" in said
        agrees(experiment, state, tmp_path / "app-run")

        second = tmp_path / "second"
        settings = f'output="{second}" round-timeout=60.0'
        running = here.start("run", "flwr", *run, settings)
        log = second / "metrics.jsonl"
        until("a round", lambda: log.exists() and log.read_text(), running)
        here.kill(here.nodes[2])  # it is in the middle of round 2
        until("the end", lambda: running.poll() is not None)
    first, *others = lines_of(second)
    assert "missing" not in first
    assert [line["round"] for line in others] == [2, 3]
    assert all(list(line["missing"]) == ["2"] for line in others)
    assert all(line["rejected"] == [2] for line in others)
    assert (second / "params.npz").exists()
