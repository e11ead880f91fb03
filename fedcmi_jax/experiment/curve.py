"""The small picture in a run's folder: accuracy over rounds, as an SVG of a few lines.

Written by hand: it costs no import of a plotting library, and has the same bytes
wherever the same run is trained.
"""

import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedcmi_jax.experiment.files import replace
from fedcmi_jax.experiment.progress import modality_accuracies, percent

CURVE = "curve.svg"

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#E69F00", "#000000", "#B8A800"),
)
"""Colours that the colour-blind tell apart (Okabe and Ito, 2008); the yellow is darker
than theirs, which is hard to see on white paper."""

_DASHES = ("none", "6 3", "2 2", "8 3 2 3")
_LEFT, _TOP, _WIDTH, _HEIGHT = 44, 30, 380, 190
"""Pixels: where the axes begin, and their size."""
_LEGEND = 170
"""Pixels beside the axes."""
_LONGEST = 22
"""Letters of a name in the legend."""


def write_curve(folder: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Writes curve.svg; a disk that refuses it does not fail the run.

    Args:
      folder: The run's.
      lines: Metrics lines of evaluated rounds, at least one.

    Returns:
      Whether it was written.
    """
    try:
        replace(folder / CURVE, drawn(lines).encode())
    except OSError:
        return False
    return True


def drawn(lines: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over rounds, fused and of every modality alone.

    Args:
      lines: Metrics lines; where they are of several seeds, with ``NAME_std``, there is
        a band of one sample deviation.

    Returns:
      The SVG.

    Example:
      >>> text = drawn([{"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.75}])
      >>> 'points="44.0,125.0 424.0,77.5"' in text, "fused 75.0 %" in text
      (True, True)
    """
    first, last = lines[0]["round"], lines[-1]["round"]
    span = max(last - first, 1)

    def at(round: int, value: float) -> str:
        x = _LEFT + _WIDTH * (round - first) / span
        y = _TOP + _HEIGHT * (1 - min(max(value, 0.0), 1.0))
        return f"{x:.1f},{y:.1f}"

    size = (_LEFT + _WIDTH + _LEGEND, _TOP + _HEIGHT + 40)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="12" '
        'role="img">',
        "<title>Test accuracy over rounds</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="18">test accuracy (%) over rounds</text>',
        *_axes(first, last),
    ]
    names = {"acc": "fused"}
    names |= {f"acc_{m}_zero": m for m in modality_accuracies(dict(lines[-1]))}
    for i, (column, name) in enumerate(names.items()):
        color, dash = PALETTE[i % len(PALETTE)], _DASHES[i % len(_DASHES)]
        found = [
            (r["round"], r[column], r.get(f"{column}_std"))
            for r in lines
            if _is_number(r.get(column))
        ]
        band = [x for x in found if _is_number(x[2])]
        if len(band) > 1:
            ends = [at(r, mean + std) for r, mean, std in band]
            ends += [at(r, mean - std) for r, mean, std in reversed(band)]
            style = f'fill="{color}" fill-opacity="0.15"'
            parts.append(f'<polygon points="{" ".join(ends)}" {style}/>')
        style = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
        points = " ".join(at(r, mean) for r, mean, _ in found)
        parts.append(f'<polyline points="{points}" fill="none" {style}/>')
        if len(found) == 1:
            dot = 'stroke-width="6" stroke-linecap="round"'
            parts.append(f'<path d="M{points}h0" stroke="{color}" {dot}/>')
        x, y = _LEFT + _WIDTH + 12, _TOP + 12 + 20 * i
        label = escape(f"{name[:_LONGEST]} {percent(lines[-1].get(column))}")
        parts += [
            f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" {style}/>',
            f'<text x="{x + 28}" y="{y}">{label}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _axes(first: int, last: int) -> list[str]:
    """Lines at every quarter, and the first and the last round."""
    parts = []
    for share in (0, 25, 50, 75, 100):
        y = _TOP + _HEIGHT * (1 - share / 100)
        parts += [
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" '
            'stroke="#ccc"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share}</text>',
        ]
    y = _TOP + _HEIGHT + 18
    ends = [(_LEFT, "start", f"round {first}")]
    if last > first:
        ends.append((_LEFT + _WIDTH, "end", f"{last}"))
    parts += [
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ends
    ]
    return parts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
