"""The picture of a partition: class counts, modalities and sizes of the clients."""

import pathlib
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from fedcmi_jax.experiment.files import naming
from fedcmi_jax.results.holdings import Holdings

LONGEST_NAME = 24
"""Characters of a class name that fit under a column of the picture."""
MOST_NUMBERS = 600
"""Cells of a heat map up to which each shows its number."""
ROW_HEIGHT, TALLEST = 0.22, 14.0
"""Inches of a client's row, and of all of them at most."""
LABEL_HEIGHT = 0.2
"""Inches that a client's number takes."""


def draw(found: Holdings, path: pathlib.Path) -> None:
    """Writes a picture: class counts, modalities and sizes of every client.

    Args:
      found: Who holds what.
      path: File to write; replaced if it is there.
    """
    with naming(path):
        figure_of(found).savefig(path, dpi=120)


def figure_of(found: Holdings) -> Figure:
    """The picture, not yet written.

    Args:
      found: Who holds what.
    """
    num_clients, num_classes = found.counts.shape
    height = min(max(2.5, ROW_HEIGHT * num_clients), TALLEST)
    width = min(max(3.5, 0.42 * num_classes), 14.0)
    owned = 0.35 * len(found.modalities)
    size = (width + owned + 4.5, height + 1.8)
    figure = Figure(figsize=size, layout="constrained")
    left, middle, right = figure.subplots(
        1, 3, sharey=True, width_ratios=(owned, width, 2.2)
    )
    figure.suptitle(f"{found.title}: {num_clients} clients")
    _draw_modalities(left, found)
    image = _draw_classes(middle, found)
    figure.colorbar(
        image,
        ax=right,
        label="samples of a class",
        shrink=0.6,
        ticks=ticker.MaxNLocator(8, integer=True),
    )
    positions = np.arange(num_clients)
    right.barh(positions, found.sizes, height=0.8, color="tab:gray")
    right.set(xlabel="samples", xlim=(0, None), title="size")
    right.spines[["top", "right"]].set_visible(False)
    left.set(ylabel="client", ylim=(num_clients - 0.5, -0.5))
    if found.names and num_clients * LABEL_HEIGHT <= height:
        left.set_yticks(positions, [name[:LONGEST_NAME] for name in found.names])
    else:
        left.yaxis.set_major_locator(
            ticker.MaxNLocator(
                int(height / LABEL_HEIGHT), integer=True, steps=[1, 2, 5, 10]
            )
        )
    for axis in (left, middle, right):
        axis.tick_params(length=0, labelsize=8)
    return figure


def _draw_modalities(axis: Any, found: Holdings) -> None:
    axis.imshow(
        found.available, aspect="auto", cmap="Greens", vmin=0, vmax=1.6, origin="upper"
    )
    axis.set_xticks(range(len(found.modalities)), found.modalities, rotation=90)
    axis.set(title="has")
    _grid(axis, found.available.shape)


def _draw_classes(axis: Any, found: Holdings) -> Any:
    counts = np.ma.masked_equal(found.counts, 0)  # empty cells stay white
    image = axis.imshow(counts, aspect="auto", cmap="YlGnBu", vmin=0, origin="upper")
    names = [name[:LONGEST_NAME] for name in found.class_names]
    longest = max(map(len, names))
    axis.set_xticks(range(len(names)), names, rotation=0 if longest <= 3 else 90)
    axis.set(title="class counts")
    _grid(axis, counts.shape)
    if counts.size <= MOST_NUMBERS:
        middle = found.counts.max() / 2
        for (i, k), count in np.ndenumerate(found.counts):
            if count:
                color = "white" if count > middle else "black"
                axis.text(k, i, count, color=color, size=6, ha="center", va="center")
    return image


def _grid(axis: Any, shape: tuple[int, ...]) -> None:
    """White lines between cells that are large enough for them."""
    axis.set_xticks(np.arange(shape[1] - 1) + 0.5, minor=True)
    if shape[0] * ROW_HEIGHT <= TALLEST:
        axis.set_yticks(np.arange(shape[0] - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
