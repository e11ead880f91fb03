"""A report as one HTML file that loads nothing: everything is in it."""

import re
from collections.abc import Sequence
from html import escape

from fedcmi_jax.results.blocks import Block, Code, Figure, Section, Table, Text

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: #1a1a1a;
  background: #fff; max-width: 62rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #bbb;
  padding-bottom: .2rem; }
nav ul { padding: 0; margin: .5rem 0 1rem; display: flex; flex-wrap: wrap;
  gap: .2rem 1.2rem; list-style: none; }
a { color: #0b57a4; }
.warning { border-left: 4px solid #b34700; background: #fff4ec; padding: .4rem .8rem;
  margin: .5rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35;
  min-width: min(100%, 34rem); }
caption { text-align: left; color: #444; padding-bottom: .4rem; font-size: .9rem; }
th, td { padding: .28rem .7rem .28rem 0; vertical-align: top; text-align: right;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
.words, .long { text-align: left; }
td.long { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
thead th, thead td { vertical-align: bottom; border-bottom: 1px solid #555; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; overflow-wrap: break-word; max-width: 18rem; }
figure { margin: 1rem 0 1.6rem; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; }
pre { background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .82rem; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  nav { display: none; }
  a { color: inherit; text-decoration: none; }
  h2 { break-after: avoid; }
  section > p { break-after: avoid; }
  figure, tr, .warning, .short { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; min-width: min(100%, 13cm); }
  .many table { font-size: 6pt; }
  th, td { padding-right: .4rem; }
  .many th, .many td { padding-right: .25rem; }
  tbody th { max-width: 9rem; }
}
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load: nothing but what is in the page."""

LONG = 28
"""Characters of a cell from which it may be broken into lines."""


SHORT = 20
"""Rows of a table that is not spread over two sheets of paper."""
MANY = 10
"""Columns beyond which a table is printed smaller."""


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
      title: Its head.
      sections: Its parts.

    Returns:
      HTML 5 without scripts and without a reference to anything outside.

    Example:
      >>> text = page("a < b", [Section("One", [Text("x & y")])])
      >>> "<h1>a &lt; b</h1>" in text, "<p>x &amp; y</p>" in text
      (True, True)
    """
    links = "\n".join(
        f'<li><a href="#section-{i}">{escape(s.title)}</a></li>'
        for i, s in enumerate(sections, 1)
    )
    parts = [
        f'<section id="section-{i}" aria-labelledby="title-{i}">\n'
        f'<h2 id="title-{i}">{escape(s.title)}</h2>\n'
        + "\n".join(map(_block, s.blocks))
        + "\n</section>"
        for i, s in enumerate(sections, 1)
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{escape(title)}</h1>",
            f'<nav aria-label="Sections"><ul>\n{links}\n</ul></nav>',
            *parts,
            "</main>",
            "</body>",
            "</html>\n",
        ]
    )


def _block(block: Block) -> str:
    match block:
        case Text(text, is_warning):
            mark = ' class="warning"' if is_warning else ""
            return f"<p{mark}>{escape(text)}</p>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table():
            return _table(block)
        case Figure():
            return (
                f"<figure>\n{inline(block)}\n"
                f"<figcaption>{escape(block.caption)}</figcaption>\n</figure>"
            )


def _table(table: Table) -> str:
    columns = list(zip(*table.rows, strict=True))
    kinds = [_kind(column) for column in columns]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(head)}</th>' if head else "<td></td>"
        for head, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(f"<tr>{_row(row, kinds)}</tr>" for row in table.rows)
    caption = escape(table.caption)
    short = " short" if len(table.rows) <= SHORT else ""
    many = " many" if len(table.columns) > MANY else ""
    return (
        f'<div class="wide{short}{many}" tabindex="0" role="region" '
        f'aria-label="{caption}"><table>\n'
        f"<caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _row(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *cells = row
    others = zip(cells, kinds[1:], strict=True)
    name = escape(first).replace(",", ",<wbr>")
    return f'<th scope="row">{name}</th>' + "".join(
        f"<td{kind}>{escape(text)}</td>" for text, kind in others
    )


def _kind(cells: Sequence[str]) -> str:
    """The class of a column: numbers, words, or sentences that may be broken."""
    if all(re.fullmatch(r"[-+<]? ?[\d.,]+( .*)?|-|not reached", x) for x in cells):
        return ""
    return ' class="long"' if any(len(x) > LONG for x in cells) else ' class="words"'


def inline(figure: Figure) -> str:
    """A figure's SVG as part of a page.

    Names of its parts get the figure's in front, for a page has several figures; what
    only a file of its own needs (prolog, comments, namespaces, a style for everything)
    is left out.

    Args:
      figure: The figure.
    """
    text = figure.svg.decode()
    text = text[text.index("<svg") :].strip()
    text = re.sub(
        r"<!--.*?-->\s*|<style.*?</style>\s*|<metadata>.*?</metadata>\s*",
        "",
        text,
        flags=re.DOTALL,
    )
    text = re.sub(r"<defs>\s*</defs>\s*", "", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{figure.name}-', text)
    text = re.sub(r'href="#', f'href="#{figure.name}-', text)
    text = re.sub(r"url\(#", f"url(#{figure.name}-", text)
    label = escape(figure.alt)
    name = 'style="stroke-linejoin: round; stroke-linecap: butt" role="img"'
    return text.replace("<svg", f'<svg {name} aria-label="{label}"', 1)
