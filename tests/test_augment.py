"""Random crops and flips, and training on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.models import augment
from fedcmi_jax.models.augment import CropOptions, crop_and_flip
from fedcmi_jax.testing.problem import algorithm, assert_close, federation, rounds

crop = jax.jit(augment.crop, static_argnums=2)

WHOLE = CropOptions(area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)


def image():
    return jax.random.normal(jax.random.key(1), (6, 6, 2))


def test_the_whole_image_is_the_image():
    np.testing.assert_allclose(
        crop(jax.random.key(0), image(), WHOLE), image(), atol=1e-5
    )


def test_a_certain_flip_mirrors():
    flipped = crop(jax.random.key(0), image(), WHOLE._replace(flip=1.0))
    np.testing.assert_allclose(flipped, image()[:, ::-1], atol=1e-5)


def test_a_crop_of_a_ramp_is_a_steeper_place_on_it():
    """Area 1/4 at aspect 1 is half the side: values change half as fast."""
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, :, None], (16, 16, 1))
    quarter = CropOptions(area=(0.25, 0.25), aspect=(1.0, 1.0), flip=0.0)
    row = crop(jax.random.key(3), ramp, quarter)[8, :, 0]
    np.testing.assert_allclose(jnp.diff(row)[1:-1], 0.5, atol=1e-4)
    assert 0 <= float(row.min()) < float(row.max()) <= 15


def test_frames_are_cropped_one_by_one_and_other_modalities_left_alone():
    frames = jnp.broadcast_to(image()[None, None], (2, 3, 6, 6, 2))
    batch = fc.Batch(
        {"audio": jnp.ones((2, 4)), "visual": frames},
        jnp.zeros(2, jnp.int32),
        jnp.ones(2),
        jnp.ones((2, 2)),
        jnp.arange(2),
    )
    seen = jax.jit(crop_and_flip(("visual",)))(jax.random.key(0), batch)
    assert seen.inputs["visual"].shape == frames.shape
    np.testing.assert_array_equal(seen.inputs["audio"], batch.inputs["audio"])
    assert bool((seen.inputs["visual"][0, 0] != seen.inputs["visual"][0, 1]).any())


def config(**local):
    return fc.config.from_dict(
        {
            "dataset": {"name": "cg_digits"},
            "encoder": {"name": "mlp", "features": 8},
            "model": {"width": 8},
            "local": {"epochs": 1, **local},
            "method": {"name": "fedavg"},
            "clients": 4,
            "clients_per_round": 2,
            "rounds": 1,
        }
    )


def one_round(config):
    built = build(config)
    state = built.algorithm.init(built.key, built.federation)
    return jax.jit(built.algorithm.round)(state, built.federation)


@pytest.mark.slow
def test_training_on_augmented_batches_differs_and_is_finite():
    plain, _ = one_round(config())
    state, info = one_round(config(augment=("gray",)))
    assert int(info.rejected) == 0
    leaves = zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(state.params), strict=True
    )
    assert any(bool((a != b).any()) for a, b in leaves)


@pytest.mark.parametrize(
    ("dataset", "names", "message"),
    [
        ("cg_digits", ("grey",), "unknown modality 'grey'"),
        ("synthetic", ("weak",), "no images or frames"),
    ],
)
def test_what_cannot_be_augmented_is_refused(dataset, names, message):
    values = {"dataset": {"name": dataset}, "local": {"augment": names}}
    with pytest.raises(ValueError, match=message):
        build(fc.config.from_dict(values))


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_the_teacher_sees_the_augmented_batch():
    """With an augmentation that changes nothing, the teacher's two forms agree."""
    same = fc.LocalTraining(epochs=2, batch_size=4, learning_rate=0.1)
    method = fc.methods.fedcmi(warmup_rounds=0)
    cached, _ = rounds(algorithm(method, local=same), federation(), 1)

    def augment(key, batch):
        return batch

    local = dataclasses.replace(same, augment=augment)
    fresh, _ = rounds(algorithm(method, local=local), federation(), 1)
    assert_close(cached, fresh)
