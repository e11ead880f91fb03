"""The tutorials run as they stand, small, and show what they say."""

import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from fedcmi_jax.experiment.config import section
from fedcmi_jax.experiment.sections import REGISTRIES

TUTORIALS = pathlib.Path(__file__).parent.parent / "docs" / "tutorials"

pytestmark = [pytest.mark.slow, pytest.mark.shipped_flags]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs one in an empty folder, alone in the registries; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Its own processes see one device, as here where one is used.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    before = {kind: dict(registry) for kind, registry in REGISTRIES.items()}
    yield lambda name: runpy.run_path(str(TUTORIALS / f"{name}.py"))
    for kind, registry in REGISTRIES.items():
        for name in set(registry) - set(before[kind]):
            del registry[name]
    section.cache_clear()
    sys.modules.pop("bounded_steps", None)


def test_ten_minutes(run):
    names = run("ten_minutes")
    assert min(metrics["acc"] for metrics in names["results"].values()) > 0.8
    assert names["history"].column("round").tolist() == [5, 10]
    assert (pathlib.Path("runs/ten-minutes") / "summary.json").exists()


def test_own_data_and_model(run, capsys):
    names = run("own_data_and_model")
    assert names["metrics"]["acc"] > 0.6
    assert "600 samples for 599 labels" in capsys.readouterr().out
    assert names["both"].shape == names["vitals_only"].shape == (4, 3)
    assert not np.array_equal(names["both"], names["vitals_only"])


def test_own_method(run):
    names = run("own_method")
    assert all(jax.tree.leaves(names["same"]))
    assert not all(jax.tree.leaves(names["acts"]))
    assert names["process"].returncode == -9
    assert all(jax.tree.leaves(names["equal"]))


def test_million_samples(run):
    names = run("million_samples")
    assert all(jax.tree.leaves(names["same"]))
    assert names["streamed"].final["acc"] > 0.8
    assert "run folder runs/spread" in names["done"].stdout


def test_every_tutorial_is_on_the_site():
    index = (TUTORIALS.parent / "index.md").read_text()
    for path in TUTORIALS.glob("*.py"):
        assert f"tutorials/{path.stem}\n" in index
        assert f"def test_{path.stem}(" in pathlib.Path(__file__).read_text()
