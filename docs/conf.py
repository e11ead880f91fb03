"""The documentation's site: ``python -m sphinx -W docs docs/_build/html``.

Pages are the Markdown files of this folder, tutorials are scripts whose cells are
executed, and the reference is made from the docstrings of all public names.
"""

import ast
import importlib
import inspect
import pathlib
import re
import types
from typing import Any

import fedcmi_jax

HERE = pathlib.Path(__file__).parent

project = "fedcmi_jax"
author = "the fedcmi_jax authors"
version = release = fedcmi_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "conf.py", "new_method.py"]
html_theme = "sphinx_book_theme"
html_title = f"{project} {release}"
html_theme_options = {"show_toc_level": 2}

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds of one cell, on a busy machine
nb_execution_in_temp = True  # run folders do not stay
nb_merge_streams = True
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]

MODULES = {
    "fedcmi_jax": "What `import fedcmi_jax as fc` gives.",
    "fedcmi_jax.methods": "Methods, and what their hooks see.",
    "fedcmi_jax.models": "Encoders, fusions, architectures.",
    "fedcmi_jax.data": "Data sets, and arrays of your own.",
    "fedcmi_jax.partition": "Who has which samples and modalities.",
    "fedcmi_jax.evaluation": "One protocol for every method.",
    "fedcmi_jax.experiment": "Configurations become runs.",
    "fedcmi_jax.experiment.config": "The configuration of a run.",
    "fedcmi_jax.experiment.runs": "Runs that are there already.",
    "fedcmi_jax.server_optimizers": "The server's step.",
    "fedcmi_jax.backend": "Devices, and faults of compilers.",
    "fedcmi_jax.types": "Records and array types.",
    "fedcmi_jax.testing": "Conformance of methods of your own.",
}
"""Module -> its line in the reference."""

EXAMPLES = ("Example:", "Examples:")
SECTIONS = (
    *EXAMPLES,
    "Args:",
    "Attributes:",
    "Raises:",
    "Returns:",
    "Source:",
    "Yields:",
)
"""Lines that Napoleon makes sections of."""


def public_names(name: str) -> list[str]:
    """What a module defines or passes on (``from a import b as b``), in its order."""
    module = importlib.import_module(name)
    names: list[str] = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.name == a.asname]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names += [node.name] if vars(module).get(node.name) else []
    objects = {n: getattr(module, n) for n in dict.fromkeys(names) if n[0] != "_"}
    return [
        n
        for n, value in objects.items()
        if callable(value) and not isinstance(value, types.ModuleType)
    ]


def page(name: str, line: str, seen: set[str]) -> str:
    """The reference of a module; an object is described once, where it comes first."""
    module = importlib.import_module(name)
    parts = [f"# `{name}`", line]
    for public in public_names(name):
        value = getattr(module, public)
        place = f"{value.__module__}.{value.__qualname__}"
        if place in seen:
            continue
        seen.add(place)
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        members = "\n:members:" if kind == "autoclass" else ""
        parts.append(f"```{{eval-rst}}\n.. {kind}:: {name}.{public}")
        parts[-1] += members.replace("\n", "\n   ") + "\n```"
    return "\n\n".join(parts) + "\n"


def write_reference(app: Any) -> None:
    """Writes ``api/``; what is there already stays, so that builds are short."""
    del app
    folder, seen = HERE / "api", set[str]()
    folder.mkdir(exist_ok=True)
    for name, line in MODULES.items():
        path, text = folder / f"{name}.md", page(name, line, seen)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def plain_text(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: formulas are indented, names may end in ``_``.

    Runs before Napoleon, whose sections stay as they are.
    """
    del app, what, name, value, options
    found: list[str] = []
    formulas = example = section = False
    for line in lines:
        indented = line.startswith(" ")
        if line and not indented:
            formulas, example = False, line in EXAMPLES
            section = line in SECTIONS
        elif indented and not section and not formulas:
            found += ["", "::", ""] if found else []
            formulas = True
        if found and not indented and line and found[-1].startswith(" "):
            found.append("")  # what was indented ends here
        found.append(line if formulas or example else escaped(line))
    lines[:] = found


def escaped(line: str) -> str:
    """A line in which nothing outside ``...`` is markup."""
    parts = re.split(r"(``.*?``)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", parts[i])
    return "".join(parts)


def skip_fields(
    app: Any, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of a named tuple are in its docstring already."""
    del app, what, name, skip, options
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Connects what is above."""
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.connect("autodoc-skip-member", skip_fields)
