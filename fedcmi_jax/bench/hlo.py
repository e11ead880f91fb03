"""What the text of a compiled program says: collectives, and the compiler's cycles."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Operations in which chips exchange data."""

_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')

PAIRED = ("all-gather", "collective-permute")
"""Kinds whose ``-start`` yields its operand and, behind it, its result."""


class Collective(NamedTuple):
    """An operation in which chips exchange data.

    Attributes:
      kind: One of ``KINDS``.
      shape: Of its result on one chip, as the text has it.
      bytes: Of that.
    """

    kind: str
    shape: str
    bytes: int


def array_bytes(shape: str) -> list[int]:
    """Bytes of every array in a shape, tiles not counted.

    Example:
      >>> array_bytes("(f32[4,8]{1,0:T(4,128)}, pred[3]{0})")
      [128, 3]
    """
    sizes = []
    for kind, bits, dims in _ARRAY.findall(shape):
        count = math.prod(int(d) for d in dims.split(",") if d)
        sizes.append(count if kind == "pred" else -(-count * int(bits) // 8))
    return sizes


def collectives(text: str) -> list[Collective]:
    """The collectives of a program; one in a loop is there once.

    Args:
      text: Of a compiled program, ``Compiled.as_text()``.

    Example:
      >>> collectives("  %sum = f32[6]{0} all-reduce(f32[6]{0} %x), channel_id=1")
      [Collective(kind='all-reduce', shape='f32[6]{0}', bytes=24)]
    """
    found = []
    for shape, kind, start in _COLLECTIVE.findall(text):
        sizes = array_bytes(shape)
        if start and kind in PAIRED:
            sizes = sizes[1:2]
        found.append(Collective(kind, shape, sum(sizes)))
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> count and bytes.

    Example:
      >>> by_kind([Collective("all-reduce", "f32[6]", 24)] * 2)
      {'all-reduce': {'count': 2, 'bytes': 48}}
    """
    table: dict[str, dict[str, int]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += one.bytes
    return table


def estimated_cycles(text: str) -> int:
    """The compiler's cycles of a program without loops: those of its main computation.

    Args:
      text: Of a program compiled for TPU.

    Raises:
      ValueError: It has a loop, whose length the text does not say.

    Example:
      >>> estimated_cycles('ENTRY %main {%a = f32[] add(), '
      ...                  'backend_config={"estimated_cycles":"7"}}')
      7
    """
    main = text[text.index("ENTRY ") :]
    if " while(" in text:
        raise ValueError("text: has a loop, whose cycles are those of one turn only")
    return sum(map(int, _CYCLES.findall(main)))
