"""Rows that are spread over devices, fetched and put back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fedcmi_jax import ring
from fedcmi_jax.placement import AXIS, client_mesh

CLIENTS = 12


def tables():
    """Rows that say whose they are."""
    ids = np.arange(CLIENTS)
    return {"scalar": ids * 1.5, "table": ids[:, None, None] + np.zeros((1, 2, 3))}


def on(devices, function, *args):
    """``function`` of every device's part of the arguments."""
    mesh = client_mesh(devices)
    mapped = jax.shard_map(
        functools.partial(function, devices=devices),
        mesh=mesh,
        in_specs=P(AXIS),
        out_specs=P(AXIS),
        check_vma=False,
    )
    return jax.jit(mapped)(*args)


ASKED = jnp.array([7, 0, 12, 11, 3, 3, 5, 12, 1, 2, 4, 10])
"""Some twice, some not at all; 12 is nobody."""


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_every_device_gets_the_rows_it_asks_for(devices):
    rows = on(devices, ring.fetch, tables(), ASKED)
    for name, table in tables().items():
        expected = table[np.minimum(ASKED, CLIENTS - 1)]
        np.testing.assert_array_equal(rows[name], expected.astype(np.float32))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_new_rows_go_home_and_nobodys_nowhere(devices):
    ids = jnp.array([7, 0, 12, 11, 3, 12, 5, 12])
    new = jax.tree.map(lambda x: -100.0 - x[np.minimum(ids, 11)], tables())
    stored = on(devices, ring.store, tables(), ids, new)
    for name, table in tables().items():
        expected = table.copy()
        real = np.asarray(ids) < CLIENTS
        expected[ids[real]] = new[name][real]
        np.testing.assert_array_equal(stored[name], expected.astype(np.float32))


def test_rows_past_the_last_client_are_nobodys():
    """Eleven clients on four devices: the twelfth row is padding, id 11 is nobody."""
    ids = jnp.array([11, 0, 10, 11])
    table = np.arange(CLIENTS) * 1.5
    rows = on(4, ring.fetch, table, ids)
    np.testing.assert_array_equal(rows, table[[11, 0, 10, 11]].astype(np.float32))
    stored = on(4, ring.store, table, ids, rows)
    np.testing.assert_array_equal(stored, table.astype(np.float32))


def test_no_memory_is_no_ring():
    ids = jnp.arange(4)
    assert ring.fetch((), ids, 2) == ()
    assert ring.store({}, ids, {}, 2) == {}
