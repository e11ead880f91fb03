"""What tells runs apart: their names, and the list of them."""

import json
import os
import re

import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import presets, run_folder, run_list, training
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.run_name import LONGEST, run_name


def config(preset="noisy-digits", **values):
    """A preset with other values; sections are merged."""
    base = fc.config.to_dict(presets.preset(preset))
    for name, value in values.items():
        is_section = isinstance(value, dict) and value.get("name") in (
            None,
            base[name].get("name") if isinstance(base[name], dict) else None,
        )
        base[name] = base[name] | value if is_section else value
    return fc.config.from_dict(base)


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        (config(), "noisy-digits-fedcmi"),
        (config("noisy-digits-heads-only"), "noisy-digits-heads-only-fedcmi"),
        (config(seed=4, output="x/y", log_clients="all"), "noisy-digits-fedcmi"),
        (config(partition={"alpha": 0.1}), "noisy-digits-fedcmi-alpha0.1"),
        (config(method={"lam": 0.0}, rounds=7), "noisy-digits-fedcmi-lam0-rounds7"),
        (config(method={"name": "fedavg"}), "noisy-digits-fedavg"),
        (config(partition={"name": "iid"}), "noisy-digits-fedcmi-iid"),
        (config(dataset={"name": "cg_digits"}), "cg-digits-fedcmi"),
        (config(local={"learning_rate": 1e-4}), "noisy-digits-fedcmi-learning-rate"),
        (fc.config.Config(), "noisy-digits-fedcmi"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_has_what_differs(chosen, name):
    found = run_name(chosen)
    assert found == name or found.startswith(name + "0.0001")


def test_a_name_is_short_and_safe(tmp_path):
    everything = config(
        dataset={"name": "npz", "path": "/data/[mine]/x.npz"},
        model={"width": 77, "fusion": "film"},
        local={"learning_rate": 0.123456, "decay_start": 12, "augment": ["a b", "ü"]},
        server={"optimizer": "yogi"},
        rounds=12345,
        clients_per_round=17,
        clip_norm=float("inf"),
    )
    name = run_name(everything)
    assert "mine" not in name
    assert len(name) < len("npz-fedcmi-") + LONGEST + len("-and10more")
    assert re.search(r"-and\d+more$", name)
    folder = run_folder.default_folder(tmp_path, name, 3)
    assert re.fullmatch(r"[A-Za-z0-9.-]+", folder.name)


def write(folder, chosen, lines=(), summary=None):
    """A run as far as its list needs it."""
    run_folder.make_folder(folder)
    training.write_config(folder, chosen)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))


LINE = {"round": 5, "acc": 0.5, "acc_clean_zero": 0.4, "acc_noisy_zero": 0.25}


@pytest.fixture
def root(tmp_path):
    runs = tmp_path / "runs"
    write(runs / "a", config("noisy-digits-heads-only"), [LINE], {"final": LINE})
    write(runs / "b" / "deep" / "er", config(method={"mu": 0.5}), [LINE])
    write(runs / "c [/bold]", config(seed=2, seeds=3))
    write(runs / "c [/bold]" / "seed-2", config(seed=2), [LINE], {"final": LINE})
    write(runs / "d", config(), [LINE], {"final": LINE, "stopped_early": 5})
    (runs / "d" / "wandb" / "files").mkdir(parents=True)
    (runs / "d" / "wandb" / "files" / "config.json").write_text("{}")
    (runs / "e").mkdir()
    rows = [{"clients": n, "rounds": 5, "acc": 0.5} for n in (10, 1000)]
    (runs / "e" / "sweep.json").write_text(json.dumps({"rows": rows}))
    return runs


def test_runs_are_found_wherever_they_are(root):
    rows = {str(row.folder.relative_to(root)): row for row in run_list.find_runs(root)}
    assert sorted(rows) == ["a", "b/deep/er", "c [/bold]", "d", "e"]
    a = rows["a"]
    assert (a.preset, a.method) == ("noisy-digits-heads-only", "fedcmi lam=0")
    assert (a.seeds, a.rounds, a.acc, a.weakest) == ("0", "5/100", 0.5, 0.25)
    assert a.state == "finished"
    assert rows["b/deep/er"].method == "fedcmi mu=0.5"
    assert rows["b/deep/er"].state == "interrupted"
    assert rows["c [/bold]"].seeds == "2-4"
    assert rows["c [/bold]"].state == "interrupted, 1 of 3 seeds done"
    assert rows["c [/bold]"].acc is None
    assert rows["d"].state == "stopped early"
    assert rows["e"].state == "sweep over 10, 1,000 clients"
    assert [row.folder for row in run_list.find_runs(root / "a")] == [root / "a"]


def test_a_run_that_runs_is_running(root):
    with run_folder.lock(root / "b/deep/er"):
        states = [row.state for row in run_list.find_runs(root / "b")]
    assert states == ["running"]
    assert [row.state for row in run_list.find_runs(root / "b")] == ["interrupted"]
    with run_folder.lock(root / "b/deep/er"):  # whoever listed has let go
        pass


def damage(name, text):
    return lambda folder: (folder / name).write_text(text)


DAMAGES = {
    "no json": (damage("config.json", "{"), "damaged: .*not valid JSON"),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "damaged"),
    "a list": (damage("config.json", "[1]"), "unreadable: its config.json is not"),
    "foreign": (damage("config.json", '{"model_type": "bert"}'), "unreadable: its"),
    "method": (
        damage("config.json", '{"config": {"method": 3, "rounds": 1}}'),
        "damaged",
    ),
    "rounds": (
        damage("config.json", '{"config": {"method": {"name": "x"}, "rounds": []}}'),
        "damaged",
    ),
    "nameless": (
        damage("config.json", '{"config": {"method": {}, "rounds": 1}}'),
        "damaged: lacks 'name'",
    ),
    "metrics": (damage("metrics.jsonl", "x\n{}\n"), "damaged: .*line 1: corrupt"),
    "accuracy": (damage("metrics.jsonl", '{"round": 1, "acc": "x"}\n'), "damaged"),
    "summary": (damage("summary.json", "{}"), "damaged: lacks 'final'"),
    "a list as summary": (damage("summary.json", "[]"), "damaged"),
}


def test_strangers_and_wrecks_are_rows(root):
    for kind, (harm, _) in DAMAGES.items():
        write(root / kind, config(), [LINE])
        harm(root / kind)
    rows = {row.folder.name: row.state for row in run_list.find_runs(root)}
    for kind, (_, state) in DAMAGES.items():
        assert re.match(state, rows[kind]), kind
        assert "\n" not in rows[kind]
    assert rows["a"] == "finished"
    assert len(rows) == 5 + len(DAMAGES)


def test_what_may_not_be_read_is_a_row(root, monkeypatch):
    """Root, as in containers, may read everything: the kernel's refusal is ours."""

    def refusing(read, name):
        def refuse(path, *args):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *args)

        return refuse

    monkeypatch.setattr(run_list, "read_json", refusing(read_json, "a/config.json"))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, "b/deep"))
    rows = {row.folder.name: row.state for row in run_list.find_runs(root)}
    assert rows["a"] == rows["deep"] == "unreadable: Permission denied"
    assert rows["d"] == "stopped early"


def test_the_list_shows_them(root, capsys, monkeypatch):
    assert main(["list", "runs", str(root)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("run", "preset", "method", "seeds", "rounds", "fused", "weakest", "state")
    ]
    assert len(rows) == 5
    assert "fedcmi lam=0" in rows[0]
    assert "50.0 %" in rows[0]
    assert "25.0 %" in rows[0]
    assert "c [/bold]" in rows[2]
    monkeypatch.chdir(root.parent)
    assert main(["list", "runs"]) == 0
    assert "runs/b/deep/er" in capsys.readouterr().out
    assert main(["list", "runs", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert main(["list", "presets", "runs"]) == 2
    assert "unknown 'runs'; takes one of" in capsys.readouterr().err
