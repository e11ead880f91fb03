"""Reductions by columns: the same values, in vectors on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedcmi_jax.reductions import by_columns


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_it_is_the_whole_reduction(shape):
    values = jnp.asarray(np.random.default_rng(0).integers(-9, 9, shape), jnp.float32)
    assert by_columns(jnp.sum, values) == values.sum()
    assert by_columns(jnp.all, values > -9) == (values > -9).all()
    many = jnp.stack([values, 2 * values])
    found = jax.vmap(lambda x: by_columns(jnp.sum, x))(many)
    assert found.tolist() == [values.sum(), 2 * values.sum()]


def test_xla_does_not_make_one_reduction_of_it():
    program = jax.jit(lambda x: by_columns(jnp.sum, x)).lower(jnp.ones((64, 128)))
    text = program.compile().as_text()
    assert "f32[128]{0} reduce(" in text
