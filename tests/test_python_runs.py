"""Training in one call, and a run's folder as an object."""

import json
import sys

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.progress import Observer
from fedcmi_jax.testing.problem import assert_equal
from tests.test_config import TINY
from tests.test_launch import metrics

VALUES = TINY | {
    "method": {"name": "fedavg"},
    "rounds": 4,
    "checkpoint_every": 1,
    "validation_fraction": 0.2,
}
VALUES["local"] = {"epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, fc.train(VALUES, output=folder)


def test_a_run_is_that_of_the_command_line(trained, tmp_path, capsys):
    folder, history = trained
    (tmp_path / "config.json").write_text(json.dumps(VALUES))
    again = tmp_path / "again"
    again.mkdir()
    config = fc.config.from_dict(VALUES)
    training.write_config(again, config)
    assert main(["resume", str(again), "--devices=1"]) == 0
    assert metrics(again) == metrics(folder)
    assert history.final["round"] == 4
    assert history.column("acc").tolist() == [x["acc"] for x in metrics(folder)]
    assert main(["resume", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_without_a_folder_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = fc.train(fc.config.from_dict(VALUES))
    assert_equal(history.params, trained[1].params)
    plain = [{k: v for k, v in x.items() if k != "seconds"} for x in history.records]
    assert plain == metrics(trained[0])
    assert list(tmp_path.iterdir()) == []


def test_progress_can_be_watched():
    class Rounds(Observer):
        def __init__(self):
            self.seen = []

        def evaluated(self, record):
            self.seen.append(record["round"])

    watched = Rounds()
    fc.train(VALUES | {"rounds": 2}, observer=watched)
    assert watched.seen == [1, 2]


def test_a_run_is_an_object(trained):
    folder, history = trained
    run = fc.load_run(folder)
    assert run.config == history.config
    params, _ = run.params()
    assert_equal(params, history.params)
    chosen = max(run.records(), key=lambda x: (x["val_acc"], -x["round"]))["round"]
    assert_equal(
        run.params("best"), run.params(chosen) if chosen > 1 else run.params("best")
    )
    assert run.evaluate()["acc"] == history.final["acc"]
    assert set(run.metrics()) >= {"round", "acc", "val_acc"}


def test_predictions_are_those_that_are_evaluated(trained):
    run = fc.load_run(trained[0])
    data = run.experiment.dataset
    logits = run.predict(data.test.inputs)
    assert logits.shape == (data.test.size, data.num_classes)
    accuracy = (logits.argmax(1) == data.test.labels).mean()
    assert accuracy == pytest.approx(run.evaluate()["acc"], abs=1e-6)
    other = run.evaluate(data)
    assert other["acc"] == run.evaluate()["acc"]
    first = data.modalities[0]
    only = np.array([[1, 0]] * data.test.size)
    changed = {m: x if m == first else x + 9 for m, x in data.test.inputs.items()}
    np.testing.assert_array_equal(
        run.predict(changed, only), run.predict(data.test.inputs, only)
    )


def test_wrong_samples_are_one_line(trained):
    run = fc.load_run(trained[0])
    inputs = {m: x[:3] for m, x in run.experiment.dataset.test.inputs.items()}
    first = next(iter(inputs))
    bad = {
        "inputs: has": {first: inputs[first]},
        r"shape \(3, 2\)": inputs | {first: np.zeros((3, 2))},
        "numbers of samples differ": inputs | {first: inputs[first][:2]},
        "no finite number": inputs | {first: inputs[first] * np.nan},
    }
    for message, wrong in bad.items():
        with pytest.raises(ValueError, match=message):
            run.predict(wrong)
    with pytest.raises(ValueError, match="available: shape"):
        run.predict(inputs, np.ones((2, 2)))
    with pytest.raises(ValueError, match="round: 99 is not in"):
        run.params(99)


def test_what_cannot_be_trained_or_opened_is_one_line(trained, tmp_path):
    with pytest.raises(ValueError, match="seeds: 2 is not one run"):
        fc.train(VALUES | {"seeds": 2})
    with pytest.raises(ValueError, match="exists; choose another"):
        fc.train(VALUES, output=trained[0])
    with pytest.raises(ValueError, match="did you mean 'fedprox'"):
        fc.train({"method": {"name": "fedprx"}})
    with pytest.raises(ValueError, match="is no run: there is no such folder"):
        fc.load_run(tmp_path / "nothing")


def test_pandas_is_used_where_it_is(trained, monkeypatch):
    class Frames:
        @staticmethod
        def DataFrame(columns):  # noqa: N802
            return sorted(columns)

    monkeypatch.setitem(sys.modules, "pandas", Frames)
    assert "acc" in fc.load_run(trained[0]).metrics()


def test_several_devices_change_no_bit(trained):
    from fedcmi_jax.placement import client_mesh

    history = fc.train(VALUES, mesh=client_mesh(2))
    assert_equal(jax.device_get(history.params), trained[1].params)
