"""What the README shows is true."""

import pathlib
import re

import pytest

import fedcmi_jax as fc

TEXT = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_it_fits_its_length():
    assert len(TEXT.splitlines()) <= 150


@pytest.mark.slow
def test_library_example(capsys):
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
        if "import jax" in block
    )
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.9


def test_methods_table_is_complete():
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(rows) == set(fc.methods.REGISTRY)


def test_hooks_named_are_those_the_method_fills():
    for name, factory in fc.methods.REGISTRY.items():
        row = re.search(rf"^\| `{name}` \|.*$", TEXT, re.MULTILINE).group()
        cell = row.split("|")[3]
        assert tuple(re.findall(r"`(\w+)`", cell)) == fc.methods.hooks(factory()), name


def test_files_named_exist():
    root = pathlib.Path(fc.__file__).parent
    for name in re.findall(r"`(methods/\w+\.py)`", TEXT):
        assert (root / name).is_file()
