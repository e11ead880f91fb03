"""The real files: exact counts, and labels against the official lists."""

import collections
import json
import zipfile

import numpy as np
import pytest

from fedcmi_jax import data
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.catalog import CATALOG
from fedcmi_jax.data.cg_digits import CLASS_COLORS
from fedcmi_jax.data.tfds import fsdd, mnist, prepare, read_arrays
from fedcmi_jax.data.tfds.hapt import TEST_VOLUNTEERS
from tests.raw_files import REAL, real

MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    real("mnist")
    return str(tmp_path_factory.mktemp("root"))


def test_mnist_counts():
    files = {f: real("mnist", f) for names in mnist.FILES.values() for f in names}
    for split, counts in (("train", MNIST_TRAIN), ("test", MNIST_TEST)):
        images, labels = mnist.read_mnist(files, split)
        assert len(images) == sum(counts)
        assert np.bincount(labels).tolist() == counts


def test_fsdd_counts():
    recordings = fsdd.read_recordings(real("fsdd", fsdd.FILE))
    assert len(recordings) == 2500
    counts = collections.Counter((r.digit, r.speaker) for r in recordings)
    assert set(counts.values()) == {50}
    assert len(counts) == 50
    assert sum(r.take < fsdd.TEST_TAKES for r in recordings) == 250
    longest = max(len(r.audio) for r in recordings)
    assert (longest, sum(len(r.audio) > 6000 for r in recordings)) == (18262, 30)


def windows_by_the_lists(archive):
    """(volunteer, activity) -> windows, from labels.txt alone."""
    counts = collections.Counter()
    for line in archive.read("HAPT Data Set/RawData/labels.txt").split(b"\n"):
        if line.strip():
            _, volunteer, activity, begin, end = map(int, line.split())
            # Windows of 128 every 64: the first needs 128 samples, each other 64 more.
            if activity <= 6 and end - begin + 1 >= 128:
                counts[volunteer, activity - 1] += 1 + (end - begin + 1 - 128) // 64
    return counts


@pytest.mark.slow
def test_hapt_counts_per_class_and_volunteer(tmp_path):
    with zipfile.ZipFile(real("hapt", "HAPT Data Set.zip")) as archive:
        expected = windows_by_the_lists(archive)
        in_train, in_test = (
            {int(i) for i in archive.read(f"HAPT Data Set/{s}").split()}
            for s in ("Train/subject_id_train.txt", "Test/subject_id_test.txt")
        )
    assert in_test == set(TEST_VOLUNTEERS)
    loaded = data.load("hapt", data_dir=str(tmp_path), manual_dir=str(REAL / "hapt"))
    assert (loaded.train.size, loaded.test.size) == (7415, 2996)
    assert loaded.train.size == CATALOG["hapt"].train
    assert set(loaded.train.clients.tolist()) == in_train
    assert set(loaded.test.clients.tolist()) == in_test
    found = collections.Counter()
    for split in (loaded.train, loaded.test):
        found.update(zip(split.clients.tolist(), split.labels.tolist(), strict=True))
    assert found == expected

    raw = prepare("hapt", data_dir=str(tmp_path))
    first = read_arrays(raw, "train", ("acc", "experiment", "label"))
    with zipfile.ZipFile(real("hapt", "HAPT Data Set.zip")) as archive:
        text = archive.read("HAPT Data Set/RawData/acc_exp01_user01.txt")
    signal = np.array(text.split(), np.float32).reshape(-1, 3)
    # labels.txt, row 1: experiment 1, standing from sample 250.
    assert (first["experiment"][0], first["label"][0]) == (1, 4)
    np.testing.assert_array_equal(first["acc"][0], signal[249 : 249 + 128])


@pytest.mark.slow
def test_av_mnist_is_complete_and_splits_recordings(root):
    loaded = data.load("av_mnist", data_dir=root, manual_dir=str(REAL))
    assert np.bincount(loaded.train.labels).tolist() == MNIST_TRAIN
    assert np.bincount(loaded.test.labels).tolist() == MNIST_TEST
    assert loaded.shapes == {"image": (28, 28, 1), "audio": (32, 29, 1)}
    train, test = (
        {a.tobytes() for a in split.inputs["audio"]}
        for split in (loaded.train, loaded.test)
    )
    assert (len(train), len(test)) == (2250, 250)
    assert not train & test
    assert np.bincount(loaded.train.clients).min() > 11_900
    entry = CATALOG["av_mnist"]
    assert (entry.train, entry.test) == (loaded.train.size, loaded.test.size)


@pytest.mark.slow
def test_cg_mnist_color_statistics(root):
    loaded = data.load("cg_mnist", data_dir=root, manual_dir=str(REAL))
    assert (loaded.train.size, loaded.test.size) == (60_000, 10_000)
    builder = prepare("cg_mnist", data_dir=root)
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        ids = read_arrays(builder, name, ("color_id",))["color_id"]
        gray, color = (split.inputs[m] for m in ("gray", "color"))
        tint = color.sum(axis=(1, 2)) / gray.sum(axis=(1, 2))
        # The green of orange and azure is 0.5, too far from 0 and 1 to be clipped.
        middle = tint[:, 1][np.isin(ids, [0, 1])]
        assert abs(middle.mean() - 0.5) < 0.01
        assert abs(middle.var() - 0.03) < 0.002
        nearest = np.linalg.norm(tint[:, None] - CLASS_COLORS, axis=2).argmin(axis=1)
        right = (nearest == split.labels).mean()
        assert (right > 0.85) if name == "train" else (0.08 < right < 0.12)
    assert (ids != loaded.test.labels).mean() > 0.88


@pytest.mark.slow
def test_noisy_mnist_is_complete(root):
    loaded = data.load(
        "noisy_mnist", data_dir=root, manual_dir=str(REAL), standardize=False
    )
    assert np.bincount(loaded.train.labels).tolist() == MNIST_TRAIN
    assert np.bincount(loaded.test.labels).tolist() == MNIST_TEST
    assert abs(loaded.train.inputs["clean"].mean() - 0.1307) < 1e-4
    assert abs(loaded.train.inputs["noisy"].mean() - 0.6307) < 1e-3


def trained_in_one_place(preset, root, folder, *flags):
    """Final metrics of FedAvg with one client that has everything."""
    argv = [
        *("train", preset, "--method.name=fedavg", "--partition.name=iid"),
        *("--clients=1", "--clients-per-round=1", "--multimodal-fraction=1"),
        *("--local.epochs=1", f"--output={folder}/run"),
        *(f"--dataset.data-dir={root}", f"--dataset.manual-dir={REAL}"),
    ]
    assert main([*argv, *flags]) == 0
    return json.loads((folder / "run/summary.json").read_text())["final"]


@pytest.mark.slow
def test_hapt_in_one_place(root, tmp_path):
    real("hapt")
    final = trained_in_one_place("hapt", root, tmp_path, "--rounds=6")
    assert final["acc"] >= 0.90
    assert final["acc_acc_zero"] > final["acc_gyro_zero"]


@pytest.mark.slow
def test_av_mnist_in_one_place(root, tmp_path):
    flags = ("--rounds=4", "--local.learning-rate=0.02")
    assert trained_in_one_place("av-mnist", root, tmp_path, *flags)["acc"] >= 0.97


@pytest.mark.slow
def test_the_color_of_cg_mnist_misleads(root, tmp_path):
    flags = ("--rounds=3", "--local.learning-rate=0.02", "--eval-every=3")
    final = trained_in_one_place("cg-mnist", root, tmp_path, *flags)
    assert final["loss_task"] < 0.4  # of the training samples; by chance 2.3
    assert final["acc"] < 0.6
    assert final["acc_color_zero"] < 0.4
