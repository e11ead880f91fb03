"""data.tfds on data sets of its own making, and on none."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from fedcmi_jax import data


def png(pixels):
    """TFDS encodes arrays by TensorFlow, but takes encoded images as they are."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="png")
    file.seek(0)
    return file


class PairedThings(tfds.core.GeneratorBasedBuilder):
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    url_infos: dict = {}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(4, 5, 3)),
                    "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "ragged": tfds.features.Tensor(shape=(None,), dtype=np.float32),
                    "words": tfds.features.Text(),
                    "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "number": tfds.features.Scalar(np.int64),
                    "size": tfds.features.Scalar(np.float32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "picture": png(np.full((4, 5, 3), 51 * (i % 6), np.uint8)),
                    "vector": np.array([i, -i], np.float32),
                    "ragged": np.zeros(1 + i, np.float32),
                    "words": "some",
                    "kind": i % 2,
                    "number": i % 3,
                    "size": i / 2,
                },
            )


MODALITIES = {"seen": "picture", "felt": "vector"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = PairedThings(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return str(root)


def test_any_prepared_data_set(folder):
    loaded = data.tfds("paired_things", MODALITIES, "kind", data_dir=folder)
    assert loaded.name == "paired_things"
    assert loaded.modalities == ("seen", "felt")
    assert loaded.class_names == ("cat", "dog")
    assert (loaded.train.size, loaded.test.size) == (6, 3)
    assert loaded.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert loaded.train.labels.dtype == np.int32
    seen = loaded.train.inputs["seen"]
    assert seen.shape == (6, 4, 5, 3)
    np.testing.assert_allclose(seen[:, 0, 0, 0], np.arange(6) / 5, rtol=1e-6)
    np.testing.assert_array_equal(loaded.test.inputs["felt"][2], [2, -2])
    data.check_dataset(loaded)


def test_a_folder_slices_and_labels_that_are_numbers(folder):
    loaded = data.tfds(
        f"{folder}/paired_things/1.0.0",
        {"felt": "vector"},
        "number",
        train="train[:4]",
        test="train[4:]",
    )
    assert loaded.class_names == ("0", "1", "2")
    assert loaded.train.labels.tolist() == [0, 1, 2, 0]
    assert loaded.test.inputs["felt"][:, 0].tolist() == [4, 5]


@pytest.mark.parametrize(
    ("name", "modalities", "options", "part"),
    [
        ("no_such_thing", MODALITIES, {}, "TFDS knows no such data set"),
        ("paired_things", {"a": "sound"}, {}, "no feature 'sound'"),
        ("paired_things", MODALITIES, {"label": "klass"}, "no feature 'klass'"),
        ("paired_things", MODALITIES, {"label": "size"}, "row 1: label 0.5 is no int"),
        ("paired_things", MODALITIES, {"label": "vector"}, "labels of shape (6, 2)"),
        ("paired_things", {}, {}, "name one or more features"),
        ("paired_things", MODALITIES, {"test": "validation"}, "validation"),
        ("paired_things", {"a": "ragged"}, {}, "row 1: 'ragged' has shape (2,)"),
        ("paired_things", {"a": "words"}, {}, "not numbers; choose an image or tensor"),
        ("paired_things", MODALITIES, {"data_dir": "elsewhere"}, "not prepared in"),
    ],
)
def test_mistakes_are_one_line(name, modalities, options, part, folder, tmp_path):
    options = {"label": "kind", "data_dir": folder} | options
    with pytest.raises(ValueError, match=".") as error:
        data.tfds(name, modalities, **options)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
