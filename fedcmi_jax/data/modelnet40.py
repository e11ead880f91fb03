"""modelnet40: two opposite views of rendered 3-D models, 40 classes.

Wu et al., "3D ShapeNets", CVPR 2015; the shaded renderings from twelve sides that come
with Su et al., "A Deeper Look at 3D Shape Classifiers", 2018; views 1 and 7 as in the
FedCMI code (methods 0.2).
"""

import functools
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data import raw
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.data.raw.cache import prepared
from fedcmi_jax.data.raw.decoding import Item, Log, silent
from fedcmi_jax.samples import PathOption

CLASSES = tuple(
    """
    airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk
    door dresser flower_pot glass_box guitar keyboard lamp laptop mantel monitor
    night_stand person piano plant radio range_hood sink sofa stairs stool table tent
    toilet tv_stand vase wardrobe xbox
    """.split()
)
"""The 40 classes; the order of the labels."""

_FIRST_VIEW = re.compile(r"(.+\.obj\.shaded_v)001\.png")


class Model(NamedTuple):
    """One object.

    Attributes:
      stem: "airplane/train/airplane_0001.obj.shaded_v", its files' common part.
      label: Place of its class in CLASSES.
      where: File and row that list it, or its folder.
    """

    stem: str
    label: int
    where: str


def modelnet40(
    log: Log = silent,
    *,
    root: PathOption | None = None,
    splits: PathOption | None = None,
    views: tuple[int, ...] = (1, 7),
    image_size: int = 224,
    cache_dir: PathOption | None = None,
    workers: int = 1,
) -> Dataset:
    """ModelNet40: 9,843 training and 2,468 test objects; modalities "view1", "view7".

    Each view is [n, image_size, image_size, 3]: the rendering, resized, with ImageNet's
    mean and deviation; a memory map of an array that the first call prepares, 1.2 MB
    per object for two views.

    The folder: ``<class>/<train or test>/<object>.obj.shaded_v001.png``, v002...; all
    objects found are used, or those that ``train.txt`` and ``test.txt`` list (rows
    ``.../<class>/<split>/<object>.obj.shaded_v001.png<tab><label>``).

    Args:
      log: Receives progress.
      root: Folder of the classes.
      splits: Folder of train.txt and test.txt; None: what is found in root.
      views: Numbers of the views, 1 to 12; each is a modality.
      image_size: Pixels of a side.
      cache_dir: Folder of prepared arrays, which may be deleted at any time; None:
        ``media`` in $FEDCMI_DATA_ROOT or in the user's cache.
      workers: Processes that prepare; 1: this one.

    Returns:
      The data set; it has no natural clients.

    Raises:
      ValueError: Something is missing, damaged or contradictory; names file and row.
    """
    raw.layout.check_at_least_one(image_size=image_size)
    if not views or len(set(views)) != len(views) or min(views) < 1:
        raise ValueError(f"views={views}: must be different numbers from 1 up")
    folder = raw.layout.root_folder(root, "one folder per class, airplane/ to xbox/")
    if splits is None:
        train, test = find_split(folder, "train"), find_split(folder, "test")
    else:
        train, test = (
            read_split(pathlib.Path(splits) / f"{s}.txt") for s in ("train", "test")
        )
    train, notes = raw.layout.without_test_samples(
        train, test, lambda m: m.stem, "models"
    )

    labels = [np.array([m.label for m in models], np.int32) for models in (train, test)]
    for values, name in zip(labels, ("train", "test"), strict=True):
        where = folder if splits is None else pathlib.Path(splits) / f"{name}.txt"
        raw.layout.check_classes(values, CLASSES, where)
    inputs = prepared(
        "modelnet40",
        {
            "train": [_item(folder, model, views) for model in train],
            "test": [_item(folder, model, views) for model in test],
        },
        functools.partial(_decode, views=views, image_size=image_size),
        {f"view{v}": (image_size, image_size, 3) for v in views},
        root=folder,
        cache_dir=cache_dir,
        workers=workers,
        log=log,
    )
    return Dataset(
        name="modelnet40",
        modalities=tuple(f"view{v}" for v in views),
        class_names=CLASSES,
        train=Split(inputs["train"], labels[0]),
        test=Split(inputs["test"], labels[1]),
        notes=notes,
    )


def read_split(path: pathlib.Path) -> list[Model]:
    """Rows of train.txt or test.txt.

    Args:
      path: The file; rows ``.../<class>/<split>/<object>.obj.shaded_v001.png<tab>0``.

    Returns:
      The objects, in order.

    Raises:
      ValueError: The file is missing, or a row has another form, an unknown class or a
        label that is not its class's; names file and row.
    """
    models = []
    for where, (image, label) in raw.layout.listed(path, "\t", 2):
        parts = pathlib.PurePosixPath(image).parts[-3:]
        match = _FIRST_VIEW.fullmatch("/".join(parts))
        if match is None or len(parts) != 3 or ".." in parts:
            raise ValueError(
                f"{where}: {image!r} is no <class>/<split>/<object>.obj.shaded_v001.png"
                "; correct the row"
            )
        if parts[0] not in CLASSES:
            raise ValueError(
                f"{where}: unknown class {parts[0]!r}; use one of {', '.join(CLASSES)}"
            )
        if label != str(CLASSES.index(parts[0])):
            raise ValueError(
                f"{where}: label {label!r} is not that of {parts[0]}, which is "
                f"{CLASSES.index(parts[0])} in [0, {len(CLASSES)}); correct the row"
            )
        models.append(Model(match[1], int(label), where))
    return models


def find_split(folder: pathlib.Path, split: str) -> list[Model]:
    """Objects of a split as they lie in the class folders.

    Args:
      folder: Folder of the classes.
      split: "train" or "test".

    Returns:
      The objects, by class and name.
    """
    return [
        Model(str(_stem(path).relative_to(folder)), label, str(path.parent))
        for label, name in enumerate(CLASSES)
        for path in _first_views(folder / name / split)
    ]


def _first_views(folder: pathlib.Path) -> Iterable[pathlib.Path]:
    return sorted(p for p in folder.glob("*.png") if _FIRST_VIEW.fullmatch(p.name))


def _stem(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name.removesuffix("001.png"))


def _item(folder: pathlib.Path, model: Model, views: tuple[int, ...]) -> Item:
    return Item(tuple(folder / f"{model.stem}{v:03}.png" for v in views), model.where)


def _decode(
    item: Item, *, views: tuple[int, ...], image_size: int
) -> dict[str, np.ndarray]:
    images = [
        raw.images.resized(raw.images.read_image(path), image_size)
        for path in item.sources
    ]
    values = raw.images.scaled(images, raw.images.IMAGENET)
    return {f"view{v}": values[i] for i, v in enumerate(views)}
