"""Which sample belongs to which client, and which modalities a client has.

Partitioners share one signature, ``name(split, num_clients, rng, *, options)``, and sit
in REGISTRY. All draws come from the NumPy generator that they are given.
"""

from collections.abc import Callable

from fedcmi_jax.partition.base import Partition as Partition
from fedcmi_jax.partition.custom import custom as custom
from fedcmi_jax.partition.dirichlet import MAX_RETRIES as MAX_RETRIES
from fedcmi_jax.partition.dirichlet import dirichlet as dirichlet
from fedcmi_jax.partition.iid import iid as iid
from fedcmi_jax.partition.modalities import allocate_modalities as allocate_modalities
from fedcmi_jax.partition.modalities import check_available as check_available
from fedcmi_jax.partition.modalities import drop_modalities as drop_modalities
from fedcmi_jax.partition.natural import natural as natural
from fedcmi_jax.partition.natural_dirichlet import (
    natural_dirichlet as natural_dirichlet,
)
from fedcmi_jax.partition.pathological import pathological as pathological
from fedcmi_jax.partition.quantity_skew import quantity_skew as quantity_skew
from fedcmi_jax.partition.shards import shards as shards

REGISTRY: dict[str, Callable[..., Partition]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "natural": natural,
    "natural_dirichlet": natural_dirichlet,
    "pathological": pathological,
    "shards": shards,
    "quantity_skew": quantity_skew,
}
"""Name -> partitioner."""
