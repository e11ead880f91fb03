"""Figures over rounds, of differences, and of clients' accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure as Canvas

from fedcmi_jax.evaluation.glossary import is_share
from fedcmi_jax.results.blocks import Figure
from fedcmi_jax.results.collect import Entry, last
from fedcmi_jax.results.comparison import Difference
from fedcmi_jax.results.curves import curve
from fedcmi_jax.results.drawing import figure, legend_below, shortened
from fedcmi_jax.results.labels import scale_of

PANEL = (3.1, 2.7)
"""Inches of a panel."""
WIDTH = 6.4
"""Inches of a figure of one panel."""
MOST_PANELS = 3
"""In a row."""
MOST_MARKERS = 8
"""On a line."""

Looks = Mapping[str, Mapping[str, Any]]
"""Label -> how its line looks."""


def over_rounds(
    name: str,
    caption: str,
    alt: str,
    entries: Sequence[Entry],
    panels: Sequence[tuple[str, str]],
    looks: Looks,
    scale: float = 1.0,
    unit: str = "",
) -> Figure:
    """Columns over the rounds: mean over seeds, with a band of one deviation.

    Args:
      name: Of its files.
      caption: What it shows.
      alt: The same for who cannot see it.
      entries: A line each.
      panels: Column and title of each panel.
      looks: Of the lines.
      scale: Factor on the values, 100 for percent.
      unit: Of the vertical axis.
    """

    def draw() -> Canvas:
        across = min(len(panels), MOST_PANELS)
        down = -(-len(panels) // MOST_PANELS)
        width = max(PANEL[0] * across, 4.6)
        extra = 0.35 + 0.18 * len(entries) / 2
        canvas = Canvas(figsize=(width, PANEL[1] * down + extra), layout="constrained")
        axes = list(canvas.subplots(down, across, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axis, (column, title) in zip(axes, panels, strict=False):
            for entry in entries:
                line = _line(axis, entry, column, looks[entry.label], scale)
                if line is not None:
                    handles.setdefault(entry.label, line)
            axis.set_title(title, loc="left")
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
            axis.set_xlabel("round")
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        canvas.supylabel(unit, size=9)
        if handles:
            legend_below(canvas, list(handles.values()), width)
        return canvas

    return figure(name, caption, alt, draw)


def _line(
    axis: Any, entry: Entry, column: str, look: Mapping[str, Any], scale: float
) -> Any:
    found = curve(entry, column)
    if found is None:
        return None
    mean, std = scale * found.mean, scale * np.nan_to_num(found.std)
    low, high = np.maximum(mean - std, np.minimum(mean, 0)), mean + std
    if scale == 100:
        high = np.minimum(high, 100)
    every = max(1, len(mean) // MOST_MARKERS)
    (line,) = axis.plot(
        found.rounds,
        mean,
        label=shortened(entry.label),
        markevery=every,
        markersize=4,
        linewidth=1.4,
        **look,
    )
    if std.any():
        axis.fill_between(
            found.rounds, low, high, color=look["color"], alpha=0.15, lw=0
        )
    return line


def intervals(
    name: str, caption: str, alt: str, found: Sequence[Difference], looks: Looks
) -> Figure:
    """Differences to the baseline: mean, t interval, and a line at zero.

    They are of one column, shares in points.
    """
    column = found[0].column
    unit = "points of accuracy" if is_share(column) else column
    factor, _ = scale_of(column)

    def draw() -> Canvas:
        height = 0.9 + 0.28 * len(found)
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        axis = canvas.subplots()
        axis.axvline(0, color="0.4", linewidth=0.8)
        for i, one in enumerate(found):
            if one.paired is None:
                continue
            look = looks[one.entry]
            mark = {"color": look["color"], "marker": look["marker"], "markersize": 5}
            axis.plot(factor * one.paired.mean, i, **mark)
            if one.paired.low is not None and one.paired.high is not None:
                ends = [factor * one.paired.low, factor * one.paired.high]
                axis.plot(ends, [i, i], color=look["color"], linewidth=1.5)
        axis.set_yticks(range(len(found)), [shortened(d.entry) for d in found])
        axis.set(ylim=(len(found) - 0.5, -0.5), xlabel=unit)
        axis.grid(axis="x", alpha=0.3)
        return canvas

    return figure(name, caption, alt, draw)


SPREAD = ("min", "p10", "median", "mean", "max")
"""What the lines have of how a number spreads over clients."""


def client_spread(
    name: str,
    caption: str,
    alt: str,
    entries: Sequence[Entry],
    prefix: str,
    looks: Looks,
) -> Figure:
    """How accuracy spreads over the clients at the last round, a line per entry.

    Args:
      name: Of its files.
      caption: What it shows.
      alt: The same for who cannot see it.
      entries: With the columns.
      prefix: Of the columns, such as ``client``.
      looks: Of the entries.
    """

    def draw() -> Canvas:
        height = 1.3 + 0.36 * len(entries)
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        axis = canvas.subplots()
        for i, entry in enumerate(entries):
            columns = {k: last(entry, f"{prefix}_{k}") for k in SPREAD}
            at = {k: 100 * np.mean(list(v.values())) for k, v in columns.items() if v}
            color = looks[entry.label]["color"]
            axis.plot([at["min"], at["max"]], [i, i], color=color, linewidth=1)
            axis.plot(
                [at["p10"], at["max"]], [i, i], color=color, linewidth=4, alpha=0.4
            )
            axis.plot(at["min"], i, "|", color=color, markersize=10)
            axis.plot(at["max"], i, "|", color=color, markersize=10)
            axis.plot(at["p10"], i, "<", color=color, markersize=6)
            axis.plot(at["median"], i, "o", color=color, markersize=6)
            axis.plot(at["mean"], i, "D", color=color, markersize=6, fillstyle="none")
        labels = [shortened(entry.label) for entry in entries]
        axis.set_yticks(range(len(entries)), labels)
        axis.set(ylim=(len(entries) - 0.5, -0.5), xlabel="accuracy of a client (%)")
        axis.grid(axis="x", alpha=0.3)
        styles = {"lowest, highest": "|", "10th percentile": "<", "median": "o"}
        handles = [
            axis.plot([], [], m, color="0.3", label=what)[0]
            for what, m in styles.items()
        ]
        handles += axis.plot([], [], "D", color="0.3", fillstyle="none", label="mean")
        legend_below(canvas, handles, WIDTH)
        return canvas

    return figure(name, caption, alt, draw)
