"""Figures that print in black and white and have the same bytes every time."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from fedcmi_jax.experiment.curve import PALETTE
from fedcmi_jax.results.blocks import Figure

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")

DPI = 144
"""Pixels per inch of the PNG files."""

STYLE: dict[str, Any] = {
    "svg.hashsalt": "fedcmi_jax",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.5,
    "figure.dpi": DPI,
    "path.simplify": True,
    "text.parse_math": False,
}
"""Settings of every figure, so that a user's own change nothing."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults with ``STYLE``; the user's are put back."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def figure(name: str, caption: str, alt: str, draw: Callable[[], Canvas]) -> Figure:
    """Draws a figure in the common style, as SVG and as PNG.

    Args:
      name: Of its files.
      caption: What it shows.
      alt: The same for who cannot see it.
      draw: Makes it.
    """
    with style():
        canvas = draw()
        _settle(canvas)
        svg, png = io.BytesIO(), io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(svg, format="svg", metadata=nothing)
        canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Figure(name, caption, alt, svg.getvalue(), png.getvalue())


def _settle(canvas: Canvas) -> None:
    """Lays a figure out once; the solver's last digits differ from run to run."""
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    for axis in canvas.axes:
        axis.set_position(tuple(np.round(axis.get_position().bounds, 4).tolist()))


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour, line and marker of its line, in the order of the names."""
    return {
        name: {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": LINES[(i + i // len(PALETTE)) % len(LINES)],
            "marker": MARKERS[(i + i // len(PALETTE)) % len(MARKERS)],
        }
        for i, name in enumerate(names)
    }


def legend_below(canvas: Canvas, handles: Sequence[Any], width: float) -> None:
    """A legend under all axes, in as many columns as fit.

    Args:
      canvas: The figure.
      handles: Artists with labels.
      width: Inches of the figure.
    """
    longest = max(len(str(h.get_label())) for h in handles)
    columns = int(max(1, min(len(handles), width / (0.06 * longest + 0.55))))
    canvas.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False
    )


def shortened(text: str, longest: int = 40) -> str:
    """A label that fits in a figure: of a longer one both ends, where axes differ.

    Example:
      >>> shortened("abcdefgh", 5)
      'ab…gh'
    """
    if len(text) <= longest:
        return text
    end = longest // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"
