"""The accuracy of every single client, where a run has it."""

import collections
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from fedcmi_jax.experiment.run_folder import CLIENTS
from fedcmi_jax.experiment.seeds import folder_of
from fedcmi_jax.results.blocks import Figure
from fedcmi_jax.results.collect import Entry
from fedcmi_jax.results.drawing import figure, legend_below, shortened
from fedcmi_jax.results.figures import Looks

LOGGED = "client"
"""Prefix of the accuracies that only the client log has for every client."""

WIDTH = 6.4
"""Inches."""


def accuracies(entry: Entry, prefix: str) -> np.ndarray | None:
    """Accuracy of every client at the last round, of all seeds together.

    Args:
      entry: The entry.
      prefix: Of the columns, such as ``holdout``, whose ``holdout_per_client`` the
        metrics lines have; ``client`` is in the client log of runs with log_clients =
        all.

    Returns:
      [n] fractions, of clients that have one; None: not every seed has them.
    """
    lists = _logged(entry) if prefix == LOGGED else _in_lines(entry, prefix)
    found = [x for x in lists if isinstance(x, list) and x]
    if not found or len(found) < len(entry.seeds):
        return None
    values = np.array([np.nan if x is None else x for own in found for x in own], float)
    return values[np.isfinite(values)]


def _in_lines(entry: Entry, prefix: str) -> Iterator[Any]:
    for lines in entry.seeds.values():
        yield lines[-1].get(f"{prefix}_per_client")


def _logged(entry: Entry) -> Iterator[Any]:
    for folder in entry.folders:
        own = (folder_of(folder, seed) for seed in entry.planned)
        for path in (folder, *own):
            if (path / CLIENTS).is_file():
                yield _last_line(path / CLIENTS).get("accuracy")


def _last_line(path: pathlib.Path) -> dict[str, Any]:
    """The last finished line of a client log; {}: it cannot be read."""
    with path.open("rb") as file:
        ends = collections.deque(file, maxlen=1)  # a long run's log is large
    try:
        return dict(json.loads(ends.pop()))
    except (IndexError, ValueError):
        return {}


def distribution(
    name: str,
    caption: str,
    alt: str,
    entries: Sequence[Entry],
    prefix: str,
    looks: Looks,
) -> Figure | None:
    """Share of clients with at most an accuracy, a line per entry that has them.

    Args:
      name: Of its files.
      caption: What it shows.
      alt: The same for who cannot see it.
      entries: The entries.
      prefix: See ``accuracies``.
      looks: Of the entries.

    Returns:
      The figure; None: no entry has them.
    """
    found = {e.label: accuracies(e, prefix) for e in entries}
    known = {k: x for k, x in found.items() if x is not None and x.size}
    if not known:
        return None

    def draw() -> Canvas:
        canvas = Canvas(figsize=(WIDTH, 3.2), layout="constrained")
        axis = canvas.subplots()
        handles = []
        for label, values in known.items():
            look = looks[label]
            shares = 100 * np.arange(1, len(values) + 1) / len(values)
            handles += axis.step(
                np.sort(100 * values),
                shares,
                where="post",
                label=shortened(label),
                color=look["color"],
                linestyle=look["linestyle"],
                linewidth=1.4,
            )
        axis.set(
            ylim=(0, 100),
            xlabel="accuracy of a client (%)",
            ylabel="clients with at most that (%)",
        )
        axis.grid(alpha=0.3)
        legend_below(canvas, handles, WIDTH)
        return canvas

    return figure(name, caption, alt, draw)
