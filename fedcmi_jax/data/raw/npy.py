"""Arrays from .npz and .npy files; nothing is ever unpickled."""

import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmi_jax.data.raw.zips import check_arrays, members


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing is unpickled.

    Raises:
      ValueError: The file is damaged or none, an array is, or what is packed in it is
        too much (`zips.check_arrays`); names file and array.
    """
    if not path.is_file():
        raise ValueError(f"{path}: is no ordinary file; give an .npz file")
    with path.open("rb") as opened:
        try:
            file = np.load(opened, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            file = None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(
                f"{path}: is no .npz file, or damaged; write it with np.savez"
            )
        check_arrays(path, members(path))
        return {key: _read(f"{path}, {key}", file, key) for key in file.files}


def zipped(arrays: Mapping[str, Any]) -> bytes:
    """The content of an .npz file of arrays, for ``files.replace``.

    Args:
      arrays: Name -> array of a type that NumPy has.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
      >>> path.write_bytes(zipped({"x/y": np.ones(2)})) > 0
      True
      >>> read_npz(path)["x/y"].tolist()
      [1.0, 1.0]
    """
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _read(where: str, file: Any, key: str) -> np.ndarray:
    try:
        return file[key]
    except Exception as error:  # zlib's and tokenize's own among them
        raise ValueError(f"{where}: {_why(error)}") from None


def read_npy(path: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, as a memory map.

    Raises:
      ValueError: The file is missing, damaged or none, or holds objects; names it.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no ordinary file")
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: {_why(error)}") from None


def _why(error: Exception) -> str:
    if any(sign in str(error) for sign in ("Object arrays", "Python objects")):
        return "is an array of objects, which only a pickle holds; give numbers"
    return f"cannot be read ({error}); write it again with np.save"
