"""Objects of a script in the place of what a configuration names."""

import dataclasses
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.cohort import named_key
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.one_call import config_of
from fedcmi_jax.experiment.parts import digest
from fedcmi_jax.experiment.run_list import find_runs
from fedcmi_jax.results.collect import collect
from fedcmi_jax.testing import problem as problems

VALUES = {
    "rounds": 3,
    "clients": 4,
    "clients_per_round": 2,
    "multimodal_fraction": 1.0,
    "checkpoint_every": 1,
    "local": {"epochs": 1, "batch_size": 8},
    "model": {"width": 4},
}


class Small(nn.Module):
    """An encoder as a user writes one."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x))


def halve():
    """A method as a user writes one: every gradient halved."""

    def update(client, grads, step, context):
        return jax.tree.map(lambda g: g / 2, grads), context

    return fc.Method(name="halve", update=update)


def own():
    """A data set of arrays, encoders, a method."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    arrays = {m: rng.normal(size=(60, 5)) + y[:, None] for m in ("a", "b")}
    dataset = fc.data.from_arrays(arrays, y, arrays, y)
    return {
        "dataset": dataset,
        "encoders": {"a": Small(), "b": Small()},
        "method": halve(),
    }


class Stops(fc.Callback):
    """As Ctrl-C after the first round."""

    def evaluated(self, record):
        if record["round"] == 1:
            signal.raise_signal(signal.SIGINT)


def test_a_script_trains_resumes_and_uses_its_own(tmp_path, capsys):
    folder = tmp_path / "run"
    whole = fc.train(VALUES, **own())
    with pytest.raises(training.Interrupted):
        fc.train(VALUES, **own(), output=folder, callbacks=[Stops()])
    resumed = fc.resume(folder, **own())
    assert [r["round"] for r in resumed.records] == [1, 2, 3]
    problems.assert_equal(resumed.params, whole.params)

    run = fc.load_run(folder, **own())
    inputs = own()["dataset"].test.inputs
    accuracy = (run.predict(inputs).argmax(1) == own()["dataset"].test.labels).mean()
    assert accuracy == pytest.approx(whole.records[-1]["acc"])

    assert main(["resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fc.resume" in line
    assert "dataset, encoders, method" in line


def test_a_finished_run_is_returned_and_other_data_are_refused(tmp_path):
    folder = tmp_path / "run"
    whole = fc.train(VALUES, **own(), output=folder)
    before = (folder / training.SUMMARY).read_bytes()
    again = fc.resume(folder, **own())
    problems.assert_equal(again.params, whole.params)
    assert again.records == whole.records
    assert (folder / training.SUMMARY).read_bytes() == before

    other = own()
    train = other["dataset"].train
    flipped = train._replace(labels=train.labels[::-1].copy())
    other["dataset"] = other["dataset"]._replace(train=flipped)
    with pytest.raises(ValueError, match="was trained with dataset arrays"):
        fc.resume(folder, **other)
    (row,) = find_runs(tmp_path)
    assert (row.method, row.preset) == ("halve", "(script)")


def hits(logits, labels, valid):
    return ((logits.argmax(-1) == labels) * valid).sum(), valid.sum()


def test_own_metrics_are_columns_of_a_run(tmp_path):
    values = VALUES | {"validation_fraction": 0.2}
    plain = fc.train(values, **own())
    mine = own() | {
        "metrics": {"hits": hits, "none": lambda z, y, v: (0.0, 0 * v.sum())}
    }
    history = fc.train(values, **mine, output=tmp_path / "run")
    for line, without in zip(history.records, plain.records, strict=True):
        assert line["hits"] == pytest.approx(line["acc"])
        assert line["val_hits"] == pytest.approx(line["val_acc"])
        added = {"hits", "val_hits", "none", "val_none", "seconds"}
        assert line.keys() - without.keys() == added
        for name in without:
            assert line[name] == pytest.approx(without[name])
        assert line["none"] is None  # a metric over nothing
    run = fc.load_run(tmp_path / "run", **mine)
    assert run.evaluate()["hits"] == run.evaluate(mine["dataset"])["hits"]
    assert run.evaluate()["hits"] == history.final["hits"]
    other = own() | {"metrics": {"hit": hits}}
    with pytest.raises(
        ValueError, match="was trained with metrics hits, none, not hit"
    ):
        fc.resume(tmp_path / "run", **other)
    # What does not go on needs no metrics.
    inputs = mine["dataset"].test.inputs
    without = fc.load_run(tmp_path / "run", **own()).predict(inputs)
    problems.assert_equal(without, run.predict(inputs))
    fc.report([tmp_path / "run"], tmp_path / "report")
    assert "hits" in (tmp_path / "report" / "numbers.csv").read_text()


def test_a_metric_of_a_script_and_one_of_its_method_have_two_names():
    def loss(client, outputs, batch, context):
        return 0.0, {"hits": (batch.valid.sum(), batch.valid.sum())}

    mine = own() | {"method": fc.Method(name="mine", loss=loss)}
    assert fc.train(VALUES, **mine).final["hits"] == 1
    with pytest.raises(ValueError, match="'hits' is the name of a training metric"):
        fc.train(VALUES, **mine, metrics={"hits": hits})


def test_runs_that_differ_in_own_metrics_are_one_entry(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    fc.train(VALUES, **own(), output=folders[0])
    fc.train(VALUES | {"seed": 1}, **own(), metrics={"hits": hits}, output=folders[1])
    (entry,) = collect(folders).entries
    assert list(entry.seeds) == [0, 1]


@pytest.mark.parametrize("change", ["sequential", "clients", "available"])
def test_who_has_what_is_in_the_digest_of_a_data_set(change):
    dataset = own()["dataset"]
    ids = np.zeros(dataset.train.size, np.int32)
    value = {"sequential": True, "clients": ids, "available": ids[:, None] == 0}[change]
    other = dataset._replace(train=dataset.train._replace(**{change: value}))
    assert digest(other) != digest(dataset)


@pytest.mark.slow
def test_a_modality_of_several_arrays_under_fedcmi_finishes(tmp_path):
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x["ids"] * x["mask"])

    rng, y = np.random.default_rng(0), np.arange(40) % 2
    text = {"ids": rng.normal(size=(40, 5)), "mask": np.ones((40, 5))}
    arrays = {"text": text, "b": rng.normal(size=(40, 5))}
    dataset = fc.data.from_arrays(arrays, y, arrays, y)
    encoders = {"text": Masked(), "b": Small()}
    values = VALUES | {"method": {"name": "fedcmi"}}
    fc.train(values, dataset=dataset, encoders=encoders, output=tmp_path / "run")
    assert "bytes_per_client" in (tmp_path / "run" / training.SUMMARY).read_text()


def test_a_model_of_a_script_is_frozen_as_the_configuration_says():
    dataset = own()["dataset"]
    model = fc.models.classifier(own()["encoders"], dataset.shapes, 3)
    values = VALUES | {"method": {"name": "fedavg"}, "freeze": ("encoder/*",)}
    history = fc.train(values, dataset=dataset, model=model)
    start = model.init(named_key(jax.random.key(0), "init"))[0]
    problems.assert_equal(history.params["encoder"], start["encoder"])
    with pytest.raises(ValueError, match="names no block"):
        fc.train(values | {"freeze": ("nosuch",)}, dataset=dataset, model=model)


def test_a_preset_is_what_dicts_are_laid_over():
    config = config_of({"preset": "synthetic", "rounds": 1, "local": {"epochs": 3}})
    base = config_of("synthetic")
    assert config.dataset == base.dataset
    assert config.local == dataclasses.replace(base.local, epochs=3)
    assert (config.rounds, config.preset) == (1, "synthetic")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dataset": "digits"}, "dataset: 'digits' is no Dataset"),
        ({"method": "fedavg"}, "method: 'fedavg' is no Method"),
        ({"model": object(), "encoders": {}}, "encoders: the model has its own"),
        ({"encoders": Small()}, "encoders: give a dict"),
        ({"metrics": hits}, "metrics: give a dict"),
        ({"metrics": {"hits": 1}}, "metrics: give a dict"),
        ({"metrics": {"a b": hits}}, "metrics: 'a b' is no column's name"),
        ({"metrics": {"seconds": hits}}, "metrics: 'seconds' is taken"),
        ({"metrics": {"accurate": hits}}, "metrics: 'accurate' is taken"),
        ({"metrics": {"m": lambda z, y, v: z}}, "metrics: 'm' gives .* give a pair"),
        (
            {"metrics": {"m": lambda z, y: (z, y)}},
            "'m' cannot be traced .*2 positional",
        ),
        ({"metrics": {"m": lambda z, y, v: float(v[0])}}, "'m' cannot be traced"),
        ({"encoders": {"a": Small()}}, "encoders: given for"),
    ],
)
def test_wrong_parts_are_one_line(parts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fc.train(VALUES, **parts, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
