"""Figures of the accuracy of every class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from fedcmi_jax.results.blocks import Figure
from fedcmi_jax.results.collect import Entry, is_number
from fedcmi_jax.results.drawing import HATCHES, figure, legend_below, shortened
from fedcmi_jax.results.figures import Looks

MOST_BARS = 80
"""Bars of a figure; more are a heat map."""
MOST_CELLS = 400
"""Cells of a heat map up to which each shows its number."""


def class_recalls(entry: Entry) -> np.ndarray | None:
    """[S, C] recall of every class at the last round of every seed; None without.

    NaN for a class without test samples. Seeds with other numbers of classes are left
    out.
    """
    found = (lines[-1].get("per_class") for lines in entry.seeds.values())
    rows = [row for row in found if isinstance(row, list) and row]
    rows = [row for row in rows if all(x is None or is_number(x) for x in row)]
    rows = [row for row in rows if len(row) == len(rows[0])]
    return np.array(rows, np.float64) if rows else None


def per_class(
    name: str,
    caption: str,
    alt: str,
    entries: Sequence[Entry],
    class_names: Sequence[str],
    looks: Looks,
) -> Figure:
    """Recall of every class: bars, or a heat map where they are many.

    Args:
      name: Of its files.
      caption: What it shows.
      alt: The same for who cannot see it.
      entries: With ``class_recalls``, of as many classes as there are names.
      class_names: C names.
      looks: Of the entries.
    """
    is_small = len(entries) * len(class_names) <= MOST_BARS
    draw = _bars if is_small else _heat_map
    return figure(name, caption, alt, lambda: draw(entries, class_names, looks))


def _tables(entries: Sequence[Entry]) -> list[np.ndarray]:
    found = (class_recalls(entry) for entry in entries)
    return [100 * table for table in found if table is not None]


def _bars(entries: Sequence[Entry], names: Sequence[str], looks: Looks) -> Canvas:
    tables, n = _tables(entries), len(entries)
    width = min(max(4.6, 0.17 * n * len(names) + 1.2), 9.3)
    canvas = Canvas(figsize=(width, 3.2), layout="constrained")
    axis = canvas.subplots()
    handles = []
    for i, (entry, table) in enumerate(zip(entries, tables, strict=True)):
        places = np.arange(len(names)) + (i - (n - 1) / 2) * 0.8 / n
        several = len(table) > 1
        handles.append(
            axis.bar(
                places,
                table.mean(0),
                0.8 / n,
                yerr=table.std(0, ddof=1) if several else None,
                color=looks[entry.label]["color"],
                hatch=HATCHES[i % len(HATCHES)],
                edgecolor="white",
                linewidth=0.3,
                error_kw={"elinewidth": 0.8, "ecolor": "0.25"},
                label=shortened(entry.label),
            )
        )
    texts = [shortened(name, 14) for name in names]
    is_long = max(map(len, texts)) * len(texts) * 0.08 > width
    axis.set_xticks(
        range(len(names)),
        texts,
        rotation=35 if is_long else 0,
        ha="right" if is_long else "center",
    )
    axis.set(
        ylabel="recall (%)",
        ylim=(0, 104),
        xlabel="class",
        xlim=(-0.6, len(names) - 0.4),
    )
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    if n > 1:
        legend_below(canvas, handles, width)
    return canvas


def _heat_map(entries: Sequence[Entry], names: Sequence[str], looks: Looks) -> Canvas:
    values = np.stack([table.mean(0) for table in _tables(entries)])
    size = (min(2.2 + 0.36 * len(names), 9.3), 1.6 + 0.26 * len(entries))
    canvas = Canvas(figsize=size, layout="constrained")
    axis = canvas.subplots()
    image = axis.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=100)
    axis.set_yticks(range(len(entries)), [shortened(e.label, 28) for e in entries])
    every = max(1, -(-len(names) // 40))
    shown = range(0, len(names), every)
    axis.set_xticks(shown, [shortened(names[i], 14) for i in shown], rotation=90)
    axis.set(xlabel="class")
    axis.spines[:].set_visible(False)
    if values.size <= MOST_CELLS:
        for (i, k), value in np.ndenumerate(values):
            color = "white" if value < 55 else "black"
            axis.text(
                k, i, f"{value:.0f}", color=color, size=6, ha="center", va="center"
            )
    canvas.colorbar(image, ax=axis, label="recall (%)")
    return canvas
