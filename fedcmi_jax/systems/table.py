"""What a file says of every client: speeds, bandwidths, when it is there."""

import pathlib
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.raw.npy import read_npz


class Table(NamedTuple):
    """What a file says of every client; None: it does not say.

    Attributes:
      samples_per_second: [N] float32, above 0.
      bytes_per_second: [N] float32, above 0.
      available: [N] in [0, 1], the probability that it is there in a round; or [T, N],
        1 where it is there, of round t mod T.
    """

    samples_per_second: np.ndarray | None = None
    bytes_per_second: np.ndarray | None = None
    available: np.ndarray | None = None


def read_table(path: pathlib.Path) -> Table:
    """Reads what a file says of clients.

    Raises:
      ValueError: It is no .npz file, or an array in it is unknown, of the wrong shape
        or has a number that cannot be; names file, array and client.
    """
    if not path.exists():
        raise ValueError(f"table: there is no {path}; give an .npz file")
    arrays = read_npz(path)
    for name, x in arrays.items():
        if name not in Table._fields:
            raise ValueError(
                f"{path}: {name!r} is none of {list(Table._fields)}; rename it"
            )
        ranks = (1, 2) if name == "available" else (1,)
        if x.ndim not in ranks or x.dtype.kind not in "fiub" or not x.size:
            raise ValueError(
                f"{path}, {name}: {x.dtype} of shape {x.shape}; give numbers, one per "
                "client"
            )
        if name == "available":
            good = (x >= 0) & (x <= 1) if x.ndim == 1 else (x == 0) | (x == 1)
        else:
            good = np.isfinite(x) & (x > 0)
        if not good.all():
            place = tuple(np.argwhere(~good)[0].tolist())
            raise ValueError(
                f"{path}, {name}: {x[place]} of client {place[-1]} cannot be"
            )
    numbers = {name: x.astype(np.float32) for name, x in arrays.items()}
    return Table(**numbers)
