"""A CSV of media files: every kind read as the loaders do, and what is refused."""

import re
import shutil

import numpy as np
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.data import load, raw
from tests import media_files

SIZE, TOKENS = 8, 4
HEADER = "split,label,client,sound,photo,clip,trace,note\n"


def write(root):
    """Four samples of all kinds; one lacks its photo and its note."""
    media_files.write_wav(root / "a.wav", media_files.tone(0.4))
    media_files.write_wav(root / "b.wav", media_files.tone(0.2, rate=8_000))
    for i in range(3):
        media_files.write_image(root / "photos" / f"{i}.png", (100 * i, 0, 0))
    media_files.write_video(root / "v.mp4", 2, codec="mpeg4")
    for i in range(2):
        np.save(root / f"{i}.npy", np.full((3, 2), i + 0.5))
    (root / "own.csv").write_text(
        HEADER
        + "train,dog,zoe,a.wav,photos/0.png,v.mp4,0.npy,the dog barks\n"
        + 'train,cat,amy,b.wav,,v.mp4,1.npy,"a cat, ""loud""\nand long"\n'
        + "test,cat,zoe,a.wav,photos/1.png,v.mp4,1.npy,\n"
        + "test,dog,bob,a.wav,photos/2.png,v.mp4,0.npy,!\n"
    )
    return root / "own.csv"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The manifest; not to be changed."""
    return write(tmp_path_factory.mktemp("manifest"))


def loaded(path, **options):
    options = {"image_size": SIZE, "tokens": TOKENS, "seconds": 0.5, "frames": 2} | (
        options
    )
    return load("manifest", path=str(path), cache_dir=str(path.parent / "c"), **options)


def test_every_kind_is_read_as_the_loaders_do(original):
    data = loaded(original)
    folder = original.parent
    assert data.name == "own"
    assert data.modalities == ("sound", "photo", "clip", "trace", "note")
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0]
    assert data.client_names == ("amy", "bob", "zoe")
    assert data.train.clients.tolist() == [2, 0]
    assert data.test.clients.tolist() == [2, 1]
    assert data.shapes == {
        "sound": raw.audio.spectrogram_shape(0.5),
        "photo": (SIZE, SIZE, 3),
        "clip": (2, SIZE, SIZE, 3),
        "trace": (3, 2),
        "note": (TOKENS,),
    }
    sound = raw.audio.log_spectrogram(raw.audio.read_wav(folder / "b.wav"), 0.5)
    np.testing.assert_array_equal(data.train.inputs["sound"][1], sound)
    red = data.test.inputs["photo"][..., 0] * 0.229 + 0.485
    np.testing.assert_allclose(red.mean((1, 2)) * 255, [100, 200], atol=0.01)
    gray = (data.train.inputs["clip"][0, ..., 0] * 0.229 + 0.485) * 255
    np.testing.assert_allclose(gray.mean((1, 2)), [0, media_files.STEP], atol=3)
    assert data.train.inputs["trace"][:, 0, 0].tolist() == [0.5, 1.5]
    ids = [raw.text.token_id(word) for word in ("a", "cat", ",", '"')]
    assert data.train.inputs["note"][1].tolist() == ids
    assert data.notes == ("1 train texts of note cut to 4 tokens",)
    assert isinstance(data.train.inputs["photo"], np.memmap)


def test_an_empty_cell_is_a_missing_modality(original):
    data = loaded(original)
    assert data.train.available.tolist() == [[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]]
    assert data.test.available.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert not data.train.inputs["photo"][1].any()
    assert not data.test.inputs["note"][0].any()
    assert not data.train.sequential
    assert loaded(original, sequential=True).train.sequential


def test_arrays_are_prepared_once(original):
    said = []
    loaded(original)
    loaded(original, log=said.append)
    assert said == []
    loaded(original, image_size=4, log=said.append)
    assert any("own-train" in line for line in said)


def test_kinds_of_ones_own(tmp_path):
    media_files.write_video(tmp_path / "v.mp4", 2, codec="mpeg4")
    (tmp_path / "n.txt").write_text("Two words", encoding="utf-8")
    rows = "split,label,v,said,file\n" + "".join(
        f"{split},{label},v.mp4,look at v.mp4,n.txt\n"
        for split, label in (("train", 10), ("train", 9), ("test", 9))
    )
    path = tmp_path / "own.csv"
    path.write_text(rows)
    data = loaded(path, kinds=("v=audio", "said=text"))
    assert data.class_names == ("9", "10")
    assert data.train.clients is data.train.available is None
    assert data.client_names == ()
    sound = raw.audio.log_spectrogram(raw.video.video_audio(tmp_path / "v.mp4"), 0.5)
    np.testing.assert_array_equal(data.test.inputs["v"][0], sound)
    words = [raw.text.token_id(word) for word in ("two", "words")]
    assert data.test.inputs["file"][0].tolist() == [*words, 0, 0]
    assert data.test.inputs["said"][0].all()


def with_text(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def damaged(path, name, content=b"no media"):
    (path.parent / name).write_bytes(content)


def saved(path, name, values):
    np.save(path.parent / name, values)


BAD = {
    "no file": (lambda p: p.unlink(), "own.csv: No such file"),
    "no label": (lambda p: with_text(p, ",dog,", ",,"), "row 2: has no label"),
    "no client": (lambda p: with_text(p, "amy", ""), "row 3: has no client"),
    "split": (
        lambda p: with_text(p, "test,cat", "val,cat"),
        "row 5: 'val' is no split",
    ),
    "no test": (lambda p: with_text(p, "test,", "train,"), "no row has the split test"),
    "columns": (lambda p: with_text(p, ",!\n", ",!,?\n"), "row 6: 9 columns"),
    "header": (lambda p: with_text(p, "label", "class"), "row 1: columns"),
    "twice": (lambda p: with_text(p, "clip", "photo"), "row 1: a column has no name"),
    "quotes": (lambda p: with_text(p, '""loud""', '"loud"'), "row 3: no CSV"),
    "empty": (lambda p: p.write_text(""), "row 1: columns"),
    "Latin-1": (lambda p: p.write_bytes(b"split,label,\xe4"), "no UTF-8 text"),
    "no modality": (
        lambda p: p.write_text(HEADER + "train,a,b,,,,,\n"),
        "row 2: the sample has no modality",
    ),
    "empty column": (
        lambda p: with_text(p, "v.mp4", ""),
        "own.csv: the column clip is empty",
    ),
    "kinds": (
        lambda p: with_text(p, "photos/2.png", "b.wav"),
        "row 6: photo is 'b.wav', by its end audio, and image before",
    ),
    "missing": (
        lambda p: with_text(p, "photos/2.png", "no.png"),
        "row 6: {}/no.png: No such file",
    ),
    "wav": (lambda p: damaged(p, "b.wav"), "row 3: {}/b.wav: truncated or no wav"),
    "image": (lambda p: damaged(p, "photos/1.png"), "row 5: {}/photos/1.png: unread"),
    "video": (lambda p: damaged(p, "v.mp4"), "row 2: {}/v.mp4: unreadable video"),
    "array": (lambda p: damaged(p, "1.npy"), "row 3: {}/1.npy: cannot be read"),
    "first array": (lambda p: damaged(p, "0.npy"), "row 2: {}/0.npy: cannot be read"),
    "shape": (
        lambda p: saved(p, "1.npy", np.zeros((3, 3))),
        "row 3: {}/1.npy: has shape (3, 3), the first file of its column (3, 2)",
    ),
    "integers": (lambda p: saved(p, "1.npy", np.zeros((3, 2), int)), "holds int64"),
    "objects": (lambda p: saved(p, "1.npy", np.array([None])), "array of objects"),
    "NaN": (
        lambda p: saved(p, "1.npy", np.full((3, 2), np.nan)),
        "row 3: {}/1.npy: a value is not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_with_file_and_row(name, original, tmp_path):
    spoil, message = BAD[name]
    shutil.copytree(original.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "own.csv"
    spoil(path)
    with pytest.raises(ValueError, match=re.escape(message.format(tmp_path))) as error:
        loaded(path)
    assert "\n" not in str(error.value)
    assert "own.csv" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("photo=film",)}, "kinds: 'photo=film' is no modality=kind"),
        ({"kinds": ("foto=image",)}, "kinds: 'foto=image' is no modality=kind"),
        ({"frames": 0}, "frames=0"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_bad_options_are_one_line(options, message, original):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        loaded(original, **options)
    assert "\n" not in str(error.value)


def test_the_command_writes_nothing_where_a_file_is_missing(
    original, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.csv"
    path.write_text(original.read_text())
    before = sorted(tmp_path.iterdir())
    flags = ["--dataset.name=manifest", f"--dataset.path={path}"]
    flags.append(f"--dataset.cache-dir={tmp_path / 'c'}")
    for command in (["train"], ["data", "describe"]):
        assert main([*command, *flags]) == 2
        error = capsys.readouterr().err
        assert f"row 2: {tmp_path}/0.npy: No such file" in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert main(["train", "--dataset.name=manifest"]) == 2
    assert "give --dataset.path=FILE.csv" in capsys.readouterr().err
