"""Random resized crops and flips inside the compiled training step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Batch

Augment = Callable[[Array, Batch], Batch]
"""``(key, batch) -> batch`` with other inputs; labels and masks as they are."""


class CropOptions(NamedTuple):
    """Ranges of a random crop (torchvision's defaults, which the public code uses).

    Attributes:
      area: Share of the image's area, drawn uniformly.
      aspect: Width over height, drawn log-uniformly.
      flip: Probability of a horizontal flip.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


def crop_and_flip(
    modalities: tuple[str, ...],
    options: CropOptions = CropOptions(),  # noqa: B008 (immutable)
) -> Augment:
    """Random resized crop and horizontal flip of image modalities.

    Every image, and every frame of a video by itself, gets its own crop: a box of a
    random area and aspect inside the image, resized bilinearly to the image's size.
    Boxes that do not fit are cut to the image (torchvision draws again instead).

    Args:
      modalities: Names of the modalities to augment: [B, H, W, C] or [B, T, H, W, C].
      options: Ranges.

    Returns:
      The augmentation, for ``LocalTraining.augment``.

    Example:
      >>> import jax
      >>> image = jax.numpy.ones((8, 8, 3))
      >>> crop(jax.random.key(0), image, CropOptions()).shape
      (8, 8, 3)
    """

    def augment(key: Array, batch: Batch) -> Batch:
        inputs = dict(batch.inputs)
        for i, m in enumerate(modalities):
            x = inputs[m]
            images = x.reshape(-1, *x.shape[-3:])
            keys = jax.random.split(jax.random.fold_in(key, i), len(images))
            cropped = jax.vmap(lambda k, image: crop(k, image, options))(keys, images)
            inputs[m] = cropped.reshape(x.shape)
        return batch._replace(inputs=inputs)

    return augment


def crop(key: Array, image: Array, options: CropOptions) -> Array:
    """One random resized crop of one image [H, W, C], perhaps flipped."""
    height, width, _ = image.shape
    area_key, aspect_key, place_key, flip_key = jax.random.split(key, 4)
    low, high = options.area
    area = jax.random.uniform(area_key, minval=low, maxval=high) * height * width
    narrow, wide = (jnp.log(a) for a in options.aspect)
    ratio = jnp.exp(jax.random.uniform(aspect_key, minval=narrow, maxval=wide))
    size = jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)])
    size = jnp.clip(size, 1.0, jnp.array([height, width], jnp.float32))
    room = jnp.array([height, width], jnp.float32) - size
    corner = jax.random.uniform(place_key, (2,)) * room
    scale = jnp.array([height, width], jnp.float32) / size
    box = jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -corner * scale, "linear", antialias=False
    )
    flipped = jax.random.bernoulli(flip_key, options.flip)
    return jnp.where(flipped, box[:, ::-1], box).astype(image.dtype)
