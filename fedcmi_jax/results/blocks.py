"""What a report consists of, before it is a page or a text: sections of blocks."""

from collections.abc import Sequence
from typing import NamedTuple


class Text(NamedTuple):
    """A paragraph.

    Attributes:
      text: Plain text.
      is_warning: Whether it should catch the eye.
    """

    text: str
    is_warning: bool = False


class Code(NamedTuple):
    """Lines to copy.

    Attributes:
      text: Plain text.
    """

    text: str


class Table(NamedTuple):
    """A table; the first column names the rows.

    Attributes:
      caption: What it shows.
      columns: Heads.
      rows: Cells, as many as heads in each.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Figure(NamedTuple):
    """A figure.

    Attributes:
      name: Of its files, without an ending.
      caption: What it shows.
      alt: The same for who cannot see it.
      svg: The drawing.
      png: The same as pixels.
    """

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


Block = Text | Code | Table | Figure


class Section(NamedTuple):
    """A part of a report.

    Attributes:
      title: Its head.
      blocks: What is in it.
    """

    title: str
    blocks: Sequence[Block]
