"""``fedcmi data``: prepare a data set before training."""

from collections.abc import Callable

import numpy as np

from fedcmi_jax import data
from fedcmi_jax.cli import describe
from fedcmi_jax.cli.flags import parse_options
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.config import lookup, section
from fedcmi_jax.experiment.split import load_dataset

Say = Callable[[str], None]

USAGE = """\
usage: fedcmi data COMMAND ...

  prepare NAME [--manual-dir=DIR] [--data-dir=DIR] [--OPTION=VALUE ...]
                download and prepare a data set, print its counts; the options are
                those of the data set: fedcmi data prepare NAME --help
                (cremad, ave, crisismmd, modelnet40: --root=DIR --workers=N)
  describe [PRESET] [--FLAG=VALUE ...]
                who holds what: samples, classes, modalities of every client;
                --output=FILE.png draws it; flags as of fedcmi train

fedcmi list datasets shows what there is, and what has to be got by hand.
"""


def main(args: list[str], say: Say) -> int:
    """Runs ``fedcmi data``.

    Args:
      args: Arguments behind ``data``.
      say: Takes the lines of the result.

    Returns:
      The exit code.

    Raises:
      ValueError: A user's mistake, in one line.
    """
    if not args or args[0] in ("-h", "--help"):
        say(USAGE.rstrip())
        return 0
    return COMMANDS[lookup("data", args[0], COMMANDS)](args[1:], say)


def _prepare(args: list[str], say: Say) -> int:
    if not args or args[0].startswith("-"):
        raise ValueError(
            f"data prepare: name the data set first; choose from {list(data.REGISTRY)}"
        )
    name = lookup("data set", args[0], data.REGISTRY)
    prog = f"fedcmi data prepare {name}"
    options = parse_options(section("dataset", name), args[1:], prog)
    if options is None:
        return 0
    if options.name != name:
        raise ValueError(f"--name: the data set is {name!r}; name it first, only")
    for line in counts(load_dataset(options, say)):
        say(line)
    return 0


COMMANDS: dict[str, Callable[[list[str], Say], int]] = {
    "prepare": _prepare,
    "describe": describe.run,
}
"""Name -> command."""


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
