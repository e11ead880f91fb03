"""A report on runs: one page that loads nothing, a text, tables and figures."""

import csv
import io
import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fedcmi_jax.experiment.files import read_json, replace
from fedcmi_jax.experiment.outputs import check_folder
from fedcmi_jax.results import tables
from fedcmi_jax.results.blocks import Figure, Section, Table
from fedcmi_jax.results.collect import Results, collect
from fedcmi_jax.results.comparison import pairing
from fedcmi_jax.results.markdown import FIGURES, markdown
from fedcmi_jax.results.page import page
from fedcmi_jax.results.partitions import deal
from fedcmi_jax.results.sections import Context, sections

PAGE, TEXT, NUMBERS = "index.html", "report.md", "numbers.csv"

MARK = ".fedcmi-report"
"""Lists the files of a report; a folder with it may be written again."""


LONGEST_TITLE = 60
"""Letters of all labels that a title names one by one."""


def report(
    folders: Sequence[str | pathlib.Path] | str | pathlib.Path,
    output: str | pathlib.Path = "report",
    *,
    baseline: str | None = None,
    target: float | None = None,
) -> pathlib.Path:
    """Writes a report on runs and sweeps, as ``fedcmi report`` does.

    ``index.html`` is self-contained. Beside it are ``report.md``, every table as CSV,
    ``numbers.csv`` with all numbers of all lines, and the figures as SVG and PNG. The
    same runs give the same bytes.

    Args:
      folders: Runs (of one seed or several) and sweeps; unfinished ones with what they
        have.
      output: Folder to write; new, empty, or a report that is replaced.
      baseline: Label, or value on an axis (``fedavg``), to compare with; None: the
        sweep's, or the first entry.
      target: Accuracy in (0, 1] for rounds, seconds and bytes to reach it; None: the
        baseline's final mean.

    Returns:
      The page.

    Raises:
      ValueError: A folder is no run or sweep, the output is taken, there is no such
        baseline, or the target is outside (0, 1]; nothing is written.

    Example:
      >>> report("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder: there is no such folder; give one that `fedcmi \
train` or `fedcmi sweep` wrote
    """
    if isinstance(folders, str | pathlib.Path):
        folders = [folders]
    if target is not None and not (math.isfinite(target) and 0 < target <= 1):
        raise ValueError(f"target: {target} is outside (0, 1]; 0.9 is 90 %")
    output = pathlib.Path(output)
    check_output(output)
    results = collect(folders)
    pairs = pairing(results, baseline)
    context = Context(results, pairs, target, deal(results.entries))
    _write(output, contents(results, sections(context)))
    return output / PAGE


def title_of(results: Results) -> str:
    """What the report is about, in a line."""
    data = dict.fromkeys(str(e.config["dataset"]["name"]) for e in results.entries)
    names = ", ".join(entry.label for entry in results.entries)
    if len(names) > LONGEST_TITLE:
        names = f"{len(results.entries)} configurations"
    return f"{', '.join(data)}: {names}"


def contents(results: Results, parts: Sequence[Section]) -> dict[str, bytes]:
    """The files of a report: name -> bytes, the page last."""
    title = title_of(results)
    files = {NUMBERS: _csv(tables.long_rows(results))}
    for i, section in enumerate(parts, 1):
        found = [block for block in section.blocks if isinstance(block, Table)]
        for k, table in enumerate(found, 1):
            name = re.sub("[^a-z0-9]+", "-", section.title.lower()).strip("-")[:40]
            number = f"-{k}" if len(found) > 1 else ""
            files[f"{i:02d}-{name}{number}.csv"] = _csv([table.columns, *table.rows])
        for block in section.blocks:
            if isinstance(block, Figure):
                files[f"{FIGURES}/{block.name}.svg"] = block.svg
                files[f"{FIGURES}/{block.name}.png"] = block.png
    files[TEXT] = markdown(title, parts).encode()
    files[PAGE] = page(title, parts).encode()
    return files


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def check_output(folder: pathlib.Path) -> None:
    """Refuses a folder that a report would overwrite; makes nothing.

    Raises:
      ValueError: It has content that is no report's, is a file, or cannot be written.
    """
    if folder.is_file():
        raise ValueError(f"--output: {folder} is a file; choose another")
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(
            f"--output: {folder} has content that is no report; choose another"
        )


def _write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes the files; those of the report that was there before are removed."""
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    old = _listed(folder)
    both = json.dumps(sorted({*old, *files}))  # what is there if this is the last word
    replace(folder / MARK, both.encode())
    for name in old - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        replace(folder / name, content)
    replace(folder / MARK, json.dumps(sorted(files)).encode())


def _listed(folder: pathlib.Path) -> set[str]:
    """The files of the report in a folder."""
    if not (folder / MARK).is_file():
        return set()
    names = read_json(folder / MARK)
    ours = re.compile(rf"({FIGURES}/)?[A-Za-z0-9][A-Za-z0-9._-]*")
    if not isinstance(names, list):
        return set()
    return {n for n in names if isinstance(n, str) and ours.fullmatch(n)}
