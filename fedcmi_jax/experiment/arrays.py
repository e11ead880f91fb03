"""A tree of arrays in a folder, written and read by Orbax, bit for bit.

The folder holds each leaf under its name (``params['head']['kernel']``), as Orbax alone
can read it. What Orbax lacks is put in its terms: PRNG keys are saved as their data,
dtypes of ml_dtypes as unsigned integers of the same bits, and arrays without elements
not at all.
"""

import contextlib
import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedcmi_jax.types import PyTree

REASON = 120
"""Characters of Orbax's message that are shown; TensorStore's fill a screen."""


def describe(tree: PyTree) -> dict[str, str]:
    """Name -> dtype and shape of every leaf, in tree order.

    Raises:
      ValueError: A leaf is no array.

    Example:
      >>> describe({"w": jnp.ones((2, 3)), "key": jax.random.key(0)})
      {"['key']": 'key<fry>[]', "['w']": 'float32[2, 3]'}
    """
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in named_leaves(tree).items()}


def write(path: Path, tree: PyTree) -> None:
    """Writes a tree into a new folder, and reads it back: Orbax only logs some errors.

    Args:
      path: Absolute; the folder must not exist.
      tree: Its leaves are arrays or PRNG keys, addressable by this process.

    Raises:
      ValueError: A leaf is no array.
      OSError: The disk refused, or what was written does not read back the same.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a"
      >>> write(path, {"w": jnp.ones(2)})
      >>> read(path, {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
      {'w': Array([1., 1.], dtype=float32)}
    """
    arrays = {
        n: np.asarray(jax.device_get(_bits(x))) for n, x in named_leaves(tree).items()
    }
    _save(path, {name: _raw(x) for name, x in arrays.items() if x.size})
    found = _restore(path, arrays)
    if any(found[name].tobytes() != x.tobytes() for name, x in arrays.items()):
        raise OSError(f"{path} does not read back as written")


def read(path: Path, like: PyTree) -> PyTree:
    """Reads what `write` wrote.

    Args:
      path: The folder.
      like: A tree of the same structure, dtypes and shapes, of arrays or of
        `jax.ShapeDtypeStruct`. Where its leaves have a sharding, the ones read get it;
        others go to the default device, uncommitted. Weak types become strong.

    Raises:
      OSError: The files do not hold these arrays, or cannot be read.
    """
    leaves = named_leaves(like)
    found = _restore(path, {n: jax.eval_shape(_bits, x) for n, x in leaves.items()})
    values = [_placed(found[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Name -> leaf, in tree order.

    Raises:
      ValueError: A leaf is no array.

    Example:
      >>> list(named_leaves({"w": {"bias": jnp.zeros(2)}}))
      ["['w']['bias']"]
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in paths}
    for name, leaf in named.items():
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"{name}: {leaf!r} is no array; make it one to save it")
    return named


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf: Any) -> Any:
    """The leaf as an ordinary array."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _raw(array: np.ndarray) -> np.ndarray:
    """The same bits in a dtype that NumPy has."""
    is_builtin = array.dtype.isbuiltin == 1
    return array if is_builtin else array.view(f"u{array.dtype.itemsize}")


def _placed(array: Any, like: Any) -> jax.Array:
    """The inverse of `_bits`, on the devices of ``like``."""
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    # An uncommitted array may follow others to their device; a committed one may not,
    # so what was free must stay free: other placement would compile programs again.
    is_free = not getattr(like, "committed", True)
    return jax.device_put(array, None if is_free else getattr(like, "sharding", None))


@contextlib.contextmanager
def _orbax(path: Path, failure: str, use_ocdbt: bool = True) -> Iterator[Any]:
    """Orbax in this process alone, silent; what it raises becomes an OSError."""
    # One process writes and reads, and must not wait for others.
    several, process = jax.process_count() > 1, jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process} if several else None,
        barrier_sync_key_prefix="fedcmi" if several else None,
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=use_ocdbt, use_zarr3=False, multiprocessing_options=options
    )

    def is_foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as orbax:
            yield orbax
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # Orbax and TensorStore promise no narrower set
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"{path} {failure}: {reason[:REASON]}") from error
    finally:
        logger.removeFilter(is_foreign)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # OCDBT merges all arrays into few files, but Orbax finds the parts with an
    # unescaped glob and silently merges nothing under a folder such as "run[1]".
    use_ocdbt = glob.escape(str(path)) == str(path)
    with _orbax(path, "cannot be written", use_ocdbt) as orbax:
        orbax.save(path, arrays)


def _restore(path: Path, like: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of these dtypes and shapes; raises OSError if they are not there."""
    arrays = {name: np.empty(x.shape, x.dtype) for name, x in like.items()}
    item = {name: _raw(x) for name, x in arrays.items() if x.size}
    how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
    with _orbax(path, "cannot be read") as orbax:
        found = orbax.restore(path, item=item, restore_args=how)
    return arrays | {n: np.asarray(found[n]).view(arrays[n].dtype) for n in item}
