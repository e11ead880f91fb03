"""``fedcmi data prepare``: a data set before training, and its counts."""

import functools

import numpy as np

from fedcmi_jax.cli.commands import Prepare
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.split import load_dataset


def run(options: Prepare) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: An option is impossible, or the data cannot be had.
    """
    log = functools.partial(print, flush=True)
    for line in counts(load_dataset(options.options, log)):
        log(line)
    return 0


def counts(dataset: Dataset) -> list[str]:
    """Samples per class and split, and natural clients, as lines of text.

    Args:
      dataset: Any data set.

    Returns:
      One line per class and one for the sum, under a heading.

    Example:
      >>> from fedcmi_jax import data
      >>> tiny = data.load("synthetic", num_classes=2, train_samples=5, test_samples=2)
      >>> for line in counts(tiny):
      ...     print(line)
      synthetic: strong (32,), weak (32,)
      class    train     test
      0            3        1
      1            2        1
      all          5        2
    """
    splits = {"train": dataset.train, "test": dataset.test}
    width = max(len(name) for name in ("class", *dataset.class_names))
    shapes = ", ".join(f"{m} {shape}" for m, shape in dataset.shapes.items())
    lines = [f"{dataset.name}: {shapes}"]

    def row(name: str, *cells: object) -> str:
        return f"{name:{width}}" + "".join(f"{cell:>9}" for cell in cells)

    lines.append(row("class", *splits))
    table = [
        np.bincount(split.labels, minlength=dataset.num_classes)
        for split in splits.values()
    ]
    for name, *per_split in zip(dataset.class_names, *table, strict=True):
        lines.append(row(name, *(f"{count:,}" for count in per_split)))
    lines.append(row("all", *(f"{split.size:,}" for split in splits.values())))
    clients = [s.clients for s in splits.values() if s.clients is not None]
    if clients:
        lines.append(row("clients", *(len(np.unique(ids)) for ids in clients)))
    return lines
