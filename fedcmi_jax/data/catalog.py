"""What there is to know of a data set before it is loaded: ``fedcmi list datasets``."""

from typing import NamedTuple


class Entry(NamedTuple):
    """One row of the catalogue; the numbers are those of the loader's defaults.

    Attributes:
      modalities: Names, in the loader's order.
      classes: Number of classes C; None: an option of the loader.
      train: Training samples; None: an option of the loader.
      test: Test samples; None: an option of the loader.
      clients: Natural clients, as "21 volunteers"; "" if the set has none.
      get: How to get the data.
      licence: Licence of the data, as its source states it.
    """

    modalities: tuple[str, ...]
    classes: int | None
    train: int | None
    test: int | None
    clients: str
    get: str
    licence: str


_DIGITS = "comes with scikit-learn"
_DIGITS_LICENCE = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
_DOWNLOADED = "downloaded on first use"
_MNIST_LICENCE = "CC BY-SA 3.0, commonly stated (MNIST)"

CATALOG: dict[str, Entry] = {
    "noisy_digits": Entry(
        modalities=("clean", "noisy"),
        classes=10,
        train=1_437,
        test=360,
        clients="",
        get=_DIGITS,
        licence=_DIGITS_LICENCE,
    ),
    "cg_digits": Entry(
        modalities=("gray", "color"),
        classes=10,
        train=1_437,
        test=360,
        clients="",
        get=_DIGITS,
        licence=_DIGITS_LICENCE,
    ),
    "synthetic": Entry(
        modalities=("strong", "weak"),
        classes=10,
        train=2_000,
        test=1_000,
        clients="",
        get="drawn at random",
        licence="none needed",
    ),
    "noisy_mnist": Entry(
        modalities=("clean", "noisy"),
        classes=10,
        train=60_000,
        test=10_000,
        clients="",
        get=_DOWNLOADED,
        licence=_MNIST_LICENCE,
    ),
    "cg_mnist": Entry(
        modalities=("gray", "color"),
        classes=10,
        train=60_000,
        test=10_000,
        clients="",
        get=_DOWNLOADED,
        licence=_MNIST_LICENCE,
    ),
    "av_mnist": Entry(
        modalities=("image", "audio"),
        classes=10,
        train=60_000,
        test=10_000,
        clients="5 speakers",
        get=_DOWNLOADED,
        licence=f"{_MNIST_LICENCE}; CC BY-SA 4.0 (FSDD)",
    ),
    "hapt": Entry(
        modalities=("acc", "gyro"),
        classes=6,
        train=7_415,
        test=2_996,
        clients="21 volunteers",
        get="by hand, https://archive.ics.uci.edu/dataset/341, as manual_dir",
        licence="CC BY 4.0 (UCI)",
    ),
    "cremad": Entry(
        modalities=("audio", "visual"),
        classes=6,
        train=6_698,
        test=744,
        clients="91 actors",
        get="by hand, github.com/CheyneyComputerScience/CREMA-D, as root",
        licence="ODbL 1.0",
    ),
    "ave": Entry(
        modalities=("audio", "visual"),
        classes=28,
        train=3_329,
        test=402,
        clients="",
        get="by hand, github.com/YapengTian/AVE-ECCV18, as root",
        licence="videos: their authors' (YouTube); annotations: not stated",
    ),
    "crisismmd": Entry(
        modalities=("image", "text"),
        classes=2,
        train=13_608,
        test=2_237,
        clients="7 events",
        get="by hand, https://crisisnlp.qcri.org/crisismmd (v2.0), as root",
        licence="CC BY-NC-SA 4.0; tweets: Twitter's terms",
    ),
    "modelnet40": Entry(
        modalities=("view1", "view7"),
        classes=40,
        train=9_843,
        test=2_468,
        clients="",
        get="by hand, github.com/jongchyisu/mvcnn_pytorch (shaded, 12 views), as root",
        licence="research only (Princeton ModelNet)",
    ),
    "npz": Entry(
        modalities=("your own",),
        classes=None,
        train=None,
        test=None,
        clients="",
        get="your arrays, as path (docs/new_data.md)",
        licence="yours",
    ),
    "manifest": Entry(
        modalities=("your own",),
        classes=None,
        train=None,
        test=None,
        clients="",
        get="your files, listed in a CSV, as path (docs/new_data.md)",
        licence="yours",
    ),
}
"""Data set name -> entry, for every name in ``data.REGISTRY``."""
