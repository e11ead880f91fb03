"""What data sets are made of, on the host."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

PathOption = Annotated[str, "path"]
"""Type of a factory's option that names a file or a folder: a run's config.json has it
absolute, so that the run can be resumed from any folder."""


SPLITS = ("train", "test")
"""The splits of a data set."""


class Shape(tuple[int, ...]):
    """The shape of one sample's array, a tuple of ints that knows the array's dtype.

    Example:
      >>> shape = Shape((7,), np.int32)
      >>> shape == (7,), shape.dtype.name
      (True, 'int32')
    """

    dtype: np.dtype

    def __new__(cls, shape: tuple[int, ...], dtype: Any = np.float32) -> "Shape":
        """A shape of that dtype."""
        made = super().__new__(cls, shape)
        made.dtype = np.dtype(dtype)
        return made


class Split(NamedTuple):
    """Samples of one split, on the host.

    Attributes:
      inputs: Modality name -> [n, ...] float32, or int32 for token ids; images are
        [n, height, width, channel]. An array may be a memory map of a file. A modality
        of several arrays (token ids and their mask) is a dict of them.
      labels: [n] int32 in [0, C).
      clients: [n] int32 natural client ids (speaker, volunteer...), or None.
      available: [n, M] bool, which modalities a sample has, in the data set's order;
        what it lacks may hold any number that ``check_dataset`` takes. None: all.
      sequential: Neighbouring rows of a client overlap in content, as sliding windows
        over one recording do; ``holdout.take_share`` then takes runs of them.
    """

    inputs: dict[str, Any]
    labels: np.ndarray
    clients: np.ndarray | None = None
    available: np.ndarray | None = None
    sequential: bool = False

    @property
    def size(self) -> int:
        """Number of samples n."""
        return len(self.labels)


def map_arrays(function: Callable[[str, Any], Any], where: str, values: Any) -> Any:
    """``function(where, array)`` of a modality's array, or of each in a dict of them.

    Example:
      >>> map_arrays(lambda where, x: (where, len(x)), "text", {"ids": [3, 4]})
      {'ids': ("text, 'ids'", 2)}
    """
    if isinstance(values, Mapping):
        return {
            name: map_arrays(function, f"{where}, {name!r}", x)
            for name, x in values.items()
        }
    return function(where, values)


def named_arrays(where: str, values: Any) -> list[tuple[str, Any]]:
    """A modality's arrays with what to call each in a message.

    Example:
      >>> named_arrays("text", {"ids": [3, 4]})
      [("text, 'ids'", [3, 4])]
    """
    found: list[tuple[str, Any]] = []
    map_arrays(lambda name, x: found.append((name, x)), where, values)
    return found
