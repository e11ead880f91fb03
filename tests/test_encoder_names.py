"""An encoder of its own for every modality; a data set of files from the command."""

import numpy as np
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.experiment import build
from tests import media_files

SIZE = 8  # pixels of a side


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    media_files.write_crisismmd(root / "crisismmd")
    return root


def crisismmd_config(originals, **values):
    return configs.from_dict(
        {
            "dataset": {
                "name": "crisismmd",
                "root": str(originals / "crisismmd"),
                "image_size": SIZE,
                "cache_dir": str(originals / "cache"),
            },
            "partition": {"name": "iid"},
            "encoder": {"name": "text", "features": 4, "width": 4, "buckets": 16},
            "encoder_names": ("mlp", "text"),
            "clients": 2,
            "clients_per_round": 1,
        }
        | values
    )


def test_every_modality_has_its_own_encoder(originals):
    experiment = build(crisismmd_config(originals))
    params, _ = experiment.model.init(experiment.key)
    # mlp by its defaults, text by the section's options.
    assert params["encoder"]["image"]["dense0"]["kernel"].shape == (SIZE * SIZE * 3, 64)
    assert params["encoder"]["text"]["embedding"].shape == (16, 4)
    assert experiment.federation.inputs["text"].dtype == np.int32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mlp",), "encoder_names: 1 for the 2 modalities image, text; give one each"),
        (("mlp", "txt"), "encoder_names: unknown 'txt'; did you mean 'text'"),
        (("mlp", "mlp"), "'text' has token ids, which encoder 'mlp' does not take"),
        (("text", "text"), "'image' has numbers, which encoder 'text' does not take"),
        ((), "'image' has numbers, which encoder 'text' does not take"),
    ],
)
def test_encoder_names_are_checked(originals, names, message):
    with pytest.raises(ValueError, match=message) as error:
        build(crisismmd_config(originals, encoder_names=names))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_train_shows_progress_and_notes(originals, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(
        [
            "train",
            "crisismmd",
            f"--dataset.root={originals / 'crisismmd'}",
            f"--dataset.cache-dir={tmp_path / 'cache'}",
            "--dataset.image-size=8",
            "--dataset.tokens=4",
            "--encoder-names=mlp,text",
            "--method.name=fedavg",
            "--clients=2",
            "--clients-per-round=2",
            "--validation-fraction=0",  # of three samples there is no share
            "--partition.name=iid",
            "--rounds=1",
            "--local.epochs=1",
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "crisismmd-train-" in err
    assert "3 of 3 samples" in err
    assert "crisismmd: 2 tweets cut to their first 4 tokens" in err
    assert "test accuracy" in out


def test_data_prepare_shows_progress_counts_and_notes(originals, tmp_path, capsys):
    code = main(
        [
            "data",
            "prepare",
            "crisismmd",
            f"--root={originals / 'crisismmd'}",
            f"--cache-dir={tmp_path / 'cache'}",
            "--image-size=8",
            "--tokens=4",
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "3 of 3 samples" in out
    assert "crisismmd: 2 tweets cut to their first 4 tokens" in out
    assert "crisismmd: image (8, 8, 3), text (4,)" in out
    assert out.splitlines()[-1].split() == ["clients", "2", "2"]


def test_train_without_root_is_one_line(capsys):
    assert main(["train", "cremad"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "root: not given; give the folder with AudioWAV/" in err
