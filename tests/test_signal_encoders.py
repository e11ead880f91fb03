"""Signal encoders: shapes, masks, per-client use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedcmi_jax import models
from fedcmi_jax.models.signal_encoders import pool_pairs


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("length", [8, 9])
def test_pool_pairs(length):
    x = normal(2, length, 3)
    expected = np.maximum(x[:, 0:8:2], x[:, 1:8:2])
    np.testing.assert_array_equal(pool_pairs(x), expected)


@pytest.mark.parametrize(
    ("name", "shape", "norm"),
    [
        ("har_conv", (128, 3), "batch"),
        ("har_conv", (8, 1), "group"),
        ("spectrogram_conv", (32, 29, 1), "batch"),
        ("spectrogram_conv", (5, 3, 2), "group"),
    ],
)
def test_encoders_map_to_features_and_ignore_padding(name, shape, norm):
    encoder = models.ENCODERS[name](features=6, norm=norm)
    x, mask = normal(4, *shape), jnp.array([1.0, 1.0, 1.0, 0.0])
    variables = jax.jit(encoder.init, static_argnums=3)(
        jax.random.key(0), x, mask, True
    )

    @jax.jit
    def run(x):
        return encoder.apply(variables, x, mask, True, mutable=["batch_stats"])

    h, stats = run(x)
    assert h.shape == (4, 6)
    assert np.isfinite(h).all()
    other, other_stats = run(x.at[3].set(1e6))
    np.testing.assert_array_equal(h[:3], other[:3])
    jax.tree.map(np.testing.assert_array_equal, stats, other_stats)
    assert ("batch_stats" in stats) == (norm == "batch")


def test_spectrogram_conv_tells_pitch_and_ignores_when():
    encoder = models.spectrogram_conv(features=16)
    x = jnp.zeros((3, 32, 64, 1))
    x = x.at[0, 5, 20:28].set(1.0)
    x = x.at[1, 25, 20:28].set(1.0)  # another pitch
    x = x.at[2, 5, 28:36].set(1.0)  # later, by a whole stride of the net
    mask = jnp.ones(3)
    h, _ = jax.jit(
        lambda x: encoder.init_with_output(jax.random.key(0), x, mask, True)
    )(x)
    np.testing.assert_allclose(h[0], h[2], atol=1e-4)
    assert jnp.abs(h[0] - h[1]).max() > 1e-2


def test_mapped_over_clients_equals_one_at_a_time():
    encoder = models.har_conv(features=5)
    x, mask = normal(3, 4, 16, 3), jnp.ones((3, 4))

    def one(key, x, mask):
        return encoder.init_with_output(key, x, mask, True)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    together, alone = jax.jit(jax.vmap(one))(keys, x, mask), jax.jit(one)
    for i in range(3):
        np.testing.assert_allclose(
            together[i], alone(keys[i], x[i], mask[i]), rtol=1e-4, atol=1e-5
        )
