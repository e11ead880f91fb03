"""What is promised of installations, and what the distributions hold."""

import pathlib
import re
import shutil
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = ("media", "export", "test")
"""Extras whose lowest releases are tested too."""


def bounds() -> dict[str, str]:
    """Package -> lowest release, of what is needed and of the extras in ``TESTED``."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [x for name in TESTED for x in extras[name]]
    needed = [Requirement(line) for line in lines]
    found = {}
    for requirement in needed:
        if requirement.name != PROJECT["name"]:
            (bound,) = requirement.specifier
            assert bound.operator == ">=", f"{requirement}: give it a lower bound"
            found[requirement.name] = bound.version
    return found


def test_the_lowest_releases_are_those_that_are_tested():
    text = re.sub(r"#.*", "", (ROOT / ".ci" / "lowest.txt").read_text())
    pinned = dict(line.split("==") for line in text.split())
    promised = bounds()
    assert {name: Version(x) for name, x in pinned.items()} == {
        name: Version(x) for name, x in promised.items()
    }


def test_classifiers_agree_with_what_is_required():
    minors = [
        int(minor)
        for text in PROJECT["classifiers"]
        for minor in re.findall(r"Python :: 3\.(\d+)$", text)
    ]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"


def built(kind: str, checkout: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A distribution of a checkout; works offline."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    sdist = pytest.importorskip("hatchling.builders.sdist")
    builder = {"wheel": wheel.WheelBuilder, "sdist": sdist.SdistBuilder}[kind]
    (path,) = builder(str(checkout)).build(directory=str(folder), versions=["standard"])
    return pathlib.Path(path)


def sources(folder: str) -> set[str]:
    """Files of a folder that a distribution must hold."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed", ".md", ".json", ".npz")
        and not any(part.startswith((".", "_build")) for part in path.parts[-4:])
    }


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(tmp_path):
    with zipfile.ZipFile(built("wheel", ROOT, tmp_path)) as file:
        names = {n for n in file.namelist() if ".dist-info/" not in n}
        (entry,) = (n for n in file.namelist() if n.endswith("entry_points.txt"))
        assert b"fedcmi = fedcmi_jax.cli.entry:main" in file.read(entry)
    assert names == sources("fedcmi_jax")


@pytest.mark.slow
def test_the_source_distribution_has_tests_and_docs_but_no_runs(tmp_path):
    checkout = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns(".git", ".venv*", "venv", "*_cache", "runs")
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    (checkout / "my-run").mkdir()
    (checkout / "my-run" / "metrics.jsonl").write_text("{}\n")
    with tarfile.open(built("sdist", checkout, tmp_path)) as file:
        names = {member.name.partition("/")[2] for member in file}
    for folder in ("fedcmi_jax", "tests", "docs"):
        assert sources(folder) <= names
    assert {"pyproject.toml", "README.md", "LICENSE", ".ci/run"} <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"fedcmi_jax", "tests", "docs", "experiments", ".ci"}
    assert not [n for n in names if "__pycache__" in n or "/.venv" in n]
