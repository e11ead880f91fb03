"""``fedcmi evaluate``, ``predict``, ``export``: the model of a run, used."""

import json

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.blocks import by_path
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.raw.safetensors import read_safetensors
from fedcmi_jax.testing import problem as problems
from tests.test_python_runs import VALUES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    fc.train(VALUES, output=folder)
    return fc.load_run(folder)


def samples(run, path, **changed):
    inputs = dict(run.experiment.dataset.test.inputs) | changed
    np.savez(path, **inputs)
    return path


def test_evaluate_prints_the_metrics(run, capsys):
    assert main(["evaluate", str(run.folder), "--round=best"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["acc"] == run.evaluate(round="best")["acc"]


def test_predict_writes_logits_and_labels(run, tmp_path):
    source, target = samples(run, tmp_path / "x.npz"), tmp_path / "y.npz"
    flags = [f"--input={source}", f"--output={target}"]
    assert main(["predict", str(run.folder), *flags]) == 0
    with np.load(target) as found:
        logits = run.predict(run.experiment.dataset.test.inputs)
        np.testing.assert_array_equal(found["logits"], logits)
        np.testing.assert_array_equal(found["labels"], logits.argmax(1))
        np.testing.assert_allclose(found["probabilities"].sum(1), 1, rtol=1e-6)
        assert found["class_names"].tolist() == ["0", "1", "2"]


def test_an_exported_model_computes_the_same_for_any_number(run, tmp_path):
    folder = tmp_path / "model"
    assert main(["export", str(run.folder), f"--output={folder}"]) == 0
    program = jax.export.deserialize((folder / "predict.jax").read_bytes())
    assert (folder / "predict.stablehlo").read_bytes()[:4] == b"ML\xefR"
    inputs = run.experiment.dataset.test.inputs
    for n in (1, 7):
        some = {m: x[:n] for m, x in inputs.items()}
        logits = program.call(some, np.ones((n, 2), np.float32))
        np.testing.assert_allclose(logits, run.predict(some), rtol=1e-5, atol=1e-6)
    with np.load(folder / "params.npz") as arrays:
        params, stats = run.params()
        expected = by_path({"params": params, "batch_stats": stats})
        assert set(arrays.files) == set(expected)
        for name, x in expected.items():
            np.testing.assert_array_equal(arrays[name], x)
    again = read_safetensors(folder / "params.safetensors")
    problems.assert_equal(again, {k: np.asarray(x) for k, x in expected.items()})
    described = json.loads((folder / "model.json").read_text())
    assert described["class_names"] == ["0", "1", "2"]
    assert described["shapes"] == {m: [4] for m in described["modalities"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["predict", "RUN"], "give --input=SAMPLES.npz and --output=NEW.npz"),
        (["predict", "RUN", "--input=no.npz", "--output=y.npz"], "no file no.npz"),
        (["predict", "RUN", "--input=odd.npz", "--output=y.npz"], "no .npz file"),
        (["predict", "RUN", "--input=wide.npz", "--output=y.npz"], "shape (20, 9)"),
        (["predict", "RUN", "--input=wide.npz", "--output=no/y.npz"], "no folder no"),
        (["predict", "RUN", "--input=wide.npz", "--output=odd.npz"], "exists"),
        (["evaluate", "RUN", "--round=newest"], "'newest'; give last, best"),
        (["evaluate", "RUN", "--round=77"], "round: 77 is not in"),
        (["evaluate", "nothing"], "nothing is no run"),
        (["export", "RUN", "--output=odd.npz"], "is a file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    run, flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.npz").write_text("no archive")
    first = run.experiment.dataset.modalities[0]
    samples(run, tmp_path / "wide.npz", **{first: np.zeros((20, 9), np.float32)})
    before = sorted(tmp_path.iterdir())
    assert main([str(run.folder) if x == "RUN" else x for x in flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
