"""MNIST (LeCun et al., 1998): its four files, and a plain builder of image and label.

The catalogue's builder of the same name needs TensorFlow to be prepared.
"""

import gzip
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedcmi_jax.data.raw.zips import LARGEST_MEMBER
from fedcmi_jax.data.tfds.download import fetch, url_info

CLASS_NAMES = tuple("0123456789")
IMAGE_SHAPE = (28, 28, 1)

_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""Split -> file of images, file of labels."""

# Sizes and digests are those of TFDS's own checksum table.
URL_INFOS = {
    _URL + name: url_info(size, sha256, name)
    for name, size, sha256 in (
        (
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
}
"""URL -> size, sha256 and name of the four files."""

INSTRUCTIONS = "Put the four MNIST .gz files into the folder."

_IDX_UINT8 = 0x08  # type code of the idx format


def split_generators(builder: Any, dl_manager: Any) -> dict[str, Any]:
    """``_split_generators`` of a builder whose samples are MNIST's images."""
    files = fetch(dl_manager, builder.url_infos)
    return {split: builder._generate_examples(files, split) for split in FILES}


class Mnist(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Image and label; not registered, as the name is the catalogue's."""

    name = "mnist"
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    url_infos = URL_INFOS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=IMAGE_SHAPE, dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            disable_shuffling=True,
        )

    _split_generators = split_generators

    def _generate_examples(
        self, files: Mapping[str, pathlib.Path], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_mnist(files, split)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def read_mnist(
    files: Mapping[str, pathlib.Path], split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split, in the order of the files.

    Args:
      files: File name -> path, as ``fetch`` returns it.
      split: train or test.

    Returns:
      [n, 28, 28, 1] uint8 and [n] uint8.

    Raises:
      ValueError: A file is damaged, the files are of different lengths, or a label is
        above 9; names file and row.
    """
    images, labels = (read_idx(files[name]) for name in FILES[split])
    label_file = files[FILES[split][1]]
    if len(images) != len(labels):
        raise ValueError(
            f"{label_file}: {len(labels)} labels for {len(images)} images; get all "
            "files again"
        )
    bad = np.flatnonzero(labels >= len(CLASS_NAMES))
    if bad.size:
        raise ValueError(
            f"{label_file}, row {bad[0]}: label {labels[bad[0]]} is above 9; get the "
            "file again"
        )
    return images.reshape(-1, *IMAGE_SHAPE), labels


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The array of a gzipped idx file of unsigned bytes.

    Args:
      path: The file: two zero bytes, the type, the number of axes, the length of each
        axis as 4 big-endian bytes, then the values.

    Returns:
      uint8 array.

    Raises:
      ValueError: It is damaged, truncated or of another type; names it.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST_MEMBER + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({error}); get the file again") from None
    if len(content) > LARGEST_MEMBER:
        raise ValueError(f"{path}: unpacks to too much; get the file again")
    if len(content) < 4 or content[:3] != bytes((0, 0, _IDX_UINT8)):
        raise ValueError(f"{path}: no idx file of bytes; get the file again")
    header = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:header], ">u4"))
    if len(shape) < content[3] or len(content) != header + int(np.prod(shape)):
        raise ValueError(
            f"{path}: {max(len(content) - header, 0)} values for shape {shape}; get "
            "the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
