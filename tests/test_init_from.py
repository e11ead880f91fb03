"""Runs that start from saved or pretrained arrays."""

import json
import shutil

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.blocks import by_path
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.raw import safetensors as raw
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.initial import digest, initial_state
from fedcmi_jax.experiment.model import first_start
from fedcmi_jax.testing import problem
from fedcmi_jax.testing.problem import all_equal, assert_equal
from fedcmi_jax.types import Start
from tests.test_freeze import normed
from tests.test_python_runs import VALUES


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run with a best round, and what it exports."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    fc.train(VALUES, output=folder)
    assert main(["export", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def experiment(source):
    return fc.load_run(source).experiment


def exported(source, ending="npz"):
    return source.with_name("one-export") / f"params.{ending}"


def test_a_run_or_its_export_gives_the_same(source, experiment):
    params, _ = fc.load_run(source).params()
    for where in (source, exported(source), exported(source, "safetensors")):
        assert_equal(fc.init_from(experiment.model, where), Start(params, {}))
    best = fc.init_from(experiment.model, f"{source}@best").params
    assert_equal(best, fc.load_run(source).params("best")[0])
    first = fc.init_from(experiment.model, f"{source}@1:encoder").params
    assert_equal(first, {"encoder": fc.load_run(source).params(1)[0]["encoder"]})
    assert not all_equal(first["encoder"], params["encoder"])


def test_blocks_are_taken_alone(source, experiment):
    strong, weak = experiment.model.modalities
    whole = fc.init_from(experiment.model, source).params
    found = fc.init_from(experiment.model, f"{exported(source)}:encoder/{strong}")
    assert_equal(found.params, {"encoder": {strong: whole["encoder"][strong]}})
    found = fc.init_from(experiment.model, exported(source), ["*/*/*/bias", "fusion"])
    assert found.params["encoder"][weak]["dense0"].keys() == {"bias"}
    assert found.params.keys() == {"encoder", "fusion"}


def test_all_that_a_method_keeps_starts_from_them():
    """Personal blocks (FedPer), last local models (MOON); the rest is as drawn."""
    model, fed = problem.model("classifier"), problem.federation()
    drawn, _ = model.init(jax.random.key(7))
    for method in (fc.methods.fedper(), fc.methods.moon()):
        algorithm = problem.algorithm(method, model)
        start = Start({"fusion": drawn["fusion"]}, {})
        state = algorithm.init(jax.random.key(0), fed, start)
        plain = algorithm.init(jax.random.key(0), fed)
        assert_equal(state.params["fusion"], drawn["fusion"])
        assert_equal(state.params["encoder"], plain.params["encoder"])
        kept = state.personal or state.memory
        assert_equal(jax.tree.map(lambda x: x[2], kept["fusion"]), drawn["fusion"])


def test_statistics_come_along(tmp_path):
    params, stats = normed().init(jax.random.key(0))
    stats = jax.tree.map(lambda x: x + 1, stats)
    arrays = by_path({"params": params, "batch_stats": stats})
    np.savez(tmp_path / "x.npz", **arrays)
    found = fc.init_from(normed(), f"{tmp_path}/x.npz:encoder/alpha")
    assert_equal(found.batch_stats["encoder"], {"alpha": stats["encoder"]["alpha"]})
    arrays.pop("batch_stats/encoder/alpha/norm/var")
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match="lacks batch_stats/encoder/alpha/norm/var"):
        fc.init_from(normed(), tmp_path / "x.npz")


def test_a_run_goes_on_without_the_file_and_starts_over_with_it_only(
    source, experiment, tmp_path
):
    file, folder = tmp_path / "x.npz", tmp_path / "run"
    shutil.copy(exported(source), file)
    values = VALUES | {"init_from": f"{file}:encoder", "freeze": ["encoder/strong"]}
    config = fc.config.from_dict(values)
    trained = build(config)
    folder.mkdir()
    training.write_config(folder, config)
    done = training.train(trained, folder)
    loaded = fc.init_from(trained.model, source).params["encoder"]
    assert_equal(done.state.params["encoder"]["strong"], loaded["strong"])
    assert not all_equal(done.state.params["encoder"]["weak"], loaded["weak"])
    sent = json.loads((folder / "summary.json").read_text())["bytes_per_client"]
    assert sent["up"]["encoder/strong"] == sent["down"]["encoder/strong"] == 0
    assert sent["up"]["encoder/weak"] > 0
    content = json.loads((folder / "config.json").read_text())
    assert content["config"]["init_from"] == f"{file}:encoder"
    assert len(content["init_from_digest"]) == 64

    def again():
        return trained._replace(start=first_start(config, trained.model))

    moved = file.rename(tmp_path / "away.npz")
    shutil.rmtree(folder / "checkpoints" / "3")
    assert_equal(training.train(again(), folder).state, done.state)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="there is no file or folder"):
        training.train(again(), folder)
    arrays = dict(np.load(moved))
    np.savez(file, **{k: x + ("strong" in k) for k, x in arrays.items()})
    with pytest.raises(ValueError, match=r"has changed since .* put it back"):
        training.train(again(), folder)
    np.savez(file, **arrays)
    assert_equal(training.train(again(), folder).state, done.state)


@pytest.mark.slow
def test_mapped_seeds_all_start_from_it(source):
    values = VALUES | {"init_from": str(source), "seeds": 2, "map_seeds": True}
    experiment = build(fc.config.from_dict(values))
    state, params = initial_state(experiment), fc.load_run(source).params()[0]
    for seed in range(2):
        assert_equal(jax.tree.map(lambda x, s=seed: x[s], state.params), params)


def arrays(**changed):
    params, _ = problem.model("classifier").init(jax.random.key(0))
    return {k: x for k, x in (by_path(params) | changed).items() if x is not None}


@pytest.mark.parametrize(
    ("changed", "block", "message"),
    [
        ({}, ":encodr", "x.npz: 'encodr' names no block; choose from encoder/alpha, "),
        ({}, "@best", "x.npz@best: a file has no rounds"),
        (
            {"fusion/out/bias": np.zeros(7)},
            "",
            r"params/fusion/out/bias has shape \(7,\), the model's has \(4,\)",
        ),
        ({"head/bias": np.zeros(4)}, "", "the model has no params/head/bias"),
        (
            {"fusion/out/bias": None},
            "",
            "x.npz: lacks params/fusion/out/bias, which the model has",
        ),
        (
            {"fusion/out/bias": np.full(4, np.nan)},
            "",
            "params/fusion/out/bias holds what is no finite number",
        ),
        ({"fusion/out/bias": np.array(list("abcd"))}, "", "holds what is no finite"),
        ({"fusion/out/bias": np.array([None] * 4)}, "", "which only a pickle holds"),
    ],
)
def test_what_does_not_fit_is_named(changed, block, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(**changed))
    with pytest.raises(ValueError, match=message) as error:
        fc.init_from(problem.model("classifier"), f"{tmp_path}/x.npz{block}")
    assert "\n" not in str(error.value)
    assert str(error.value).count("x.npz") >= 1


def safetensors(dtype, shape, data):
    """A .safetensors file of one array, ``fusion/out/bias``, byte by byte."""
    view = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    head = json.dumps({"fusion/out/bias": view}).encode()
    return len(head).to_bytes(8, "little") + head + data


def test_half_precision_is_read_as_the_model_s(tmp_path):
    path, model = tmp_path / "x.safetensors", problem.model("classifier")
    ones = np.ones(4, np.uint16)
    for dtype, one in (("BF16", 0x3F80), ("F16", 0x3C00)):
        path.write_bytes(safetensors(dtype, [4], (one * ones).tobytes()))
        bias = fc.init_from(model, f"{path}:fusion/out/bias").params["fusion"]["out"]
        assert bias["bias"].dtype == np.float32
        assert bias["bias"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .safetensors file, or damaged"),
        (safetensors("F32", [4], bytes(16))[:-1], "no .safetensors file, or damaged"),
        (
            safetensors("F8_E5M2", [4], bytes(4)),
            "bias: is of type F8_E5M2; write it as",
        ),
        (
            safetensors("F32", [3], bytes(12)),
            "bias has shape (3,), the model's has (4,)",
        ),
    ],
)
def test_damaged_safetensors_are_named(content, message, tmp_path, monkeypatch):
    path, model = tmp_path / "x.safetensors", problem.model("classifier")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors") as error:
        fc.init_from(model, f"{path}:fusion/out/bias")
    assert message in str(error.value)
    monkeypatch.setattr(raw, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs safetensors; pip install"):
        fc.init_from(model, path)


def test_what_is_left_out_need_not_fit(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(**{"fusion/out/bias": np.zeros(7)}))
    model = problem.model("classifier")
    found = fc.init_from(model, f"{tmp_path}/x.npz:encoder/*")
    assert found.params.keys() == {"encoder"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--noisy-clients=0.5"], "noisy_clients: 0.5 has no effect without"),
        (["--init-from=run:"], "init_from: run: names no block"),
        (["--init-from=no.npz"], "init_from: there is no file or folder no.npz"),
        (["--freeze", "head/*"], "freeze: 'head/*' names no block"),
        (["--model.lora-rank=-1"], "model.lora_rank: -1 is negative"),
    ],
)
def test_mistakes_write_nothing(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--dataset.train-samples=60", "--dataset.test-samples=30"]
    plain = ["--clients=4", "--clients-per-round=2", "--method.name=fedavg"]
    assert main(["train", "synthetic", *data, *plain, "--devices=1", *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_names_and_contents():
    one = Start({"a": np.zeros(2, np.float32)}, {})
    others = [
        {"b": np.zeros(2, np.float32)},
        {"a": np.ones(2, np.float32)},
        {"a": np.zeros((2, 1), np.float32)},
    ]
    assert len({digest(one), *(digest(one._replace(params=x)) for x in others)}) == 4
    assert digest(one) == digest(one._replace(params={"a": np.zeros(2, np.float32)}))
