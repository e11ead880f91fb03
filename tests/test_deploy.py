"""A federation whose clients are elsewhere: the simulation's numbers, to the bit."""

import dataclasses
import json
import tomllib

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.deploy import kept_file, server_key, wire
from fedcmi_jax.deploy import plan as plans
from fedcmi_jax.deploy.client import shapes_of
from fedcmi_jax.deploy.flower_server import options_of
from fedcmi_jax.deploy.own_samples import of_file
from fedcmi_jax.deploy.session import Session
from fedcmi_jax.deploy.site import Site
from fedcmi_jax.deploy.support import check, check_config
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import write_json
from fedcmi_jax.experiment.loop import DivergedError
from fedcmi_jax.methods import REGISTRY
from fedcmi_jax.samples import Shape

TINY = {
    "dataset": {
        "name": "synthetic",
        "train_samples": 120,
        "test_samples": 40,
        "features": 6,
        "num_classes": 4,
    },
    "clients": 3,
    "clients_per_round": 3,
    "rounds": 3,
    "probe_fraction": 0.2,
    "local": {"epochs": 1, "batch_size": 8},
    "encoder": {"name": "mlp", "features": 8},
    "model": {"width": 8},
}

REFUSED = {
    "power_of_choice": "measures on all clients",
    "bmsfed": "measures on all clients",
    "fedmsplit": "reads what is remembered of each client",
}
"""Methods that need more of a client than its answer, and why."""


def tiny(**changes):
    return fc.config.from_dict(TINY | changes)


def planned(config):
    experiment = build(config)
    clients = experiment.federation.num_clients
    return experiment, plans.plan_of(experiment.config, experiment.dataset, clients)


def simulated(experiment, rounds=3):
    state = jax.jit(experiment.algorithm.init)(experiment.key, experiment.federation)
    one_round = jax.jit(experiment.algorithm.round)
    for _ in range(rounds):
        state, _ = one_round(state, experiment.federation)
    return state


def checked(plan):
    setup = plans.bound_algorithm(plan).setup
    check(plan, setup, shapes_of(plan, setup))


class Network:
    """Sites and a session without anything in between."""

    def __init__(self, plan, folder):
        self.folder = folder
        self.session = Session(plan, folder / "server", "r1")
        self.sites = [Site(plan, i, folder / f"site{i}") for i in range(plan.clients)]
        for site in self.sites:
            self.session.join(json.loads(json.dumps(site.card())))
        self.session.begin(print)

    def train(self, id):
        session = self.session
        accepted = int(session.accepted[id])
        return self.sites[id].train(session.received(), session.run, accepted)

    def round(self, silent=()):
        session = self.session
        cohort = session.cohort()
        answers = {i: session.answer(*self.train(i)) for i in cohort}
        for id in silent:
            del answers[id]
        return session.close(answers, dict.fromkeys(silent, "gone"))


def same(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)


def agrees(config, folder):
    experiment, plan = planned(config)
    network = Network(plan, folder)
    for _ in range(3):
        network.round()
    want = simulated(experiment)
    for name in ("params", "batch_stats", "shared"):
        same(getattr(network.session.state, name), getattr(want, name))
    return network, want


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in REFUSED])
def test_three_rounds_give_the_simulations_numbers(name, tmp_path):
    network, want = agrees(tiny(method={"name": name}), tmp_path)
    session = network.session
    assert session.accepted.tolist() == [2, 2, 2]
    for site in network.sites:
        site.settle(session.run, 2)
        path = site.path(session.run)
        assert path.exists() == bool(jax.tree.leaves((want.memory, want.personal)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"server": {"optimizer": "adam"}},
        {"aggregator": {"name": "median"}},
        {"aggregator": {"name": "norm_bound"}, "clip_norm": 0.05},
        {"clients_per_round": 2, "missing_fraction": 0.3, "label_noise": 0.2},
        {"clients": 4, "holdout_clients": 1, "modalities": "weak=1,strong+weak=3"},
    ],
    ids=lambda values: ",".join(values),
)
def test_the_other_parts_of_a_round_agree_too(values, tmp_path):
    agrees(tiny(**values), tmp_path)


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_needs_other_clients_is_refused_in_one_line(name, why):
    _, plan = planned(tiny(method={"name": name}))
    with pytest.raises(ValueError, match=f"{name}.*{why}"):
        checked(plan)


@pytest.fixture(scope="module")
def scaffold(tmp_path_factory):
    """Three rounds of a method with memory; client 1's second answer is lost."""
    folder = tmp_path_factory.mktemp("scaffold")
    experiment, plan = planned(tiny(method={"name": "scaffold"}))
    network = Network(plan, folder)
    lines = [network.round()]
    want = simulated(experiment, 1)
    for name in ("params", "batch_stats", "shared"):
        same(getattr(network.session.state, name), getattr(want, name))
    lines.append(network.round(silent=[1]))
    middle = network.session.state, network.session.accepted.copy()
    reopened = Session(plan, folder / "server", "another")
    lines.append(network.round())
    return network, lines, middle, reopened, want


def test_a_client_that_is_silent_is_counted_and_keeps_its_memory(scaffold):
    network, lines, (_, accepted), _, want = scaffold
    assert [line.get("rejected") for line in lines] == [None, [1], None]
    assert lines[1]["missing"] == {"1": "gone"}
    assert accepted.tolist() == [1, 0, 1]
    site = network.sites[1]
    memory = kept_file.load(site.path("r1"), site._first())
    # Of round 0, which was accepted, and not of round 1, which was lost.
    assert (memory.kept_round, memory.proposed_round) == (0, 2)
    same(memory.kept.memory, jax.tree.map(lambda x: x[1], want.memory))
    site.settle("r1", 2)
    assert kept_file.load(site.path("r1"), site._first()).kept_round == 2


def test_a_server_that_starts_again_goes_on_from_the_same_bits(scaffold):
    network, _, (state, accepted), reopened, _ = scaffold
    assert (reopened.run, reopened.rounds_left) == ("r1", 1)
    same(reopened.state._replace(key=()), state._replace(key=()), 0)
    assert reopened.accepted.tolist() == accepted.tolist()
    log = (network.folder / "server" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in log] == [1, 2, 3]
    other = dataclasses.replace(network.session.plan, clients=4)
    with pytest.raises(ValueError, match="run of another plan; name a new folder"):
        Session(other, network.folder / "server", "r1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.popitem(), "array .* is missing"),
        (lambda a, m: a.update(extra=np.ones(1)), "array extra is none of those"),
        (lambda a, m: spoil(a, np.nan), r"array delta\[.*not finite"),
        (lambda a, m: spoil(a, np.inf), r"array delta\[.*not finite"),
        (lambda a, m: a.update(weight=np.ones(3, np.float32)), r"\[3\], expected"),
        (lambda a, m: a.update(weight=np.float64(1)), "float64.*, expected float32"),
        (lambda a, m: m.update(loss_task=[1.0]), "metric loss_task is no list of 2"),
        (lambda a, m: m.update(loss_task=[1.0, np.nan]), "metric loss_task is no"),
        (lambda a, m: m.pop("loss_task"), "metrics are"),
        (lambda a, m: negative(a), "upload: the weight of a mean is -1.0"),
    ],
)
def test_a_hostile_answer_is_refused_by_name(scaffold, change, message):
    session = scaffold[0].session
    arrays = wire.as_arrays(
        jax.tree.map(
            lambda s: np.zeros(s.shape, s.dtype), session._shapes.answer.arrays
        )
    )
    metrics = {name: [0.0, 0.0] for name in session._shapes.answer.metrics} | {
        "sound": 1
    }
    session.answer(arrays, metrics)
    change(arrays, metrics)
    with pytest.raises(ValueError, match=message) as refusal:
        session.answer(arrays, metrics)
    assert "\n" not in str(refusal.value)


def negative(arrays):
    """The weights of SCAFFOLD's means, as no sum of samples is."""
    for name in [n for n in arrays if n.startswith("upload") and "weight" in n]:
        arrays[name] = np.full_like(arrays[name], -1)


def spoil(arrays, value):
    name = next(n for n in arrays if n.startswith("delta"))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.0.1"}, "client 1: its version is 0.0.1, the server's"),
        ({"plan": "beef"}, "client 1: its plan is beef, the server's"),
        ({"arrays": "beef"}, "client 1: its arrays is beef, the server's"),
        ({"client": 3}, "client 3: there are clients 0 to 2"),
        ({"client": "1"}, "there are clients 0 to 2"),
        ({"train": 0}, "says it has 0 samples"),
        ({"train": -4}, "says it has -4 samples"),
        ({"available": [1]}, r"says \[1\] of its modalities"),
        ({"available": [0, 0]}, "needs one"),
        ({"available": 2}, "says 2 of its modalities"),
        ({"available": [[1], 0]}, r"says \[\[1\], 0\] of its modalities"),
        ({"available": [0.5, 1.0]}, "of its modalities"),
        ({"client": [1]}, r"client \[1\]: there are clients"),
        ({"client": "a\nb" * 99}, "client a ba"),
        ({"train": 5}, "client 1: has other samples than when the run began"),
    ],
)
def test_a_client_with_other_terms_is_refused_in_one_line(scaffold, change, message):
    network = scaffold[0]
    with pytest.raises(ValueError, match=message) as refusal:
        network.session.join(network.sites[1].card() | change)
    assert "\n" not in str(refusal.value)


def test_an_id_that_is_taken_changes_nothing(scaffold):
    network = scaffold[0]
    before = network.session.table
    with pytest.raises(ValueError, match="client 1: another node is it"):
        network.session.join(network.sites[1].card(), taken={1: 11})
    assert network.session.table is before


def test_a_client_that_diverges_keeps_what_it_has_and_goes_on(scaffold, tmp_path):
    """Global parameters of 1e38 overflow in the first step; nothing of it stays."""
    site, session = scaffold[0].sites[0], scaffold[0].session
    path = site.path("other")
    path.parent.mkdir()
    path.write_bytes(site.path("r1").read_bytes())
    before = kept_file.settled(kept_file.load(path, site._first()), 2)
    received = session.received()
    huge = {
        name: np.full_like(x, 1e38) if name.startswith("params") else x
        for name, x in received.items()
    }
    _, metrics = site.train(huge, "other", 2)
    assert metrics["sound"] == 0
    after = kept_file.load(path, site._first())
    assert (after.kept_round, after.proposed_round) == (2, 2)
    same(after.kept, before.kept, 0)
    same(after.proposed, before.kept, 0)
    assert site.train(received, "other", 2)[1]["sound"] == 1


def test_a_model_that_is_no_longer_finite_ends_the_run(scaffold, monkeypatch):
    """Each update is finite; their sum is not."""
    session = scaffold[0].session
    path = session.folder / "state.npz"
    before = path.read_bytes(), (session.folder / "metrics.jsonl").read_bytes()
    state, accepted = session.state, session.accepted.copy()

    def overflows(state, tables, ids, rows):
        bad = jax.tree.map(lambda x: np.full(x.shape, np.inf), state.params)
        return state._replace(params=bad), ()

    monkeypatch.setattr(session, "_round", overflows)
    with pytest.raises(DivergedError, match="round 4, .*not finite.*of round 3"):
        session.close({}, {})
    assert session.state is state
    assert session.accepted.tolist() == accepted.tolist()
    log = session.folder / "metrics.jsonl"
    assert (path.read_bytes(), log.read_bytes()) == before


def test_a_client_is_not_asked_for_what_it_does_not_have(scaffold):
    network = scaffold[0]
    site, session = network.sites[0], network.session
    received = session.received()
    with pytest.raises(ValueError, match="the server accepted it in 0; give it the"):
        site.train(received, session.run, 0)
    with pytest.raises(ValueError, match="'../r1' is no name"):
        site.train(received, "../r1", 2)
    with pytest.raises(ValueError, match="array round is missing"):
        site.train({n: x for n, x in received.items() if n != "round"}, "r1", 2)
    with pytest.raises(ValueError, match="there are clients 0 to 2"):
        Site(session.plan, 3, network.folder)


def test_a_damaged_file_is_named_and_kept(scaffold, tmp_path):
    site = scaffold[0].sites[0]
    path = tmp_path / "client-0.npz"
    path.write_bytes(site.path("r1").read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{path}.*damaged"):
        kept_file.load(path, site._first())
    assert path.stat().st_size == 200


def test_a_plan_is_the_same_after_a_file(tmp_path):
    config = tiny()
    shapes = {"a": Shape((2, 3)), "b": {"ids": Shape((4,), np.int32), "c": Shape(())}}
    plan = plans.Plan(config, 3, ("b", "a"), shapes, ("x", "y"))
    write_json(tmp_path / "plan.json", plans.to_json(plan))
    found = plans.read_plan(tmp_path / "plan.json")
    assert found == plan
    assert found.digest == plan.digest
    assert plans.no_samples(found, 2).shapes == shapes
    assert dataclasses.replace(plan, clients=4).digest != plan.digest
    write_json(tmp_path / "old.json", plans.to_json(plan) | {"version": "0.0.1"})
    with pytest.raises(ValueError, match="of fedcmi_jax 0.0.1, here is"):
        plans.read_plan(tmp_path / "old.json")
    write_json(tmp_path / "none.json", [])
    with pytest.raises(ValueError, match="is no plan"):
        plans.read_plan(tmp_path / "none.json")


OWN = {"labels": np.array([0, 1, 3]), "weak": np.ones((3, 6), np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 4])}, r"row 2: label 4 is outside \[0, 4\)"),
        ({"labels": np.array([0, 1])}, "3 samples for 2 labels"),
        ({"other": np.ones((3, 6))}, "choose from .'strong', 'weak'"),
        ({"weak": np.ones((3, 7))}, r"has samples of float32\[7\], the plan says"),
        ({"weak": np.full((3, 6), np.nan)}, "row 0: value is not finite"),
        ({"available": np.array([[0, 1], [0, 1], [1, 0]])}, "modalities of its sample"),
    ],
)
def test_own_samples_that_do_not_fit_are_named(tmp_path, change, message):
    _, plan = planned(tiny())
    path = tmp_path / "own.npz"
    np.savez(path, **OWN)
    found = of_file(plan, path)
    assert found.available.tolist() == [False, True]
    np.testing.assert_array_equal(found.inputs["strong"], np.zeros((3, 6)))
    np.savez(path, **(OWN | change))
    with pytest.raises(ValueError, match=message) as refusal:
        of_file(plan, path)
    assert str(path) in str(refusal.value)


def test_own_samples_without_labels_or_modality(tmp_path):
    _, plan = planned(tiny())
    for lacking, message in (("labels", "no array 'labels'"), ("weak", "choose from")):
        np.savez(tmp_path / "own.npz", **{n: x for n, x in OWN.items() if n != lacking})
        with pytest.raises(ValueError, match=message):
            of_file(plan, tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 2}, "seeds: 2, but a deployment trains one model"),
        ({"attack": {"name": "sign_flip"}}, "attack.name: 'sign_flip'"),
        (
            {"early_stop_rounds": 3, "validation_fraction": 0.2},
            "early_stop_rounds: 3",
        ),
    ],
)
def test_what_a_deployment_has_no_meaning_for(values, message):
    with pytest.raises(ValueError, match=message):
        check_config(tiny(**values))


def test_memory_that_depends_on_the_first_parameters_needs_them(tmp_path):
    _, plan = planned(tiny(method={"name": "moon"}))
    config = dataclasses.replace(plan.config, init_from="somewhere.npz")
    plan = dataclasses.replace(plan, config=config)
    with pytest.raises(ValueError, match="init_from: method 'moon' keeps"):
        checked(plan)


FLAGS = ["--clients=3", "--clients-per-round=3", "--rounds=3", "--local.epochs=1"]


def test_deploy_init_writes_a_project_once(tmp_path, capsys):
    folder = tmp_path / "app"
    assert main(["deploy", "init", "synthetic", str(folder), *FLAGS]) == 0
    plan = plans.read_plan(folder / "fedcmi_app" / "plan.json")
    assert (plan.clients, plan.config.rounds) == (3, 3)
    assert plan.digest in capsys.readouterr().out
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    options = project["tool"]["flwr"]["app"]["config"]
    # Flower sends all clients every JSON file that lies in the project.
    assert options_of(options).output == str(tmp_path / "app-run")
    assert "run/" in (folder / ".gitignore").read_text().splitlines()
    assert len((folder / "README.md").read_text().splitlines()) <= 7
    assert main(["deploy", "init", "synthetic", str(folder), *FLAGS]) == 2
    assert main(["deploy", "init", "synthetic"]) == 2
    named = ["deploy", "init", "synthetic", str(tmp_path / "b")]
    assert main([*named, "--method.name=bmsfed"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["fedcmi"] * 3
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round-timeout": "1"}, "round-timeout: '1' is no float"),
        ({"evaluate": 1}, "evaluate: 1 is no bool"),
        ({"least-clients": True}, "least-clients: True is no int"),
        ({"join-timeout": 0}, "join-timeout: 0 is not positive"),
    ],
)
def test_options_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        options_of(values)


CLIPPED = {"name": "gaussian", "clip": 0.5, "noise_multiplier": 0.0}


@pytest.mark.slow
def test_what_compression_drops_stays_at_the_client(tmp_path):
    agrees(tiny(compression={"name": "top_k", "share": 0.2}), tmp_path)


@pytest.mark.slow
def test_a_private_deployment_clips_as_the_simulation_does(tmp_path):
    """All of three clients: nothing depends on the server's own key but the noise."""
    method = {"name": "moon"}
    agrees(tiny(method=method, privacy=CLIPPED | {"sampling": "uniform"}), tmp_path)


def test_noise_and_cohorts_of_a_private_deployment_are_the_servers_secret(tmp_path):
    _, plan = planned(tiny(privacy=CLIPPED))
    keys = []
    for folder in ("one", "two", "one"):
        session = Session(plan, tmp_path / folder, "r1")
        keys.append(jax.random.key_data(session._key).tolist())
    assert keys[0] == keys[2] != keys[1]
    assert jax.random.key_data(plan.key).tolist() not in keys
    path = tmp_path / "one" / "server_key"
    digits = path.read_text().strip()
    assert (len(digits), path.stat().st_mode & 0o777) == (16, 0o600)
    others = [p for p in path.parent.iterdir() if p != path]
    assert others
    assert not any(digits.encode() in p.read_bytes() for p in others)
    for words in ("beef", "no digits", "00" * 16):
        path.write_text(words)
        with pytest.raises(ValueError, match="server_key: has no key of 16"):
            server_key.read(path.parent)
    path.unlink()
    with pytest.raises(ValueError, match="server_key: is missing"):
        server_key.read(path.parent)
    _, plan = planned(tiny())
    session = Session(plan, tmp_path / "open", "r1")
    assert (session._key == plan.key).all()
    assert not (tmp_path / "open" / "server_key").exists()


@pytest.mark.slow
def test_a_poisson_cohort_may_be_of_anybody_or_nobody(tmp_path):
    values = {"method": {"name": "moon"}, "clients_per_round": 1, "rounds": 8}
    _, plan = planned(tiny(privacy=CLIPPED, **values))
    network = Network(plan, tmp_path)
    sizes = []
    for _ in range(8):
        sizes.append(len(network.session.cohort()))
        record = network.round()
        assert record["cohort"] == sizes[-1]
        assert record["epsilon"] is None  # no noise, no guarantee
    assert len(set(sizes)) > 1
