"""Images: reading, bringing them to one size and scale."""

import importlib
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
"""Mean and deviation of ImageNet's red, green and blue, full intensity 1."""
HALVES = (np.full(3, 0.5), np.full(3, 0.5))
"""Mean and deviation that bring [0, 1] to [-1, 1]."""


def library(name: str) -> Any:
    """A library that only loaders of raw media need.

    Args:
      name: Module, "PIL.Image" or "av".

    Returns:
      The module.

    Raises:
      ValueError: It is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"{name.partition('.')[0]}: not installed, needed to read images and "
            "video; pip install 'fedcmi_jax[media]'"
        ) from None


def read_image(path: pathlib.Path) -> "Image":
    """An image file, decoded as RGB.

    Args:
      path: Any format that Pillow reads; transparent parts become black.

    Returns:
      The image.

    Raises:
      ValueError: The file is no image, ends early or is absurdly large; names it.
    """
    pillow = library("PIL.Image")
    try:
        with pillow.open(path) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                black = pillow.new("RGBA", image.size, (0, 0, 0, 255))
                image = pillow.alpha_composite(black, image)
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), "").split())
        raise ValueError(f"{path}: unreadable image ({reason}); replace it") from None


def resized(image: "Image", size: int) -> "Image":
    """The image at size x size pixels, bilinear with antialiasing, sides stretched.

    Args:
      image: Any size.
      size: Pixels of a side.

    Returns:
      The resized image.
    """
    if image.size == (size, size):
        return image
    return image.resize((size, size), library("PIL.Image").Resampling.BILINEAR)


def padded_to_square(image: "Image") -> "Image":
    """The image in the middle of a black square of its longer side.

    Args:
      image: Any size.

    Returns:
      A square image.
    """
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = library("PIL.Image").new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def center_crop(image: "Image", size: int) -> "Image":
    """The size x size pixels in the middle of the image.

    Args:
      image: At least size pixels each way.
      size: Pixels of a side.

    Returns:
      The cropped image.
    """
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def scaled(
    images: "Sequence[Image]", mean_deviation: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(x / 255 - mean) / deviation of each channel.

    Args:
      images: n RGB images of one size.
      mean_deviation: IMAGENET or HALVES.

    Returns:
      [n, height, width, 3] float32.
    """
    mean, deviation = mean_deviation
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    pixels *= (1 / (255 * deviation)).astype(np.float32)
    pixels -= (mean / deviation).astype(np.float32)
    return pixels


def evenly(count: int, wanted: int) -> list[int]:
    """Which of ``count`` things to keep: the middle ones of equal stretches.

    Args:
      count: Things there are, at least one.
      wanted: Things to keep; some come several times if there are fewer.

    Returns:
      ``wanted`` ascending indices.

    Example:
      >>> evenly(10, 4), evenly(2, 3)
      ([1, 3, 6, 8], [0, 1, 1])
    """
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
