"""What the documentation shows runs, and what the code cites exists."""

import dataclasses
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import testing
from fedcmi_jax.testing.problem import all_equal, assert_close, assert_equal
from tests.test_structure import LAYERS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"

QUICK = (
    "state_keeps_its_structure",
    "a_modality_nobody_has_stays",
    "a_poisoned_client_is_rejected",
)
"""Checks that share one program."""


def skeleton():
    spec = importlib.util.spec_from_file_location("new_method", DOCS / "new_method.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case():
    return testing.Case(skeleton().fedcm())


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in testing.CHECKS
    ],
)
def test_the_skeleton_of_a_method_conforms(check, case):
    testing.CHECKS[check](case)


def test_the_skeletons_hooks_are_those_it_explains():
    module = skeleton()
    filled = fc.methods.hooks(module.fedcm())
    listed = re.findall(r"^  (\w+)  ", module.__doc__, re.MULTILINE)
    others = re.findall(
        r"^#   (\w+)  ", (DOCS / "new_method.py").read_text(), re.MULTILINE
    )
    assert sorted(filled) == sorted(listed)
    assert set(filled) | set(others) == set(fc.Method._fields) - {"name", "momentum"}


def test_the_skeleton_refuses_what_is_no_share():
    with pytest.raises(ValueError, match=r"alpha: 2 is outside \[0, 1\]"):
        skeleton().fedcm(alpha=2)


@pytest.mark.slow
def test_the_skeleton_switched_off_is_fedavg(case):
    off = testing.Case(skeleton().fedcm(alpha=1.0)).two_rounds[0]
    plain = testing.Case(fc.Method(momentum=0.0)).two_rounds[0]
    assert_equal(off.params, plain.params)
    assert not all_equal(case.two_rounds[0].params, plain.params)


@pytest.mark.slow
def test_the_skeletons_direction_is_what_the_cohort_did():
    """Everybody owns the fusion: sum_i n_i (w_G - w_i) / (K_i eta) / sum_i n_i."""
    rate, sizes = 0.1, np.array(testing.problem.SIZES, np.float32)
    case, fed = testing.Case(skeleton().fedcm()), testing.conformance.federation()
    direction = case.run(num_rounds=1)[0].shared.direction["fusion"]
    total = jax.tree.map(jnp.zeros_like, direction)
    for client, size in enumerate(sizes):
        # Nobody else has samples: the new parameters are this client's.
        only = jnp.where(jnp.arange(len(sizes)) == client, fed.sizes, 0)
        alone = dataclasses.replace(fed, sizes=only)
        before, (after, _) = case.start(), case.run(alone, 1)
        length = 2 * -(-size // 4) * rate
        total = jax.tree.map(
            lambda t, w_global, w, s=size, k=length: t + s * (w_global - w) / k,
            total,
            before.params["fusion"],
            after.params["fusion"],
        )
    mean = jax.tree.map(lambda t: t / sizes.sum(), total)
    assert_close(direction, mean, rtol=1e-4)


def code(name: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def execute(blocks: list[str]) -> dict:
    names = {}
    for block in blocks:
        exec(compile(block, "docs", "exec"), names)
    return names


def test_the_data_page_runs():
    names = execute(code("new_data.md"))
    assert names["federation"].num_clients == 12


@pytest.mark.slow
def test_the_runs_page_runs():
    names = execute(code("runs.md"))
    history = names["history"]
    assert 3 < len(history.records) < 20
    values = history.column("val_acc")
    assert values[-3:].max() <= values[:-3].max()


def test_the_model_page_runs():
    names = execute(code("new_model.md")[:1])
    assert names["model"].widths == {"strong": 16, "weak": 16}


@pytest.mark.slow
def test_the_model_page_conforms():
    execute(code("new_model.md"))


@pytest.mark.slow
def test_the_page_on_pretrained_blocks_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code("pretrained.md")
    sent = execute(blocks)["sent"]
    table = (DOCS / "pretrained.md").read_text().split("| all |")[1]
    totals = [int(x.replace(",", "")) for x in re.findall(r"([\d,]+) \|\n", table)]
    assert totals == list(sent.values())


SECTIONS = re.findall(r"^#+ (\d+(?:\.\d+)?)", (DOCS / "methods.md").read_text(), re.M)
DEPARTURES = re.findall(r"^- (D\d+) ", (DOCS / "methods.md").read_text(), re.M)
NUMBER = r"\d+(?:\.\d+)?"
CITED = re.compile(rf"\bmethods ({NUMBER}(?:(?:, | and | to |-){NUMBER})*)(, D\d+)?")
PAGES = [
    ROOT / "README.md",
    ROOT / "BUILD_NOTES.md",
    *sorted([*DOCS.glob("*.md"), *DOCS.glob("*.py")]),
]
SOURCES = [
    path
    for folder in ("fedcmi_jax", "tests", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ".venv" not in str(path)  # the benchmarks' peers have their own
]


def citations(path: pathlib.Path) -> list[tuple[str, str]]:
    """(section, departure) cited by a file, across line ends and comment signs."""
    text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text())
    return [
        (number, departure.removeprefix(", "))
        for numbers, departure in CITED.findall(text)
        for number in re.findall(NUMBER, numbers)
    ]


def test_sections_are_numbered_in_order():
    numbers = [tuple(map(int, s.split("."))) for s in SECTIONS]
    assert numbers == sorted(set(numbers))
    assert len([n for n in numbers if len(n) == 1]) == numbers[-1][0] + 1


def test_every_section_that_is_cited_exists():
    found = {path: citations(path) for path in (*SOURCES, *PAGES)}
    assert sum(map(len, found.values())) > 60
    for path, cited in found.items():
        for section, departure in cited:
            assert section in SECTIONS, f"{path.name}: methods {section}"
            assert not departure or departure in DEPARTURES, f"{path.name}: {departure}"


def test_every_method_cites_its_section():
    for name in fc.methods.REGISTRY:
        path = ROOT / "fedcmi_jax" / "methods" / f"{name}.py"
        assert citations(path), path.name


def test_files_that_are_named_exist():
    for path in (*SOURCES, *PAGES):
        text = path.read_text()
        for name in re.findall(r"\bdocs/\w+\.\w+|\bfedcmi_jax/[\w/]+\.py\b", text):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_that_are_named_exist(page):
    for name in re.findall(r"`((?:\.\./)?\w+\.md)`", page.read_text()):
        assert (page.parent / name).is_file(), name


DESIGN = (DOCS / "design.md").read_text()


def test_the_hour_of_reading_is_eight_short_files():
    route = DESIGN.split("## Read this in one hour")[1]
    files = re.findall(r"^\d\. `(.*?)`", route, re.MULTILINE)
    assert len(files) == 8
    for name in files:
        assert len((ROOT / name).read_text().splitlines()) < 250, name


def test_the_levels_are_those_that_are_checked():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", DESIGN, re.MULTILINE)
    assert len(rows) == len(LAYERS)
    for (_, parts), layer in zip(rows, LAYERS, strict=True):
        assert set(re.findall(r"`(\w+)`", parts)) <= layer
    rooms = {path.parent.name for path in (ROOT / "fedcmi_jax").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", DESIGN, re.MULTILINE))


def test_every_field_of_a_method_is_explained():
    table = DESIGN.split("| field | when | default |")[1].split("\n\n")[0]
    fields = [
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(fields) == sorted(fc.Method._fields)
