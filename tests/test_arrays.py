"""Data of one's own: arrays, files and folders of arrays, and what is refused."""

import io
import re
import zipfile

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment.config_file import read_config, write_config
from fedcmi_jax.experiment.split import load_dataset
from fedcmi_jax.experiment.split import split as split_clients


def arrays(n=12, seed=0):
    """Two modalities, three classes, four clients named by strings."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    found = {"train": {}, "test": {}}
    for split in found.values():
        split["sound"] = rng.normal(size=(n, 5)) + labels[:, None]
        split["words"] = rng.integers(0, 50, size=(n, 4))
        split["labels"] = labels
    found["train"]["clients"] = np.array(["b", "a", "d", "c"])[np.arange(n) % 4]
    return found


def keys(found):
    return {f"{s}/{k}": x for s, split in found.items() for k, x in split.items()}


def of_arrays(found, **options):
    train, test = dict(found["train"]), dict(found["test"])
    clients = train.pop("clients", None)
    labels, test_labels = train.pop("labels"), test.pop("labels")
    return fc.data.from_arrays(
        train, labels, test, test_labels, clients=clients, **options
    )


def test_arrays_become_a_data_set():
    found = arrays()
    data = of_arrays(found)
    assert data.modalities == ("sound", "words")
    assert data.class_names == ("0", "1", "2")
    assert data.train.inputs["sound"].dtype == np.float32
    assert data.train.inputs["words"].dtype == np.int32
    np.testing.assert_array_equal(data.train.clients[:4], [1, 0, 3, 2])
    assert data.client_names == ("a", "b", "c", "d")
    parts = fc.partition.natural(data.train, 4, np.random.default_rng(0))
    assert parts.sizes.tolist() == [3, 3, 3, 3]


def test_of_overlapping_rows_those_held_out_are_runs(tmp_path):
    found = arrays(n=40)
    found["train"]["labels"] = np.arange(40) // 20
    del found["train"]["clients"]
    path = tmp_path / "own.npz"
    np.savez(path, **keys(found))
    values = {"clients": 1, "clients_per_round": 1, "validation_fraction": 0.25}
    options = {"name": "npz", "path": str(path), "sequential": True}
    config = fc.config.from_dict(
        values | {"dataset": options, "partition": {"name": "iid"}}
    )
    data = load_dataset(config.dataset, print)
    held = split_clients(config, data).validation.rows
    assert sorted(held) == [*range(15, 20), *range(35, 40)]  # a run of each class
    assert data.train.sequential
    assert data.test.sequential
    assert of_arrays(found, sequential=True).train.sequential
    assert not of_arrays(found).train.sequential


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_file_or_folder_is_those_arrays(form, tmp_path):
    found = keys(arrays()) | {"class_names": np.array(["x", "y", "z"])}
    path = tmp_path / "own"
    if form == "file":
        path = tmp_path / "own.npz"
        np.savez(path, **found)
    else:
        for key, x in found.items():
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            np.save(path / f"{key}.npy", x)
    data = fc.data.load("npz", path=str(path))
    expected = of_arrays(arrays(), class_names=("x", "y", "z"), name="own")
    assert data._replace(train=None, test=None) == expected._replace(
        train=None, test=None
    )
    for ours, theirs in ((data.train, expected.train), (data.test, expected.test)):
        for m in data.modalities:
            np.testing.assert_array_equal(ours.inputs[m], theirs.inputs[m])
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(data.train.clients, expected.train.clients)


def test_a_folder_of_float32_is_read_as_memory_maps(tmp_path):
    for key, x in keys(arrays()).items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{key}.npy", x.astype(np.float32) if "sound" in key else x)
    data = fc.data.load("npz", path=str(tmp_path))
    assert isinstance(data.train.inputs["sound"], np.memmap)


def without_inputs(found):
    for split in found.values():
        del split["sound"], split["words"]


BAD = {
    "no modality": (
        lambda f: [f[s].pop(m) for s in f for m in ("sound", "words")],
        "no modality",
    ),
    "lengths": (
        lambda f: f["train"].update(sound=np.zeros((3, 5))),
        "3 samples for 12",
    ),
    "objects": (
        lambda f: f["train"].update(sound=np.array([None] * 12)),
        "train, modality 'sound': is of object; give floats",
    ),
    "strings": (
        lambda f: f["test"].update(words=np.array(["a"] * 12)),
        "test, modality 'words': is of <U1; give floats",
    ),
    "bytes": (
        lambda f: f["train"].update(sound=np.zeros((12, 5), np.uint8)),
        "give images as floats",
    ),
    "NaN": (
        lambda f: f["train"]["sound"].__setitem__((4, 0), np.nan),
        "row 4: value is not finite",
    ),
    "float labels": (
        lambda f: f["train"].update(labels=np.zeros(12)),
        "label 0.0 is no integer",
    ),
    "other modalities": (lambda f: f["test"].pop("words"), "test: has modalities"),
    "other shape": (
        lambda f: f["test"].update(sound=np.zeros((12, 6))),
        "a sample of 'sound' has shape (6,), in train (5,)",
    ),
    "a number": (lambda f: f["train"].update(sound=1.0), "is a single number"),
    "large labels": (
        lambda f: f["train"].update(labels=np.arange(12) + 2**32),
        "no class index",
    ),
    "one label": (lambda f: f["test"].update(labels=1), "labels: of shape ()"),
    "ragged": (
        lambda f: f["train"].update(sound=[[1.0], [1.0, 2.0]] * 6),
        "its rows have different shapes",
    ),
    "smallest ids": (
        lambda f: f["train"]["words"].__setitem__((2, 0), np.iinfo(np.int64).min),
        "does not fit int32",
    ),
    "large ids": (
        lambda f: f["train"]["words"].__setitem__((2, 0), 2**40),
        "row 2: 1.1e+12 does not fit int32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_unsound_is_one_line(name):
    found = arrays()
    spoil, message = BAD[name]
    spoil(found)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        of_arrays(found)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", ["train", "test"])
@pytest.mark.parametrize("values", [np.zeros((4, 3)), [np.zeros((4, 3))]])
def test_inputs_that_are_no_dict(which, values):
    x, y = {"a": np.zeros((4, 3))}, np.array([0, 1, 0, 1])
    given = {"train": x, "labels": y, "test": x, "test_labels": y} | {which: values}
    with pytest.raises(ValueError, match=f"^{which}: is of type .*; give a dict"):
        fc.data.from_arrays(**given)


def test_names_that_no_modality_has():
    found = arrays()
    for split in found.values():
        split["a/b"] = split["sound"]
    with pytest.raises(ValueError, match="'a/b' is no name of a modality"):
        of_arrays(found)


def with_pickle(path):
    np.savez(path, **keys(arrays()), **{"train/extra": np.array([{}], object)})


def truncated(path):
    np.savez(path, **keys(arrays()))
    path.write_bytes(path.read_bytes()[:-400])


def compressed(path):
    np.savez_compressed(path, **keys(arrays()))
    content = bytearray(path.read_bytes())
    start = content.index(b"train/sound.npy") + 60
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def damaged(path):
    np.savez(path, **keys(arrays()))
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(kept, "w") as new:
        for name in old.namelist():
            bytes_ = old.read(name)
            new.writestr(name, bytes_[:40] if "sound" in name else bytes_)
    path.write_bytes(kept.getvalue())


def without_labels(path):
    found = keys(arrays())
    del found["test/labels"]
    np.savez(path, **found)


def with_unknown(path):
    np.savez(path, **keys(arrays()), clients=np.zeros(12))


def single(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def spoiled(name):
    """A writer of arrays with one of the faults of BAD, and what is said of it."""
    spoil, message = BAD[name]

    def write(path):
        found = arrays()
        spoil(found)
        np.savez(path, **keys(found))

    return write, message


FILES = {
    "with_pickle": (with_pickle, "train/extra: is an array of objects"),
    "truncated": (truncated, "is no .npz file"),
    "damaged": (damaged, "sound: cannot be read"),
    "compressed": (compressed, "sound: cannot be read"),
    "without_labels": (without_labels, "has no test/labels"),
    "with_unknown": (with_unknown, "'clients' is none of train/NAME, test/NAME"),
    "single": (single, "is no .npz file"),
    "missing": (lambda path: None, "there is no"),
    **{
        name: spoiled(name)
        for name in ("lengths", "strings", "bytes", "NaN", "float labels", "large ids")
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write, message = FILES[name]
    path = tmp_path / "own.npz"
    write(path)
    before = sorted(tmp_path.iterdir())
    assert main(["train", "--dataset.name=npz", f"--dataset.path={path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error or "dataset 'own'" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_no_path_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dataset.name=npz"]) == 2
    assert "give --dataset.path=FILE.npz" in capsys.readouterr().err


def test_a_table_of_modalities_is_of_zeros_and_ones():
    table = np.ones((12, 2))
    table[3] = [0, 1]
    assert of_arrays(arrays(), available=table).train.available[3].tolist() == [0, 1]
    for wrong in (np.full((12, 2), np.nan), np.full((12, 2), "1"), 2 * table):
        with pytest.raises(ValueError, match="holds what is neither 0 nor 1"):
            of_arrays(arrays(), available=wrong)
    with pytest.raises(ValueError, match="samples x modalities are"):
        of_arrays(arrays(), available=table[:4])


def test_clients_of_both_splits_are_numbered_together(tmp_path):
    found = arrays()
    found["test"]["clients"] = np.array(["c", "e"])[np.arange(12) % 2]
    np.savez(tmp_path / "own.npz", **keys(found))
    data = fc.data.load("npz", path=str(tmp_path / "own.npz"))
    assert data.client_names == ("a", "b", "c", "d", "e")
    np.testing.assert_array_equal(data.train.clients[:4], [1, 0, 3, 2])
    np.testing.assert_array_equal(data.test.clients[:2], [2, 4])


def test_a_bad_array_of_a_folder_is_one_line(tmp_path):
    for key, x in keys(arrays()).items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{key}.npy", x)
    bad = tmp_path / "train" / "sound.npy"
    for content, message in ((b"no array", "cannot be read"), (b"", "cannot be read")):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=rf"sound.npy: {message}") as error:
            fc.data.load("npz", path=str(tmp_path))
        assert "\n" not in str(error.value)
    np.save(bad, np.array([{}], object))
    with pytest.raises(ValueError, match=r"sound.npy: is an array of objects"):
        fc.data.load("npz", path=str(tmp_path))


def test_a_run_finds_its_files_from_another_folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **keys(arrays(24)))
    (tmp_path / "who.csv").write_text("words,sound\n" + "1,0\n" * 3 + "0,1\n")
    for folder in ("run", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    values = {"dataset": {"name": "npz", "path": "own.npz"}, "modalities": "who.csv"}
    values |= {"partition": {"name": "natural"}, "clients": 4, "clients_per_round": 2}
    config = fc.config.from_dict(values)
    write_config(tmp_path / "run", config)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there is no .*elsewhere/own.npz"):
        load_dataset(config.dataset, print)
    read = read_config(tmp_path / "run")
    assert read.dataset.path == str(tmp_path / "own.npz")
    found = split_clients(read, load_dataset(read.dataset, print))
    assert found.available.tolist() == [[False, True]] * 3 + [[True, False]]


def test_noise_on_token_ids_is_one_line_and_nothing_is_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "own.npz", **keys(arrays(24)))
    flags = ["--dataset.name=npz", "--dataset.path=own.npz", "--feature-noise=0.1"]
    assert main(["train", *flags, "--clients=5"]) == 2
    error = capsys.readouterr().err
    assert "feature_noise: modality 'words' is of token ids" in error
    assert error.count("\n") == 1
    assert [x.name for x in tmp_path.iterdir()] == ["own.npz"]
