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
}
"""Data set name -> entry, for every name in ``data.REGISTRY``."""
