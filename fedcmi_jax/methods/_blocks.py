"""Block by block: what clients send of the blocks they own, and what is made of it."""

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import drop_frozen
from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Mean, Model, Params, PyTree, Sum


def zeros(model: Model, params: Params, num_clients: int) -> tuple[Params, Params]:
    """``Method.init``: zeros like the parameters, at the server and at every client.

    Those of frozen leaves are the number 0.
    """
    del num_clients
    start = drop_frozen(model.frozen.params, jax.tree.map(jnp.zeros_like, params))
    return start, start


def block_means(client: Client, value: PyTree, weight: Array) -> Params:
    """A ``Mean`` for every block, over the clients that own it."""
    owned = client.model.owned(client.data.available)
    return jax.tree.map(lambda own: Mean(value, weight * own), owned)


def block_sums(client: Client, value: Array) -> Params:
    """A ``Sum`` for every block, over the clients that own it."""
    owned = client.model.owned(client.data.available)
    return jax.tree.map(lambda own: Sum(own * value), owned)
