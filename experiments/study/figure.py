"""Draws the core study's figure from its table.

    python experiments/study/figure.py runs/core/table.csv figure.png

A panel per data set, a row per method: fused accuracy and that of each modality alone,
mean and sample deviation over the seeds. A dotted line is central training, fused.
"""

import argparse
import csv
import pathlib
from typing import Any

from matplotlib.figure import Figure

METHODS = ("fedavg", "heads-only", "fedcmi", "scaffold", "fedpmr", "bmsfed")
CENTRAL = "central"
VIEWS = (("o", "#D55E00"), ("s", "#0072B2"), ("^", "#009E73"))
"""Marker and colour of each modality alone, three at most (Okabe and Ito)."""

Row = dict[str, str]


def blocks(path: pathlib.Path) -> dict[str, dict[str, Row]]:
    """Data set -> method -> the table's row; blocks without a bound are left out."""
    found: dict[str, dict[str, Row]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["block"], {})[row["method"]] = row
    return {block: rows for block, rows in found.items() if CENTRAL in rows}


def modalities(row: Row) -> list[str]:
    """Modalities of a row: those with a column ``acc_{m}_zero`` that has a value."""
    alone = (k for k, v in row.items() if v and k.endswith("_zero"))
    ends = [k for k in alone if not k.startswith("val_")]
    return [k.removeprefix("acc_").removesuffix("_zero") for k in ends]


def points(axis: Any, rows: dict[str, Row], column: str, **look: Any) -> None:
    """Mean and deviation of a column, a method a row; none where the method failed."""
    known = [(i, rows[m]) for i, m in enumerate(METHODS) if rows[m][column]]
    axis.errorbar(
        [100 * float(row[column]) for _, row in known],
        [i for i, _ in known],
        xerr=[100 * float(row[f"{column}_std"] or 0) for _, row in known],
        linestyle="none",
        elinewidth=1,
        markersize=5,
        **look,
    )


def draw(found: dict[str, dict[str, Row]]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axis, (block, rows) in zip(axes, found.items(), strict=True):
        names = modalities(rows["fedavg"])
        for m, (marker, color) in zip(names, VIEWS, strict=False):
            look = {
                "fmt": marker,
                "color": color,
                "mfc": "white",
                "label": f"{m} alone",
            }
            points(axis, rows, f"acc_{m}_zero", **look)
        points(axis, rows, "acc", fmt="D", color="black", label="fused")
        if rows[CENTRAL]["acc"]:
            central = 100 * float(rows[CENTRAL]["acc"])
            axis.axvline(central, color="gray", ls=":", label=CENTRAL)
        axis.set_title(f"{block}: test accuracy, %", loc="left", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.07)
        axis.legend(
            fontsize=7,
            ncol=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
        )
        for i, method in enumerate(METHODS):
            if not rows[method]["acc"]:
                axis.text(axis.get_xlim()[0], i, " diverged", va="center", fontsize=7)
    axes[0].set_yticks(range(len(METHODS)), METHODS)
    axes[0].invert_yaxis()
    return figure


def main() -> None:
    """Reads a table, writes a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    draw(blocks(args.table)).savefig(args.output, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
