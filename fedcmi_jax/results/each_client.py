"""The accuracy of every single client, where a run has it."""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.run_folder import CLIENTS, CONFIG
from fedcmi_jax.experiment.seeds import folder_of
from fedcmi_jax.results.blocks import Figure
from fedcmi_jax.results.collect import Entry, is_number
from fedcmi_jax.results.drawing import figure, legend_below, shortened
from fedcmi_jax.results.figures import WIDTH, Looks

LOGGED = "client"
"""Prefix of the accuracies that only the client log has for every client."""


def accuracies(entry: Entry, prefix: str) -> np.ndarray | None:
    """Accuracy of every client at the last round, of all seeds together.

    Args:
      entry: The entry.
      prefix: Of the columns, such as ``holdout``, whose ``holdout_per_client`` the
        metrics lines have; ``client`` is in the client log of runs with log_clients =
        all.

    Returns:
      [n] fractions, of clients that have one; None: not every seed has them, or its
      log has not come as far as its lines.
    """
    values: list[float] = []
    for seed, lines in entry.seeds.items():
        own = lines[-1].get(f"{prefix}_per_client")
        if prefix == LOGGED:
            own = _logged(entry, seed, lines[-1].get("round"))
        if not isinstance(own, list) or not own:
            return None
        values += filter(is_number, own)
    return np.array(values, float)


def _logged(entry: Entry, seed: int, round: Any) -> Any:
    """What the client log says of a seed's round; None: nothing."""
    for folder in entry.folders:
        for path in (folder, folder_of(folder, seed)):
            if (path / CLIENTS).is_file() and _seed_of(path) == seed:
                line = _last_line(path / CLIENTS)
                return line.get("accuracy") if line.get("round") == round else None
    return None


def _seed_of(folder: pathlib.Path) -> Any:
    """The seed of a run of one."""
    content = read_json(folder / CONFIG)
    config = content.get("config") if isinstance(content, dict) else None
    return config.get("seed", 0) if isinstance(config, dict) else None


def _last_line(path: pathlib.Path) -> dict[str, Any]:
    """The last line of a client log; {}: it cannot be read."""
    with path.open("rb") as file:
        ends = collections.deque(file, maxlen=1)  # a long run's log is large
    try:
        found = json.loads(ends.pop())
    except (IndexError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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
            ordered = np.sort(100 * values)
            handles += axis.step(
                [ordered[0], *ordered],
                np.linspace(0, 100, len(values) + 1),
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
