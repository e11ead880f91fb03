"""Preparing: checksums, interruptions, two at once, mistakes; small files only."""

import errno
import gzip
import hashlib
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from fedcmi_jax import data
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.tfds import as_prepared, fsdd, mnist, prepare, read_arrays
from fedcmi_jax.data.tfds.hapt import Hapt
from fedcmi_jax.data.tfds.prepare import data_root
from tests.raw_files import (
    HAPT_LENGTH,
    idx,
    state_checksums,
    wav,
    write_fsdd,
    write_hapt,
    write_hapt_zip,
    write_mnist,
    write_tar,
)

PREPARE_HAPT = (
    "import sys; from fedcmi_jax.cli.main import main; "
    "sys.exit(main(['data', 'prepare', 'hapt', '--manual-dir=raw', '--data-dir=root']))"
)
KILLED_HALF_WAY = (
    "import os; from fedcmi_jax.data.tfds.hapt import Hapt\n"
    "full = Hapt._generate_examples\n"
    "def half(self, cut):\n"
    "    yield from list(full(self, cut))[:1]\n"
    "    os.kill(os.getpid(), 9)\n"
    "Hapt._generate_examples = half\n" + PREPARE_HAPT
)
FULL_DISK = (
    "import resource, signal\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + PREPARE_HAPT
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDCMI_DATA_ROOT", str(tmp_path / "root"))
    (tmp_path / "raw").mkdir()


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def one_line(call, *parts):
    """The message of a mistake: one line that holds all parts."""
    with pytest.raises(ValueError, match=".") as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def prepared_hapt():
    return prepare("hapt", data_dir="root", manual_dir="raw")


def nothing_half_made(root):
    return not [*root.glob("hapt/*"), *root.glob("**/*.tmp*")]


def test_data_root_is_argument_then_variable_then_cache(monkeypatch, tmp_path):
    assert data_root("a") == tmp_path / "a"
    assert data_root() == tmp_path / "root"
    monkeypatch.delenv("FEDCMI_DATA_ROOT")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(data_root()) == "/cache/fedcmi_jax/data"


def test_hapt_windows_from_folder_and_from_zip(raw, tmp_path):
    write_hapt(raw)
    builder = prepared_hapt()
    train = read_arrays(builder, "train", ("acc", "gyro", "label", "experiment"))
    starts = (train["acc"][:, 0, 0] * 4 / 3).tolist()
    assert starts == [10, 290, 481, 545]
    assert train["label"].tolist() == [4, 0, 1, 1]
    assert train["acc"].shape == (4, 128, 3)
    assert train["acc"].dtype == np.float32
    np.testing.assert_array_equal(train["gyro"], -train["acc"])
    test = read_arrays(builder, "test", ("acc", "label", "volunteer"))
    assert (test["acc"][:, 0, 0] * 4 / 3).tolist() == [0, 64, 128]
    assert test["volunteer"].tolist() == [2, 2, 2]

    (tmp_path / "zipped").mkdir()
    write_hapt_zip(tmp_path / "zipped")
    from_zip = prepare("hapt", data_dir="other", manual_dir="zipped")
    for name, values in read_arrays(from_zip, "train", ("acc", "label")).items():
        np.testing.assert_array_equal(values, train[name])


def test_what_is_prepared_needs_no_files(raw):
    write_hapt(raw)
    first = prepared_hapt()
    again = prepare("hapt", data_dir="root")
    assert again.info.splits["train"].num_examples == 4
    assert again.data_path == first.data_path


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"acc_exp01_user01": "1 2 3\n1 2\n"}, ["row 2: 2 columns, expected 3"]),
        ({"acc_exp01_user01": "1 2 3 4\n5 6\n"}, ["row 1: 4 columns"]),
        ({"gyro_exp02_user02": "1 2 3\n1 nan 3\n"}, ["row 2", "is not finite"]),
        ({"gyro_exp02_user02": "1 2 3\n1 inf 3\n"}, ["row 2", "is not finite"]),
        ({"gyro_exp02_user02": "1 2 x\n"}, ["row 1", "are not numbers"]),
        ({"gyro_exp02_user02": ""}, ["gyro_exp02_user02.txt: empty"]),
        (
            {"acc_exp01_user01": "1 2 3\n" * (HAPT_LENGTH - 1)},
            ["acc_exp01_user01.txt: truncated, 699 rows", "row 5 of labels.txt"],
        ),
        ({"acc_exp01_user01": "1 2 3\n" * (HAPT_LENGTH + 1)}, ["701 rows of acc"]),
        ({"labels": "1 1 5 11 138\n1 1 13 1 200\n"}, ["row 2: unknown activity 13"]),
        ({"labels": "1 1 0 1 200\n"}, ["row 1: unknown activity 0"]),
        ({"labels": "1 1 5 11\n"}, ["labels.txt, row 1", "five whole numbers"]),
        ({"labels": "1 1 5 11 x\n"}, ["labels.txt, row 1", "five whole numbers"]),
        ({"labels": "1 1 5 200 100\n"}, ["row 1: samples 200 to 100 are no range"]),
        ({"labels": "1 1 5 0 100\n"}, ["row 1: samples 0 to 100"]),
        ({"labels": ""}, ["labels.txt: empty"]),
        ({"labels": "9 1 5 1 200\n"}, ["acc_exp09_user01.txt: missing"]),
    ],
)
def test_hapt_mistakes_name_file_and_row(changed, parts, raw):
    write_hapt(raw, **changed)
    message = one_line(prepared_hapt, *parts)
    assert message.endswith("get the data set again")
    assert nothing_half_made(data_root())


@pytest.mark.parametrize(
    "member", ["../evil.txt", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"]
)
def test_a_zip_member_that_leaves_the_folder_is_refused(member, raw):
    write_hapt_zip(raw, member)
    one_line(prepared_hapt, "HAPT Data Set.zip", repr(member), "leads out of")


def test_damaged_zip_files_are_refused(raw):
    path = write_hapt_zip(raw)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    one_line(prepared_hapt, "HAPT Data Set.zip: damaged")
    path.write_bytes(content.replace(content[2000:2010], b"0123456789"))
    one_line(prepared_hapt, "HAPT Data Set.zip", "damaged")
    path.unlink()
    write_tar(path, {})
    one_line(prepared_hapt, "HAPT Data Set.zip: damaged")


def test_a_zip_file_without_recordings_is_refused(raw):
    with zipfile.ZipFile(raw / "HAPT Data Set.zip", "w") as archive:
        archive.writestr("README.txt", "")
    one_line(prepared_hapt, "has no RawData/labels.txt")


def test_missing_files_say_where_to_get_them(raw):
    one_line(prepared_hapt, "HAPT Data Set.zip", "archive.ics.uci.edu", "manual_dir")
    one_line(lambda: prepare("hapt"), "HAPT Data Set.zip", "archive.ics.uci.edu")
    one_line(
        lambda: prepare("hapt", manual_dir="nowhere"), "manual_dir='nowhere': no such"
    )
    (raw / "file").touch()
    one_line(lambda: prepare("hapt", data_dir="raw/file"), "data_dir", "raw/file")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
)
def test_an_interrupted_build_leaves_nothing(error, raw, monkeypatch):
    write_hapt(raw)
    full = Hapt._generate_examples

    def interrupted(self, cut):
        yield from list(full(self, cut))[:1]
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Hapt, "_generate_examples", interrupted)
        with pytest.raises(type(error)):
            prepared_hapt()
    assert nothing_half_made(data_root())
    assert prepared_hapt().info.splits["test"].num_examples == 3


def test_what_a_killed_process_leaves_is_removed(raw):
    write_hapt(raw)
    command = [sys.executable, "-c", KILLED_HALF_WAY]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list(data_root().glob("hapt/incomplete*"))
    builder = prepared_hapt()
    assert os.listdir(builder.data_path.parent) == ["1.0.0"]
    assert builder.info.splits["train"].num_examples == 4


def test_a_full_disk_is_one_line_and_leaves_nothing(raw):
    write_hapt(raw)
    command = [sys.executable, "-c", FULL_DISK]
    full = subprocess.run(command, check=False, capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stdout == ""
    # Behind what clears the progress bar.
    _, error, line = full.stderr.splitlines()[-1].partition("fedcmi: error: ")
    assert error
    assert "make room, or give another data_dir" in line
    assert "Traceback" not in full.stderr
    assert nothing_half_made(data_root())


def test_two_processes_may_prepare_at_once(raw):
    write_hapt(raw)
    command = [sys.executable, "-c", PREPARE_HAPT]
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0] == results[1]
    assert results[0].splitlines()[-2:] == [
        "all                       4        3",
        "clients                   1        1",
    ]
    assert os.listdir(data_root() / "hapt") == ["1.0.0"]


def test_damaged_prepared_files_name_their_folder(raw):
    write_hapt(raw)
    builder = prepared_hapt()
    (file,) = builder.data_path.glob("*train*")
    content = file.read_bytes()
    for damage in (content[: len(content) // 2], content[:100] + bytes(50), b""):
        file.write_bytes(damage)
        one_line(lambda: data.load("hapt"), "hapt/1.0.0, train split: damaged (")
    file.unlink()
    one_line(lambda: data.load("hapt"), "No such file", "prepare the data set again")


def test_a_wrong_checksum_names_file_hashes_and_remedy(raw):
    write_mnist(raw)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    message = one_line(
        lambda: prepare("mnist", manual_dir="raw"),
        "raw/train-images-idx3-ubyte.gz",
        hashlib.sha256(b"something else").hexdigest(),
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "replace it by https://",
    )
    assert message.index("sha256") < message.index("expected")


def test_a_wrong_download_names_both_hashes(raw, monkeypatch):
    """Downloads come from files here; the manager checks them all the same."""
    from tensorflow_datasets.core.download import downloader

    write_mnist(raw)

    def from_file(self, url, destination_path, verify=True):
        path = destination_path / url.rsplit("/", 1)[-1]
        path.write_bytes((raw / path.name).read_bytes())
        info = downloader.checksums_lib.compute_url_info(path)
        return downloader.DownloadResult(path=path, url_info=info)

    monkeypatch.setattr(downloader._Downloader, "_sync_download", from_file)
    one_line(
        lambda: prepare("mnist"),
        "https://storage.googleapis.com/cvdf-datasets/mnist/train-images",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "manual_dir",
    )
    write_fsdd(raw)
    state_checksums(raw, monkeypatch)
    assert prepare("mnist").info.splits["train"].num_examples == 80


def test_no_network_says_what_to_do(monkeypatch):
    import requests
    from tensorflow_datasets.core.download import downloader

    def refused(self, url, destination_path, verify=True):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(downloader._Downloader, "_sync_download", refused)
    one_line(
        lambda: prepare("mnist"),
        "train-images-idx3-ubyte.gz: cannot be downloaded (ConnectionError)",
        "manual_dir",
    )


def test_as_prepared_nothing_is_downloaded(monkeypatch, tmp_path):
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader._Downloader, "_sync_download", pytest.fail)
    with as_prepared():
        one_line(lambda: prepare("mnist"), "mnist: not prepared", "data prepare")
    assert not (tmp_path / "root").exists()


def test_idx_mistakes(raw):
    file = raw / "a.gz"
    good = idx(np.zeros((2, 3)))
    file.write_bytes(good)
    assert mnist.read_idx(file).shape == (2, 3)
    for content, part in (
        (good[:-9], "damaged"),
        (b"no gzip", "damaged"),
        (idx(np.zeros((2, 3)))[:10] + b"\0" * 20, "damaged"),
    ):
        file.write_bytes(content)
        one_line(lambda: mnist.read_idx(file), str(file), part)
    for inner, part in ((b"\0\0\x0d\1", "no idx"), (b"\0\0\x08\1\0\0\0\5ab", "2 val")):
        file.write_bytes(gzip.compress(inner))
        one_line(lambda: mnist.read_idx(file), str(file), part)


def test_mnist_label_mistakes(raw):
    write_mnist(raw)
    files = {name: raw / name for name in mnist.FILES["train"]}
    labels = raw / mnist.FILES["train"][1]
    labels.write_bytes(idx(np.zeros(3)))
    one_line(lambda: mnist.read_mnist(files, "train"), "3 labels for 80 images")
    wrong = np.zeros(80)
    wrong[7] = 10
    labels.write_bytes(idx(wrong))
    one_line(lambda: mnist.read_mnist(files, "train"), str(labels), "row 7: label 10")


def test_wav_mistakes():
    good = wav(np.arange(50))
    assert fsdd.read_wav("a.wav", good).tolist() == list(range(50))
    for content, part in (
        (good[:-11], "truncated"),
        (good[:20], "damaged"),
        (b"", "damaged"),
        (wav(np.arange(0)), "truncated"),
        (wav(np.arange(9), rate=16000), "(16000, 1, 2)"),
    ):
        one_line(lambda c=content: fsdd.read_wav("a.wav", c), "a.wav", part)


def test_archive_mistakes(raw):
    path = raw / "a.tar.gz"
    for name in ("recordings/x_theo_1.wav", "a/recordings/1_nobody_1.wav"):
        write_tar(path, {name: wav(np.arange(9))})
        one_line(lambda: fsdd.read_recordings(path), str(path), name)
    write_tar(path, {"README": b""})
    one_line(lambda: fsdd.read_recordings(path), str(path), "no recordings")
    path.write_bytes(path.read_bytes()[:-20])
    one_line(lambda: fsdd.read_recordings(path), str(path), "damaged")


def test_command_prepares_and_prints_counts(raw, capsys):
    write_hapt(raw)
    assert main(["data", "prepare", "hapt", "--manual-dir", "raw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hapt: acc (128, 3), gyro (128, 3)"
    assert "walking                   1        0" in lines
    assert "all                       4        3" in lines
    assert main(["data", "prepare", "noisy-digits"]) == 0
    assert "1,437" in capsys.readouterr().out
    for argv in (["data"], ["data", "--help"], ["data", "prepare", "hapt", "--help"]):
        assert main(argv) == 0
        assert "manual-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["data", "prepar", "hapt"], "did you mean 'prepare'"),
        (["data", "prepare"], "name the data set first"),
        (["data", "prepare", "--manual-dir=x"], "name the data set first"),
        (["data", "prepare", "happt"], "did you mean 'hapt'"),
        (["data", "prepare", "hapt", "--manual=x"], "did you mean 'manual_dir'"),
        (["data", "prepare", "hapt", "stray"], "stray"),
        (["data", "prepare", "hapt", "--manual-dir=nowhere"], "no such folder"),
        (["data", "prepare", "noisy_digits", "--data-dir=x"], "data-dir"),
        (["data", "prepare", "hapt", "--name=av_mnist"], "--name"),
        (["data", "prepare", "hapt"], "archive.ics.uci.edu"),
        (["train", "hapt"], "archive.ics.uci.edu"),
    ],
)
def test_command_mistakes_are_one_line(argv, part, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()[-1:]
    assert line.startswith("fedcmi: error: ")
    assert part in line
