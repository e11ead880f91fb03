"""Arrays from and for .safetensors files, by the package of that name."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

SUFFIX = ".safetensors"

_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""The format's name of a type -> what it is here."""


def is_available() -> bool:
    """Whether the package is there; the extra ``export`` installs it."""
    return importlib.util.find_spec("safetensors") is not None


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a .safetensors file; bfloat16 is read as float32.

    Raises:
      ValueError: The package is missing, the file is damaged or none, or an array is of
        a type that NumPy has not; names file and array.
    """
    if not is_available():
        raise ValueError(
            f"{path}: needs safetensors; pip install 'fedcmi_jax[export]', or give an "
            ".npz file"
        )
    if not path.is_file():
        raise ValueError(f"{path}: is no ordinary file; give a {SUFFIX} file")
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(
            f"{path}: is no {SUFFIX} file, or damaged ({error}); write it again"
        ) from None
    return {name: _array(f"{path}, {name}", view) for name, view in found}


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a .safetensors file of arrays, for ``files.replace``.

    Args:
      arrays: Name -> array of a type that NumPy has.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
      >>> path.write_bytes(packed({"x/y": np.ones(2), "z": np.ones(())})) > 0
      True
      >>> found = read_safetensors(path)
      >>> found["x/y"].tolist(), found["z"].shape
      ([1.0, 1.0], ())
    """
    from safetensors.numpy import save

    # It writes the bytes of an array as they lie in memory.
    whole = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    return bytes(save(whole))


def _array(where: str, view: Mapping[str, Any]) -> np.ndarray:
    if view["dtype"] not in _TYPES:
        raise ValueError(
            f"{where}: is of type {view['dtype']}; write it as one of "
            f"{', '.join(_TYPES)}"
        )
    kind = np.dtype(_TYPES[view["dtype"]])
    x = np.frombuffer(view["data"], kind).reshape(view["shape"])
    return x.astype(np.float32) if view["dtype"] == "BF16" else x
