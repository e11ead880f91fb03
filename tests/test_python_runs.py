"""Training in one call, and a run's folder as an object."""

import shutil
import sys

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import training
from fedcmi_jax.testing.problem import all_equal, assert_equal
from tests.test_config import TINY
from tests.test_launch import metrics

VALUES = TINY | {
    "method": {"name": "fedavg"},
    "rounds": 3,  # as many checkpoints are kept
    "checkpoint_every": 1,
    "validation_fraction": 0.2,
}
VALUES["local"] = {"epochs": 1, "learning_rate": 0.3}
VALUES["dataset"] = VALUES["dataset"] | {"train_samples": 240}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, fc.train(VALUES, output=folder)


def test_a_run_is_that_of_the_command_line(trained, tmp_path, capsys):
    folder, history = trained
    again = tmp_path / "again"
    again.mkdir()
    config = fc.config.from_dict(VALUES)
    training.write_config(again, config)
    assert main(["resume", str(again), "--devices=1"]) == 0
    assert metrics(again) == metrics(folder)
    assert history.final["round"] == 3
    assert history.column("acc").tolist() == [x["acc"] for x in metrics(folder)]
    with pytest.raises(ValueError, match="column: no 'accuracy'; choose from .*'acc'"):
        history.column("accuracy")
    with pytest.raises(ValueError, match="round: 'bst'; give last, best"):
        fc.load_run(folder).params("bst")
    assert main(["resume", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_without_a_folder_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = fc.train(fc.config.from_dict(VALUES))
    assert_equal(history.params, trained[1].params)
    plain = [{k: v for k, v in x.items() if k != "seconds"} for x in history.records]
    assert plain == metrics(trained[0])
    assert list(tmp_path.iterdir()) == []


def test_a_list_is_no_configuration():
    with pytest.raises(ValueError, match="config: is of type list; give a Config"):
        fc.train(["synthetic"])


def test_progress_can_be_watched():
    class Rounds(fc.Callback):
        def __init__(self):
            self.seen = []

        def evaluated(self, record):
            self.seen.append(record["round"])

    watched = Rounds()
    fc.train(VALUES | {"rounds": 2}, callbacks=[watched])
    assert watched.seen == [1, 2]


def test_a_run_is_an_object(trained):
    folder, history = trained
    run = fc.load_run(folder)
    assert run.config == history.config
    params, _ = run.params()
    assert_equal(params, history.params)
    chosen = max(run.records(), key=lambda x: (x["val_acc"], -x["round"]))["round"]
    assert_equal(run.params("best"), run.params(chosen))
    other = run.params(3 if chosen == 1 else 1)
    assert not all_equal(run.params("best")[0], other[0])
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
        "holds what is no finite": inputs | {first: np.full((3, 4), 1e300)},
        "give images as floats": inputs | {first: np.zeros((3, 4), np.uint8)},
        "inputs: has list": [inputs],
    }
    for message, wrong in bad.items():
        with pytest.raises(ValueError, match=message):
            run.predict(wrong)
    tables = {
        "available: shape": np.ones((2, 2)),
        "neither 0 nor 1": np.full((3, 2), 2.0),
        "sample 1 has no modality": np.array([[1, 1], [0, 0], [1, 0]]),
    }
    for message, table in tables.items():
        with pytest.raises(ValueError, match=message):
            run.predict(inputs, table)
    with pytest.raises(ValueError, match="round: 99 is not in"):
        run.params(99)


def test_what_cannot_be_trained_or_opened_is_one_line(trained, tmp_path):
    with pytest.raises(ValueError, match="seeds: 2 is not one run"):
        fc.train(VALUES | {"seeds": 2})
    with pytest.raises(ValueError, match="takes one seed and one process"):
        fc.train(VALUES | {"seeds": 2, "map_seeds": True})
    with pytest.raises(ValueError, match="imports: 'json' is not a list"):
        fc.train(VALUES | {"imports": "json"})
    with pytest.raises(
        ValueError, match="dataset: .synthetic. is not a table of fields"
    ):
        fc.train({"dataset": "synthetic"})
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


def test_a_run_without_a_folder_stops_early_too(tmp_path):
    values = VALUES | {"rounds": 12, "early_stop_rounds": 1}
    in_memory, written = fc.train(values), fc.train(values, output=tmp_path / "run")
    assert in_memory.final["round"] == written.final["round"] < 12


def test_a_damaged_checkpoint_is_told(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "checkpoints" / "3" / "metadata.json").write_text("{}")
    run = fc.load_run(folder)
    with pytest.warns(UserWarning, match="3 is damaged and was skipped"):
        params, _ = run.params()
    assert_equal(params, run.params(2)[0])
