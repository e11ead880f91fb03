"""Several processes in one run: process 0 writes, and all agree on its values.

With one process every function here is the identity.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fedcmi_jax.types import PyTree


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def agree(tree: PyTree) -> PyTree:
    """Process 0's values of a tree of numbers or host arrays, on every process."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def fetch(tree: PyTree) -> PyTree:
    """The whole of every array on this process alone, single-device or host arrays.

    Arrays spread over processes are gathered: all processes must call this together.
    """

    def local(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = local(jax.random.key_data(x))
            return jax.random.wrap_key_data(jnp.asarray(data), impl=_key_impl(x))
        if not isinstance(x, jax.Array):
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        if x.is_fully_addressable:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(local, tree)


def broadcast(tree: PyTree) -> PyTree:
    """Process 0's state (PRNG keys included) as host arrays on every process."""
    if jax.process_count() == 1:
        return tree

    def raw(x: Any) -> Any:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(raw, tree))

    def typed(x: Any, like: Any) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(x), impl=_key_impl(like))
        return x

    return jax.tree.map(typed, sent, tree)


def _key_impl(key: Any) -> str:
    return str(jax.random.key_impl(key))
