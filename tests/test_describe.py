"""fedcmi data describe: what it prints and draws is what training would deal."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from matplotlib import image

from fedcmi_jax.cli import describe, parser
from fedcmi_jax.cli.main import main
from fedcmi_jax.evaluation import metrics as evaluation
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.results import holdings_figure
from fedcmi_jax.results.holdings import Holdings, holdings
from tests.test_config import tiny

FLAGS = [
    "synthetic",
    "--dataset.train-samples=120",
    "--dataset.test-samples=30",
    "--dataset.num-classes=3",
    "--clients=6",
]


def described(*flags):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert parser.parse(["data", "describe", *FLAGS, *flags]).run() == 0
    return out.getvalue().removesuffix("\n")


def row(text, name):
    """The numbers of a table's row."""
    (line,) = (x for x in text.splitlines() if x.startswith(f"{name} "))
    return line.removeprefix(name).split()


@pytest.mark.parametrize("name", configs.REGISTRIES["partition"])
def test_holdings_are_those_of_training(name):
    natural = name.startswith("natural")
    values = {"clients": 0} if natural else {}
    dataset = configs.from_dict({"dataset": tiny_dataset()}).dataset
    config = tiny(partition={"name": name}, **values)
    config = dataclasses.replace(config, dataset=dataset)
    found, built = holdings(config), build(config)
    counts = evaluation.client_class_counts(built.federation, 3)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.available, built.federation.available)


def tiny_dataset():
    return {
        "name": "synthetic",
        "train_samples": 120,
        "num_classes": 3,
        "natural_clients": 2,
    }


def test_what_is_printed_by_hand():
    text = described("--partition.name=iid", "--multimodal-fraction=0.5")
    first, *_ = text.splitlines()
    assert first == (
        "synthetic, iid: 120 training samples at 6 clients, 30 test samples, 3 classes"
    )
    assert row(text, "samples") == ["20", "20", "20", "20"]
    # Three clients have both; of the others one has strong and two have weak.
    assert row(text, "modalities") == ["1", "1.5", "1.5", "2"]
    assert row(text, "strong") == ["4", "1", "2", "80"]
    assert row(text, "weak") == ["5", "2", "1", "100"]
    assert row(text, "all of them") == ["3", "3", "60"]
    assert len(text.split("client ")[-1].splitlines()) == 7


def test_wrong_labels_are_counted():
    flags = ["--partition.name=iid", "--label-noise=0.25"]
    assert "\n30 training labels are wrong: label noise\n" in described(*flags)
    assert "wrong" not in described("--partition.name=iid")


def test_samples_that_lack_a_modality_are_not_counted():
    flags = [
        "--partition.name=iid",
        "--multimodal-fraction=1",
        "--missing-fraction=0.5",
    ]
    text = described(*flags)
    strong, weak = (row(text, name)[-1] for name in ("strong", "weak"))
    assert int(strong) + int(weak) == 120 + 60
    assert row(text, "all of them") == ["6", "0", "60"]


def test_classes_of_each_client():
    flags = ["--partition.name=pathological", "--partition.classes-per-client=1"]
    text = described(*flags)
    assert row(text, "classes") == ["1", "1", "1", "1"]
    for i in range(6):
        samples, classes, _, share, *_ = row(text, str(i))
        assert (samples, classes, share) == ("20", "1", "100%")


def test_many_clients_are_cut():
    text = described("--clients=40", "--partition.name=iid")
    assert text.endswith("... and 10 more; --output=FILE.png shows all")
    assert "\n29 " in text
    assert "\n30 " not in text


def test_samples_that_nobody_holds_and_empty_clients_are_named():
    flags = ["--partition.alpha=1e-6", "--partition.min-samples=0"]
    text = described(*flags)
    assert row(text, "samples")[0] == "0"
    counts = np.zeros((2, 3), int)
    counts[0] = 3
    found = Holdings(
        "x",
        counts,
        np.ones((2, 1), bool),
        np.ones((9, 1), bool),
        ("a", "b", "c"),
        ("m",),
        4,
        np.zeros(3, int),
    )
    assert "4 training samples are held by no client" in describe.text(found)


@pytest.mark.parametrize("clients", [1, 6, 105])
def test_the_picture(clients, tmp_path):
    path = tmp_path / "who.png"
    flags = (f"--clients={clients}", "--partition.name=shards")
    flags = (*flags, "--partition.shards-per-client=1", f"--output={path}")
    text = described(*flags)
    assert text.endswith(f"written: {path}")
    height, width, _ = image.imread(path).shape
    assert 300 < height < 2000
    assert 500 < width < 2000


def test_class_names_are_those_of_the_picture(tmp_path):
    config = parser.parse(["data", "describe", *FLAGS]).config
    found = holdings(config)
    long = found._replace(class_names=("a" * 60, "b", "c"))
    holdings_figure.draw(long, tmp_path / "long.png")
    holdings_figure.draw(found, tmp_path / "short.png")
    long, short = (image.imread(tmp_path / f"{n}.png") for n in ("long", "short"))
    assert long.shape[0] < 3 * short.shape[0]


def test_the_command(capsys):
    assert main(["data", "describe", *FLAGS]) == 0
    assert capsys.readouterr().out.startswith("synthetic, dirichlet: 120 training")
    assert main(["data", "describe", *FLAGS, "--output=x.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedcmi: error: --output: x.jpg")


def test_help(capsys):
    assert main(["data", "describe", "--help"]) == 0
    assert "usage: fedcmi data describe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=who.jpg"], "--output: who.jpg .* end it in .png"),
        (["--output=nowhere/who.png"], "--output: no folder nowhere"),
        (["--partition.name=iids"], "did you mean 'iid'"),
        (["--clients=0"], "^clients=0: .*natural"),
        (["--clients=-1"], "clients: -1 is negative"),
        (["--partition.name=natural"], "no natural clients"),
        (["--dataset.num-classes=0"], "num_classes=0"),
    ],
)
def test_mistakes_take_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        described(*flags)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_out_is_said():
    text = described(
        "--partition.name=iid",
        "--validation-fraction=0.2",
        "--client-test-fraction=0.1",
        "--holdout-clients=1",
    )
    first, *lines = text.splitlines()
    assert "70 training samples at 5 clients" in first
    assert lines[:3] == [
        "20 more samples are the clients' validation samples",
        "10 more samples are the clients' own test samples",
        "20 more samples are for testing only; held-out clients: 1",
    ]
    assert "held by no client" not in text
    assert row(text, "samples") == ["14", "14", "14", "14"]
    assert row(text, "validation") == ["4", "4", "4", "4"]
    assert row(text, "own test") == ["2", "2", "2", "2"]
    assert row(text, "0")[:3] == ["14", "4", "2"]


NATURAL = {"clients": 0, "clients_per_round": 1, "multimodal_fraction": 1.0}


@pytest.mark.parametrize(
    ("partition", "values", "names"),
    [
        ({"name": "natural"}, {}, ["ada", "bo", "cy"]),
        ({"name": "natural"}, {"holdout_clients": 2}, None),
        ({"name": "natural", "merge": True}, {"clients": 1}, ["ada+bo+cy"]),
        ({"name": "natural_dirichlet", "per_client": 2, "min_samples": 1}, {}, []),
        ({"name": "iid"}, {"clients": 3}, []),
    ],
)
def test_natural_clients_have_their_own_names(
    partition, values, names, tmp_path, monkeypatch
):
    people = np.array(["cy", "bo", "ada"])[np.arange(36) % 3]
    x, y = np.zeros((36, 2)), np.arange(36) // 3 % 3
    own = {"train/x": x, "train/labels": y, "train/clients": people}
    np.savez(tmp_path / "own.npz", **own, **{"test/x": x, "test/labels": y})
    dataset = {"name": "npz", "path": str(tmp_path / "own.npz")}
    values = NATURAL | {"dataset": dataset, "partition": partition} | values
    found = holdings(configs.from_dict(values))
    if names is None:  # whoever is left, under the own name
        assert found.names in (("ada",), ("bo",), ("cy",))
    else:
        assert found.names == tuple(names)
    expected = found.names or tuple(map(str, range(len(found.counts))))
    rows = describe.text(found).split("client ")[-1].splitlines()[1:]
    assert tuple(line.split()[0] for line in rows) == expected
    holdings_figure.draw(found, tmp_path / "names.png")


def test_numbers_of_the_source_are_kept():
    dataset = configs.from_dict({"dataset": tiny_dataset()}).dataset
    config = tiny(partition={"name": "natural"}, clients=0)
    found = holdings(dataclasses.replace(config, dataset=dataset))
    assert found.names == ("0", "1")
