"""The server's own key: a file of its folder that nobody else may read.

All clients know the plan's seed. Privacy counts on their knowing neither who is drawn
nor the noise, so both come from this key there. The file's name ends like nothing that
Flower puts into an app's bundle.
"""

import secrets
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.experiment.files import read_bytes, replace

NAME = "server_key"
"""Of the file."""

KEY_BYTES = 8
"""Of a key of JAX's generator threefry2x32."""

OWNER_ONLY = 0o600
"""Permissions: its owner reads and writes it."""


def create(folder: Path) -> None:
    """Draws a key and writes it, unless the folder has one.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> create(folder)
      >>> f"{(folder / NAME).stat().st_mode & 0o777:o}", read(folder).shape
      ('600', ())
    """
    path = folder / NAME
    if not path.exists():
        replace(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode(), OWNER_ONLY)


def read(folder: Path) -> jax.Array:
    """The folder's key.

    Raises:
      ValueError: There is none, or the file is damaged; names it.
    """
    path = folder / NAME
    if not path.exists():
        raise ValueError(
            f"{path}: is missing, and with it the key of the run's noise; put it back, "
            "or name a new output folder"
        )
    try:
        words = bytes.fromhex(read_bytes(path).decode())
    except ValueError:
        words = b""
    if len(words) != KEY_BYTES:
        raise ValueError(f"{path}: has no key of {2 * KEY_BYTES} hexadecimal digits")
    data = np.frombuffer(words, np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
