"""Folders as entries: what they are called, compared with, and when they got there."""

import json
import shlex
import shutil

import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.parser import parse
from fedcmi_jax.experiment import presets
from fedcmi_jax.experiment.config import to_dict
from fedcmi_jax.experiment.seed_axis import pool
from fedcmi_jax.results.class_figures import class_recalls
from fedcmi_jax.results.collect import collect, last
from fedcmi_jax.results.comparison import difference, differences, groups, pairing
from fedcmi_jax.results.curves import curve, modalities
from fedcmi_jax.results.labels import labelled
from fedcmi_jax.results.provenance import command
from fedcmi_jax.results.to_accuracy import Reached, reached
from tests.result_folders import SIZES, config, lines_of, write_run, write_sweep

TWO = {0: lines_of([0.5, 0.75]), 1: lines_of([0.25, 0.5])}


@pytest.fixture
def seeds(tmp_path):
    write_run(tmp_path / "a", config(seeds=2, rounds=10), TWO)
    return tmp_path / "a"


def test_a_run_of_several_seeds_is_one_entry(seeds):
    (entry,) = collect([seeds]).entries
    assert (entry.label, entry.values, entry.planned) == ("fedavg", {}, (0, 1))
    assert last(entry, "acc") == {0: 0.75, 1: 0.5}
    assert entry.unfinished == ()
    assert modalities([entry]) == ["strong", "weak"]


def test_a_curve_is_the_mean_over_the_seeds(seeds):
    found = curve(collect([seeds]).entries[0], "acc")
    assert found.rounds.tolist() == [5, 10]
    assert found.mean.tolist() == [0.375, 0.625]
    assert found.std.tolist() == pytest.approx([0.03125**0.5] * 2)
    assert found.seeds.tolist() == [2, 2]


def test_mapped_seeds_are_read_from_the_common_log(tmp_path):
    mapped = config(seeds=2, map_seeds=True, rounds=10)
    write_run(tmp_path / "a", mapped, {})
    pooled = [
        {"round": r} | pool({s: {**TWO[s][i]} for s in TWO}) | {"seconds": 2.0}
        for i, r in enumerate((5, 10))
    ]
    text = "".join(json.dumps(line) + "\n" for line in pooled)
    (tmp_path / "a/metrics.jsonl").write_text(text)
    (entry,) = collect([tmp_path / "a"]).entries
    assert last(entry, "acc") == {0: 0.75, 1: 0.5}
    assert [line["round"] for line in entry.seeds[1]] == [5, 10]
    assert entry.unfinished == (0, 1)


def test_an_unfinished_run_has_what_there_is(tmp_path):
    three = config(seeds=3, rounds=10)
    write_run(tmp_path / "a", three, TWO, unfinished=(1,))
    half = '{"round": 15, "acc'
    with open(tmp_path / "a/seed-1/metrics.jsonl", "a") as file:
        file.write(half)
    (entry,) = collect([tmp_path / "a"]).entries
    assert list(entry.seeds) == [0, 1]
    assert list(entry.summaries) == [0]
    assert entry.unfinished == (1, 2)


def test_runs_that_differ_in_their_seed_only_are_one_entry(tmp_path):
    for seed in (0, 3):
        one = config(seed=seed, output=f"x{seed}", log_clients="cohort")
        write_run(tmp_path / str(seed), one, {seed: lines_of([0.1 * (seed + 1)])})
    found = collect([tmp_path / "3", tmp_path / "0"])
    (entry,) = found.entries
    assert last(entry, "acc") == pytest.approx({0: 0.1, 3: 0.4})
    assert (found.axes, entry.planned) == ((), (0, 3))


def test_equal_runs_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, config(), {0: lines_of([0.5])})
    labels = [e.label for e in collect([tmp_path / "a", tmp_path / "b"]).entries]
    assert labels == [f"fedavg ({tmp_path / name})" for name in ("a", "b")]


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ({}, {"method": {"name": "fedprox"}}, ["fedavg", "fedprox"]),
        ({"rounds": 5}, {"rounds": 7}, ["rounds=5", "rounds=7"]),
        (
            {"partition": {"name": "dirichlet", "alpha": 0.1}},
            {"partition": {"name": "dirichlet", "alpha": 2.0}},
            ["alpha=0.1", "alpha=2"],
        ),
        (
            {"method": {"name": "fedcmi", "lam": 0.0}},
            {"method": {"name": "fedcmi"}, "clip_norm": 1.0},
            ["fedcmi lam=0,clip_norm=none", "fedcmi lam=1,clip_norm=1"],
        ),
        (
            {"partition": {"name": "iid"}},
            {"partition": {"name": "dirichlet", "alpha": 0.1}},
            ["partition=iid", "partition=dirichlet"],
        ),
    ],
)
def test_runs_are_called_by_what_differs(one, other, labels):
    base = to_dict(presets.preset("synthetic")) | {"method": {"name": "fedavg"}}
    configs = [to_dict(fc.config.from_dict(base | values)) for values in (one, other)]
    assert labelled(configs, ["a", "b"])[1] == labels


def test_a_sweep_has_its_plans_names(tmp_path):
    write_sweep(tmp_path / "s", ["fedavg", "fedcmi"], [0.1, 1.0])
    shutil.rmtree(tmp_path / "s/cells/fedcmi,alpha=1.0")
    failure = {"fedcmi,alpha=1.0": "no client has samples"}
    (tmp_path / "s/failures.json").write_text(json.dumps(failure))
    found = collect([tmp_path / "s"])
    assert found.axes == ("method", "partition.alpha")
    assert found.baseline == "fedavg,alpha=0.1"
    assert [e.label for e in found.entries][-1] == "fedcmi,alpha=1.0"
    assert found.entries[-1].failure == "no client has samples"
    assert not found.entries[-1].seeds


def test_the_baseline_has_the_same_values_on_the_other_axes(tmp_path):
    write_sweep(tmp_path / "s", ["fedavg", "fedcmi"], [0.1, 1.0])
    found = collect([tmp_path / "s"])
    for name in (None, "fedavg", "fedavg,alpha=1.0"):
        pairs = pairing(found, name)
        partners = {label: entry.label for label, entry in pairs.of.items()}
        assert partners["fedcmi,alpha=1.0"] == "fedavg,alpha=1.0"
        assert partners["fedcmi,alpha=0.1"] == "fedavg,alpha=0.1"
        assert len(differences(found.entries, pairs, "acc")) == 2
    pairs = pairing(found, "0.1")
    assert pairs.of["fedcmi,alpha=1.0"].label == "fedcmi,alpha=0.1"
    with pytest.raises(ValueError, match="baseline: there is no 'x'; choose from fed"):
        pairing(found, "x")


def test_differences_are_of_seeds_that_both_have(tmp_path):
    write_run(tmp_path / "a", config(seeds=2), TWO)
    other = {s: lines_of([x]) for s, x in ((1, 0.75), (2, 0.9))}
    write_run(tmp_path / "b", config("fedprox", seed=1, seeds=2), other)
    one, two = collect([tmp_path / "a", tmp_path / "b"]).entries
    found = difference(two, one, "acc")
    assert (found.seeds, found.paired.mean, found.paired.n) == ((1,), 0.25, 1)
    assert found.paired.low is None
    alone = two._replace(seeds={2: two.seeds[2]})
    assert difference(alone, one, "acc").paired is None
    running = two._replace(summaries={2: two.summaries[2]})  # seed 1 is not done
    assert difference(running, one, "acc").seeds == ()


def test_runs_of_scripts_with_other_parts_are_apart(tmp_path):
    for name, seed, parts in (("a", 0, "one"), ("b", 1, "other"), ("c", 2, "one")):
        write_run(tmp_path / name, config(seed=seed), {seed: TWO[0]})
        path = tmp_path / name / "config.json"
        values = json.loads(path.read_text()) | {"parts": {"model": parts}}
        path.write_text(json.dumps(values))
    entries = collect([tmp_path / name for name in "abc"]).entries
    assert [entry.planned for entry in entries] == [(0, 2), (1,)]


def test_many_entries_are_shown_in_groups(tmp_path):
    write_sweep(tmp_path / "s", ["fedavg", "fedprox", "fedcmi"], [0.1, 1, 5], 1, 1)
    found = collect([tmp_path / "s"])
    parts = groups(found, pairing(found))
    assert [part.title for part in parts] == [
        f"partition.alpha={alpha}" for alpha in ("0.1", "1", "5")
    ]
    assert all(len(part.entries) == 3 for part in parts)


def test_when_an_accuracy_is_reached(seeds):
    entry = collect([seeds]).entries[0]
    cohort = entry.config["clients_per_round"]
    per_round = 2 * sum(SIZES.values()) * cohort
    first, second = reached(entry, "acc", 0.5).values()
    assert first == Reached(5, 2.0, 5 * per_round)
    assert second == Reached(10, 4.0, 10 * per_round)
    assert reached(entry, "acc", 0.75) == {0: Reached(10, 4.0, 10 * per_round), 1: None}
    running = entry._replace(summaries={})
    assert reached(running, "acc", 0.5)[0] == Reached(5, 2.0, None)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": {"name": "fedprox", "mu": 0.5}, "seeds": 3},
        {"partition": {"name": "dirichlet", "alpha": 0.0512345678}, "clip_norm": 2.5},
        {"freeze": ["encoder/*"], "fixed_partition": True},
    ],
)
def test_the_command_trains_the_same_configuration(values):
    base = to_dict(presets.preset("noisy-digits"))
    own = fc.config.from_dict(base | values)
    args = shlex.split(command(to_dict(own)))
    assert args[0] == "fedcmi"
    assert to_dict(parse(args[1:]).config) == to_dict(own)


def damage(folder, name):
    if name == "config":
        (folder / "config.json").write_text('{"config": {"method": 3}}')
    elif name == "line":
        text = (folder / "seed-0/metrics.jsonl").read_text()
        (folder / "seed-0/metrics.jsonl").write_text("x\n" + text)
    elif name == "summary":
        (folder / "seed-0/summary.json").write_text('{"final": 3}')
    elif name == "plan":
        (folder / "plan.json").write_text('{"format": 7}')
    elif name == "cells":
        (folder / "plan.json").write_text('{"format": 1, "axes": [], "cells": [3]}')


def test_lines_of_mapped_seeds_without_their_values_are_named(tmp_path):
    write_run(tmp_path / "a", config(seeds=2, map_seeds=True), {})
    (tmp_path / "a/metrics.jsonl").write_text(json.dumps(TWO[0][0]) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl: lacks the values") as error:
        collect([tmp_path / "a"])
    assert "\n" not in str(error.value)


def test_what_is_no_row_of_recalls_is_left_out(seeds):
    entry = collect([seeds]).entries[0]
    entry.seeds[0][-1]["per_class"] = [0.5, "x", None]
    assert class_recalls(entry).shape == (1, 3)
    entry.seeds[1][-1]["per_class"] = 3
    assert class_recalls(entry) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config", "config.json: is not that of a run"),
        ("line", "metrics.jsonl, line 1: corrupt"),
        ("summary", "summary.json: has no valid 'final'"),
        ("plan", "plan.json: is no plan of format 1"),
        ("cells", "plan.json: has no valid 'cells'"),
    ],
)
def test_damaged_files_are_named_in_one_line(seeds, name, message):
    damage(seeds, name)
    with pytest.raises(ValueError, match=message) as error:
        collect([seeds])
    assert "\n" not in str(error.value)


def test_a_folder_given_twice_is_refused(seeds):
    with pytest.raises(ValueError, match="is given twice"):
        collect([seeds, seeds / ".." / "a"])
