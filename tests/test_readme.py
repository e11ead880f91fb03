"""What the README shows is true."""

import pathlib
import re

import numpy as np
import pytest

import fedcmi_jax as fc

TEXT = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_it_fits_its_length():
    assert len(TEXT.splitlines()) <= 150


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.slow
def test_library_example(capsys):
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.9


@pytest.mark.slow
def test_your_own_arrays_modules_and_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, labels = np.random.default_rng(0), np.arange(240) % 3
    image = rng.normal(size=(240, 8, 8, 1)) + labels[:, None, None, None]
    arrays = {"image": image, "text": rng.normal(size=(240, 20))}
    given = {"train": arrays, "labels": labels, "test": arrays, "test_labels": labels}
    given["hospitals"] = labels % 2
    exec(compile(BLOCKS[1], "README.md", "exec"), given)
    assert given["logits"].shape == (240, 3)
    assert [r["round"] for r in given["history"].records] == [1, 2, 3]
    assert (tmp_path / "runs/mine/summary.json").exists()


def test_its_blocks_are_those():
    assert len(BLOCKS) == 2


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
