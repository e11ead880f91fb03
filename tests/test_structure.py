"""The package's shape: imports go one way, public names are documented."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import fedcmi_jax

ROOT = pathlib.Path(fedcmi_jax.__file__).parent

LAYERS = [
    {"types", "samples", "backend", "_lazy", "_version", "choices", "memory"},
    {
        "data",
        "federation",
        "models",
        "partition",
        "blocks",
        "placement",
        "reductions",
        "optimizers",
        "server_optimizers",
        "uploads",
    },
    {
        "aggregate",
        "aggregators",
        "assembly",
        "cohort",
        "compression",
        "evaluation",
        "exchange",
        "guard",
        "methods",
        "ring",
        "reports",
    },
    {"attacks", "clients", "local", "privacy", "stacks", "streaming", "systems"},
    {"setup"},
    {"server"},
    {"updates"},
    {"cohort_updates", "selection"},
    {"round"},
    {"algorithm"},
    {"experiment"},
    {"bench", "deploy", "results", "testing"},
    {"sweeps"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages([str(ROOT)], "fedcmi_jax.")]


def imported(path: pathlib.Path) -> set[str]:
    """Parts of this package that a file imports at its top level or within."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fedcmi_jax":
                names = [f"fedcmi_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("fedcmi_jax.")}
    return found


def parts() -> list[tuple[str, pathlib.Path]]:
    files = sorted(ROOT.rglob("*.py"))
    return [
        (f.relative_to(ROOT).with_suffix("").parts[0], f)
        for f in files
        if f != ROOT / "__init__.py"
    ]


@pytest.mark.parametrize(("part", "path"), parts(), ids=lambda v: str(v))
def test_imports_go_one_way(part, path):
    assert part in LEVEL, f"add {part} to a layer"
    for other in imported(path) - {part}:
        assert LEVEL[other] < LEVEL[part], f"{path.name} imports {other}"


SHARED = ("base.py", "compose.py", "seen.py")
"""Files of methods/ that are no method's own."""


def test_a_method_imports_no_other_method_model_or_data_set():
    for path in (ROOT / "methods").glob("*.py"):
        if path.name.startswith("_") or path.name in SHARED:
            continue
        text = path.read_text()
        assert "fedcmi_jax.data" not in text
        assert "fedcmi_jax.models" not in text
        own = [
            node.module
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and "methods" in (node.module or "")
        ]
        shared = {f"fedcmi_jax.methods.{name[:-3]}" for name in SHARED}
        helpers = {name for name in own if name.split(".")[-1].startswith("_")}
        assert set(own) - helpers <= shared


def test_only_models_import_flax():
    for part, path in parts():
        if part != "models":
            assert "import flax" not in path.read_text(), path
            assert "from flax" not in path.read_text(), path


@pytest.mark.parametrize("name", modules())
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for key, value in vars(module).items():
        is_ours = getattr(value, "__module__", None) == name
        if is_ours and callable(value) and not key.startswith("_"):
            assert value.__doc__, f"{name}.{key}"


TRAINING_EXAMPLES = (
    "fedcmi_jax.algorithm",
    "fedcmi_jax.experiment.experiment",
    "fedcmi_jax.experiment.history",
    "fedcmi_jax.sweeps.one_call",
)
"""Modules whose examples compile a round."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in TRAINING_EXAMPLES else ())
        for n in modules()
    ],
)
def test_examples_run(name):
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


@pytest.mark.parametrize("name", ["fedcmi_jax", "fedcmi_jax.experiment"])
def test_lazy_names_are_those_that_type_checkers_see(name):
    package = importlib.import_module(name)
    tree = ast.parse(pathlib.Path(package.__file__).read_text())
    (checked, lazy) = next(
        (n.body, n.orelse) for n in tree.body if isinstance(n, ast.If)
    )
    seen = {alias.asname: node.module for node in checked for alias in node.names}
    (table,) = (n for line in lazy for n in ast.walk(line) if isinstance(n, ast.Dict))
    listed = ast.literal_eval(table)
    own = {m.name for m in pkgutil.iter_modules(package.__path__)}
    assert listed == {k: v for k, v in seen.items() if (v, k in own) != (name, True)}
    assert set(seen) <= set(dir(package))
    # Whoever imports a module of such a name first would hide the object.
    assert not own & set(listed)
    for key, module in seen.items():
        found = getattr(package, key)
        assert found is getattr(importlib.import_module(module), key)
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense  # noqa: B018


def test_the_package_alone_imports_nothing_large():
    code = "import sys, fedcmi_jax.experiment; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "numpy", "flax", "optax", "orbax"} & set(done.stdout.split())
