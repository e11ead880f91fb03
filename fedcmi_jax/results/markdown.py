"""A report as Markdown, with its figures as files beside it."""

import re
from collections.abc import Sequence

from fedcmi_jax.results.blocks import Block, Code, Figure, Section, Table, Text

FIGURES = "figures"
"""Folder of the figures, beside the text."""


def markdown(title: str, sections: Sequence[Section]) -> str:
    r"""The whole text.

    Args:
      title: Its head.
      sections: Its parts.

    Example:
      >>> print(markdown("a", [Section("One", [Text("*x*")])]), end="")
      # a
      <BLANKLINE>
      ## One
      <BLANKLINE>
      \*x\*
    """
    parts = [f"# {escaped(title)}"]
    for section in sections:
        parts += [f"## {escaped(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is.

    Example:
      >>> escaped("a|b <i> _c_")
      'a\\|b \\<i\\> \\_c\\_'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Text(text, is_warning):
            return f"> {escaped(text)}" if is_warning else escaped(text)
        case Code(text):
            fence = "`" * max(3, *(len(x) + 1 for x in re.findall("`+", text) or [""]))
            return f"{fence}\n{text}\n{fence}"
        case Table():
            return _table(block)
        case Figure():
            image = f"![{escaped(block.alt)}]({FIGURES}/{block.name}.png)"
            return f"{image}\n\n{escaped(block.caption)}"


def _table(table: Table) -> str:
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
    heads = "\n".join(
        "| " + " | ".join(cells) + " |"
        for cells in ([escaped(c) for c in lines[0]], lines[1])
    )
    rows = ("| " + " | ".join(map(escaped, row)) + " |" for row in table.rows)
    return "\n".join([f"{escaped(table.caption)}\n", heads, *rows])
