"""The loaders of official layouts on small files of these layouts, sound and not."""

import shutil

import numpy as np
import pytest

from fedcmi_jax.data import load, raw
from fedcmi_jax.data.catalog import CATALOG
from tests import media_files
from tests.media_files import STEP

LAYOUTS = {
    "cremad": media_files.write_cremad,
    "ave": media_files.write_ave,
    "crisismmd": media_files.write_crisismmd,
    "modelnet40": media_files.write_modelnet40,
}
SIZE = 8  # pixels of a side


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Data set -> folder in its official layout; not to be changed."""
    root = tmp_path_factory.mktemp("layouts")
    for name, write in LAYOUTS.items():
        write(root / name)
    return root


@pytest.fixture
def folder(originals, tmp_path):
    """Name -> a copy that may be changed."""

    def copy(name):
        return shutil.copytree(originals / name, tmp_path / name)

    return copy


def loaded(name, root, **options):
    cache = root.parent / "cache"
    return load(name, root=str(root), image_size=SIZE, cache_dir=str(cache), **options)


@pytest.mark.parametrize("name", LAYOUTS)
def test_loader_keeps_its_promises(name, originals):
    data = loaded(name, originals / name)
    assert data.name == name
    assert data.modalities == CATALOG[name].modalities
    for split in (data.train, data.test):
        assert split.labels.dtype == np.int32
        assert set(split.labels) == set(range(data.num_classes))
        for modality, values in split.inputs.items():
            is_text = modality == "text"
            assert values.dtype == (np.int32 if is_text else np.float32)
            assert values.shape == (split.size, *data.shapes[modality])
            assert is_text or isinstance(values, np.memmap)
    assert (data.train.clients is not None) == bool(CATALOG[name].clients)


def gray(values, mean=0.485, deviation=0.229):
    """Red of ImageNet-scaled images, in steps of the test videos."""
    return (values[..., 0] * deviation + mean) * 255 / STEP


@pytest.mark.parametrize("images", [False, True])
def test_cremad(tmp_path, images):
    media_files.write_cremad(tmp_path / "c", images=images)
    data = loaded("cremad", tmp_path / "c", frames=3)
    assert data.class_names == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    assert data.shapes == {"audio": (257, 299, 1), "visual": (3, SIZE, SIZE, 3)}
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5] * 2
    # Actors 1001, 1002, 1003; 1002 is the test split's.
    assert data.train.clients.tolist() == [0] * 6 + [2] * 6
    assert data.test.clients.tolist() == [1] * 6
    seconds = gray(data.test.inputs["visual"]).mean((0, 2, 3))
    np.testing.assert_allclose(seconds, [0, 1, 2], atol=0.15)
    two = loaded("cremad", tmp_path / "c", frames=2)
    assert two.shapes["visual"] == (2, SIZE, SIZE, 3)
    assert data.notes == ()


def test_ave_drops_and_says(originals):
    data = loaded("ave", originals / "ave", frames=4)
    assert data.class_names == ("Church bell", "Bark")
    assert data.shapes == {"audio": (257, 1004, 1), "visual": (4, SIZE, SIZE, 3)}
    assert data.train.labels.tolist() == [0, 1]
    empty, shared = data.notes
    assert empty.startswith("1 events dropped")
    assert empty.endswith("trainSet.txt, row 3")
    assert shared == "1 training rows of 1 videos dropped, also in the test split: d"
    # Ten frames of 0..10 s, four of them; of 1..4 s ten at even distances.
    seconds = gray(data.train.inputs["visual"]).mean((2, 3))
    np.testing.assert_allclose(seconds[0], [1, 3, 6, 8], atol=0.2)
    np.testing.assert_allclose(seconds[1], [1, 1, 2, 3], atol=0.2)


def test_crisismmd(originals):
    data = loaded("crisismmd", originals / "crisismmd", tokens=6)
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.clients.tolist() == [0, 0, 1]
    ids = [raw.text.token_id(token) for token in ("fuerza", "m\u00e9xico", "!")]
    assert data.train.inputs["text"][2].tolist() == [*ids, 0, 0, 0]
    first = [raw.text.token_id(t) for t in ("@", "a", ":", "we\u2019re", "safe")]
    assert data.train.inputs["text"][0].tolist() == [*first, 0]
    # 20 x 6 pixels: black above and below, the color (its red 100 x number) between.
    image = data.train.inputs["image"][2]
    assert image.min() == -1
    assert abs(image[SIZE // 2, SIZE // 2, 0] - (2 * 200 / 255 - 1)) < 1e-5
    assert (image[0] == -1).all()
    assert data.notes == ()
    cut = loaded("crisismmd", originals / "crisismmd", tokens=4)
    assert cut.notes == ("2 tweets cut to their first 4 tokens",)


def test_crisismmd_with_features_of_ones_own(originals, tmp_path):
    values = np.random.default_rng(0).random((6, 5), np.float32)
    path = tmp_path / "features.npy"
    np.save(path, values)
    root = originals / "crisismmd"
    data = loaded("crisismmd", root, text_features=str(path))
    np.testing.assert_array_equal(data.train.inputs["text"], values[:3])
    np.testing.assert_array_equal(data.test.inputs["text"], values[3:])
    values[4, 1] = np.nan
    np.save(path, values)
    with pytest.raises(ValueError, match="test split, modality 'text', row 1.*finite"):
        loaded("crisismmd", root, text_features=str(path))
    for wrong, message in (
        (values[:5], r"float32 \(5, 5\), expected float32 \(6, F\): 3 training rows"),
        (values.astype(np.float64), r"float64 \(6, 5\)"),
        (values[:, 0], r"float32 \(6,\)"),
    ):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=message):
            loaded("crisismmd", root, text_features=str(path))
    for content in (b"", b"no numpy file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^text_features=.*no .npy file"):
            loaded("crisismmd", root, text_features=str(path))
    with pytest.raises(ValueError, match=r"^text_features='no.npy': No such file"):
        loaded("crisismmd", root, text_features="no.npy")


def test_modelnet40_found_or_listed(originals, tmp_path):
    root = originals / "modelnet40"
    found = loaded("modelnet40", root)
    assert found.train.labels.tolist() == list(range(40))
    view = found.train.inputs["view7"]
    pixel = np.round(
        (view[:, 0, 0] * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    )
    np.testing.assert_array_equal(pixel, [(c, 7, 0) for c in range(40)])
    for split in ("train", "test"):
        text = media_files.modelnet40_list(root, split)
        (tmp_path / f"{split}.txt").write_text(text)
    listed = loaded("modelnet40", root, splits=str(tmp_path))
    for m in found.modalities:
        np.testing.assert_array_equal(listed.train.inputs[m], found.train.inputs[m])
    assert loaded("modelnet40", root, views=(7,)).modalities == ("view7",)


def without(path):
    """What removes a file or folder."""

    def spoil(folder):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def half(path):
    """What cuts a file in the middle."""

    def spoil(folder):
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return spoil


def holding(path, content):
    return lambda folder: (folder / path).write_bytes(content)


def changed(path, old, new):
    """What replaces the first of a piece of text."""

    def spoil(folder):
        text = (folder / path).read_bytes().decode()
        assert old in text
        (folder / path).write_bytes(text.replace(old, new, 1).encode())

    return spoil


CLIP = "1003_IOM_SAD_XX"
WAV, FLV = f"AudioWAV/{CLIP}.wav", f"VideoFlash/{CLIP}.flv"
TSV = "crisismmd_datasplit_all/task_informative_text_img_train.tsv"
VIEW = "bed/test/bed_1.obj.shaded_v007.png"
MISTAKES = [
    ("cremad", without("test.csv"), r"test.csv: No such file"),
    ("cremad", without(WAV), rf"train.csv, row 9: .*{CLIP}.wav: No such file"),
    ("cremad", half(WAV), rf"train.csv, row 9: .*{CLIP}.wav: truncated"),
    ("cremad", without("VideoFlash"), r"train.csv, row 1: .*.flv: No such file"),
    ("cremad", holding(FLV, b"x" * 99), rf"row 9: .*{CLIP}.flv: unreadable video"),
    ("cremad", lambda f: (f / "Image-01-FPS").mkdir(), r"row 1: .*has no .jpg"),
    ("cremad", changed("train.csv", ",HAP", ",HAP,1"), r"row 2: 3 columns, expected 2"),
    ("cremad", changed("train.csv", ",HAP", ",JOY"), r"row 2: unknown class 'JOY'"),
    ("cremad", changed("train.csv", ",HAP", ",SAD"), r"row 2: .* its name says HAP"),
    ("cremad", changed("train.csv", "1_IOM_H", "1_H"), r"row 2: '1001_HAP_XX' is no"),
    (
        "cremad",
        changed("test.csv", "1002_IOM_DIS_XX,DIS\r\n", ""),
        "'DIS' has no sample",
    ),
    ("cremad", holding("test.csv", b"\n"), r"test.csv: is empty"),
    ("ave", changed("trainSet.txt", "&good&1", "&1"), r"row 2: 4 columns, expected 5"),
    (
        "ave",
        changed("trainSet.txt", "&b&", "&../b&"),
        r"row 2: '../b' is no video's id",
    ),
    ("ave", changed("trainSet.txt", "Bark", "Brak"), r"row 2: unknown class 'Brak'"),
    ("ave", changed("trainSet.txt", "&1&4", "&4&1"), r"row 2: start '4' and end '1'"),
    ("ave", changed("trainSet.txt", "&1&4", "&1&x"), r"row 2: start '1' and end 'x'"),
    (
        "ave",
        changed("trainSet.txt", "Church bell&a", "Bark&a"),
        r"'Church bell' has no",
    ),
    ("ave", without("AVE/b.mp4"), r"trainSet.txt, row 2: .*b.mp4: No such file"),
    ("ave", half("AVE/b.mp4"), r"trainSet.txt, row 2: .*b.mp4: unreadable video"),
    ("crisismmd", changed(TSV, "lost\t", "lost\t\t"), r".tsv, row 3: 10 columns"),
    (
        "crisismmd",
        changed(TSV, "event_name", "event"),
        r".tsv, row 1: header \['event'",
    ),
    (
        "crisismmd",
        changed(TSV, "png\tinf", "png\tf"),
        r"row 2: unknown class 'formative'",
    ),
    ("crisismmd", changed(TSV, "data_image/", "x/../../"), r"row 2: image '.* outside"),
    ("crisismmd", changed(TSV, "data_image/", "/etc/"), r"row 2: image '.* outside"),
    (
        "crisismmd",
        half("data_image/hurricane_irma/train_1.png"),
        r"row 3: .*unreadable",
    ),
    ("crisismmd", holding(TSV, b"\xff\xfe"), r"train.tsv: no UTF-8 text"),
    ("modelnet40", without("bed/test"), r"modelnet40: class 'bed' has no sample"),
    ("modelnet40", without(VIEW), r"bed/test: .*v007.png: No such file"),
    ("modelnet40", half(VIEW), r"bed/test: .*v007.png: unreadable image"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line_and_leave_nothing(name, spoil, message, folder):
    root = folder(name)
    spoil(root)
    with pytest.raises(ValueError, match=message) as error:
        loaded(name, root)
    assert "\n" not in str(error.value)
    made = list((root.parent / "cache").glob(".*.tmp"))
    assert made == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x/airplain/train/a.obj.shaded_v001.png\t0", "unknown class 'airplain'"),
        ("x/bed/train/a.obj.shaded_v001.png\t40", r"'40' is not .* 2 in \[0, 40\)"),
        ("x/bed/train/a.obj.shaded_v001.png\t-1", "label '-1' is not that of bed"),
        ("x/bed/train/a.obj.shaded_v002.png\t2", "is no <class>/<split>/<object>"),
        ("../bed/a.obj.shaded_v001.png\t2", "is no <class>/<split>/<object>"),
        ("x/bed/train/a.obj.shaded_v001.png 2", "1 columns, expected 2"),
    ],
)
def test_modelnet40_list_mistakes(originals, tmp_path, row, message):
    (tmp_path / "train.txt").write_text(f"{row}\n")
    with pytest.raises(ValueError, match=rf"train\.txt, row 1: .*{message}"):
        loaded("modelnet40", originals / "modelnet40", splits=str(tmp_path))


@pytest.mark.parametrize("name", LAYOUTS)
def test_root_and_options_are_checked_first(name, tmp_path):
    with pytest.raises(ValueError, match=r"^root: not given; give the folder with"):
        load(name)
    with pytest.raises(ValueError, match=r"^root='no': no such folder; give the one"):
        load(name, root="no")
    with pytest.raises(ValueError, match=r"^image_size=0: must be at least 1"):
        load(name, root=str(tmp_path), image_size=0)


def test_workers_are_checked(originals):
    with pytest.raises(ValueError, match=r"^workers=0: must be at least 1"):
        loaded("modelnet40", originals / "modelnet40", workers=0)


@pytest.mark.parametrize("views", [(), (1, 1), (0, 1)])
def test_views_are_checked(originals, views):
    with pytest.raises(ValueError, match=r"^views="):
        loaded("modelnet40", originals / "modelnet40", views=views)
