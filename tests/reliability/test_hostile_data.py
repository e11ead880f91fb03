"""Archives and files of others: refused in one line, and nothing is left of them."""

import io
import os
import socket
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from fedcmi_jax import data
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.raw import npy, zips
from fedcmi_jax.data.tfds import fsdd, mnist, prepare, tfds
from tests.raw_files import idx, real, wav, write_hapt, write_hapt_zip

MB = b"\0" * (1 << 20)


def bomb(path, name, megabytes):
    """Zeros, a thousandth of their size."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(megabytes):
            member.write(MB)


def encrypt(path):
    """Sets the flag in all headers; what follows is then no longer readable."""
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(signature, at + 4)
    path.write_bytes(content)


def refused(call, *parts):
    with pytest.raises(ValueError, match=".") as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(*rows):
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


TRAIN, TEST = (1, 1, 5, 11, 138), (2, 2, 6, 1, 256)
LABELS = {
    "no volunteer for testing": (labels(TRAIN), "no window of a test volunteer"),
    "no volunteer for training": (labels(TEST), "no window of a training volunteer"),
    "volunteer 31": (labels(TRAIN, (2, 31, 6, 1, 256)), "row 2: volunteer 31 is not"),
    "volunteer 0": (labels((1, 0, 5, 1, 200)), "row 1: volunteer 0 is not"),
    "recording 62": (labels((62, 1, 5, 1, 200)), "experiment 62 is not one of 1 to 61"),
    "a long number": (labels((1, 1, 5, 1, "9" * 5000)), "more than 9 digits"),
}


@pytest.mark.parametrize("how", LABELS)
def test_a_label_file_that_cannot_be_is_refused_and_nothing_stays(how, place):
    content, message = LABELS[how]
    write_hapt(place / "raw", labels=content)
    call = lambda: prepare("hapt", data_dir="root/deep", manual_dir="raw")  # noqa: E731
    refused(call, "labels.txt", message)
    assert os.listdir(place) == ["raw"]


def test_what_was_there_before_a_refusal_stays(place):
    write_hapt(place / "raw", labels="")
    (place / "root").mkdir()
    (place / "root" / "own").write_text("kept")
    refused(lambda: prepare("hapt", data_dir="root", manual_dir="raw"), "empty")
    assert os.listdir(place / "root") == ["own"]


@pytest.mark.parametrize("how", ["one member", "all members", "encrypted"])
def test_a_zip_file_of_measurements_is_looked_at_first(how, place, monkeypatch, capsys):
    (place / "raw").mkdir()
    path = write_hapt_zip(place / "raw")
    if how == "encrypted":
        encrypt(path)
    else:
        limit = "LARGEST_MEMBER" if how == "one member" else "LARGEST_ALL"
        monkeypatch.setattr(zips, limit, 3 << 20)
        for number in range(4):
            bomb(path, f"HAPT Data Set/{number}", 4 if how == "one member" else 1)
    options = ["--manual-dir=raw", "--data-dir=root"]
    assert main(["data", "prepare", "hapt", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("is encrypted" if how == "encrypted" else "unpacks to") in error
    assert os.listdir(place) == ["raw"]


def test_the_real_archives_are_below_half_the_limits():
    found = zips.members(real("hapt", "HAPT Data Set.zip"))
    assert max(member.file_size for member in found) < zips.LARGEST_MEMBER / 2
    assert sum(member.file_size for member in found) < zips.LARGEST_ALL / 2
    with tarfile.open(real("fsdd", fsdd.FILE)) as archive:
        assert sum(member.size for member in archive) < zips.LARGEST_ALL / 2


def test_a_bomb_of_arrays_is_refused_before_it_is_unpacked(place, monkeypatch):
    path = place / "bomb.npz"
    bomb(path, "train/a.npy", 260)
    assert path.stat().st_size < 1 << 20

    def unpack(*_):
        raise AssertionError("unpacked")

    monkeypatch.setattr(npy, "_read", unpack)
    refused(lambda: data.load("npz", path=str(path)), "that unpack to 0.254 GiB")
    monkeypatch.setattr(zips, "check_fits", lambda *_: refuse())
    refused(lambda: data.load("npz", path=str(path)), "too large")


def refuse():
    raise ValueError("too large")


def test_arrays_that_are_no_ordinary_files_do_not_hang(place):
    os.mkfifo(place / "pipe.npz")
    refused(lambda: data.load("npz", path="pipe.npz"), "no ordinary file")
    (place / "folder" / "train").mkdir(parents=True)
    os.mkfifo(place / "folder" / "train" / "labels.npy")
    refused(lambda: data.load("npz", path="folder"), "no ordinary file")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.npz")
    with server:
        refused(lambda: data.load("npz", path="socket.npz"), "no ordinary file")


def test_an_encrypted_npz_is_named(place):
    np.savez(place / "own.npz", a=np.zeros(3))
    encrypt(place / "own.npz")
    refused(lambda: npy.read_npz(place / "own.npz"), "own.npz", "encrypted")


def test_a_header_that_promises_too_much_is_refused(place):
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile("own.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue() + b"few")
    refused(lambda: npy.read_npz(place / "own.npz"), "own.npz, a: cannot be read")


RECORDING = "fsdd/recordings/0_george_5.wav"


def tarball(path, kind, target="", size=0):
    with tarfile.open(path, "w:gz") as archive:
        sound = wav(np.ones(100, np.int16))
        info = tarfile.TarInfo("fsdd/recordings/1_george_5.wav")
        info.size = len(sound)
        archive.addfile(info, io.BytesIO(sound))
        odd = tarfile.TarInfo(RECORDING)
        odd.type, odd.linkname, odd.size = kind, target, size
        archive.addfile(odd, io.BytesIO(b"\0" * size))


@pytest.mark.parametrize(
    "target",
    ["1_george_5.wav", "/etc/passwd", "nowhere.wav", RECORDING, "0_george_5.wav"],
)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tarball_are_refused(kind, target, place):
    tarball(place / "a.tar.gz", kind, target)
    refused(lambda: fsdd.read_recordings(place / "a.tar.gz"), RECORDING, "is a link")


def test_a_tarball_that_unpacks_to_too_much_is_refused(place, monkeypatch):
    monkeypatch.setattr(fsdd, "LARGEST_MEMBER", 1000)
    tarball(place / "a.tar.gz", tarfile.REGTYPE, size=1001)
    refused(lambda: fsdd.read_recordings(place / "a.tar.gz"), "more than such")


def test_an_idx_file_that_unpacks_to_too_much_is_refused(place, monkeypatch):
    monkeypatch.setattr(mnist, "LARGEST_MEMBER", 1000)
    (place / "a.gz").write_bytes(idx(np.zeros((50, 50))))
    refused(lambda: mnist.read_idx(place / "a.gz"), "unpacks to too much")


def damaged_info(folder, content):
    (path,) = folder.rglob("dataset_info.json")
    path.write_bytes(content)
    return path.parent


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.9, 1.5])
def test_a_truncated_dataset_info_is_one_line(kept, place):
    write_hapt(place / "raw")
    prepare("hapt", data_dir="root", manual_dir="raw")
    (path,) = (place / "root").rglob("dataset_info.json")
    whole = path.read_bytes()
    foreign = b'["a", {"shopping": "list"}]'
    path.write_bytes(foreign if kept > 1 else whole[: int(kept * len(whole))])
    refused(lambda: data.load("hapt", data_dir="root"), "root/hapt", "delete the fold")
    own = str(path.parent)
    modalities = {"a": "acc"}
    load = lambda: tfds(own, modalities)  # noqa: E731
    refused(load, own, "delete the folder")


@pytest.mark.parametrize("name", ["cg_mnist", "noisy_mnist", "av_mnist"])
@pytest.mark.parametrize(
    "flag", ["--seed=-1", "--train-samples=0", "--test-samples=-5"]
)
def test_options_are_looked_at_before_the_network(
    name, flag, place, monkeypatch, capsys
):
    def reach(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(sys.modules[f"fedcmi_jax.data.{name}"], "prepare", reach)
    assert main(["data", "prepare", name, flag, "--data-dir=root"]) == 2
    option = flag[2:].partition("=")[0].replace("-", "_")
    assert option in capsys.readouterr().err
    assert os.listdir(place) == []
