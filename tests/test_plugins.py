"""Methods, data sets and encoders of another package: flags, lists, resumed runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment.config import from_dict, section
from fedcmi_jax.experiment.sections import REGISTRIES
from tests.test_launch import TRAIN, metrics

MODULE = '''
"""A package of somebody's own."""

import optax
import fedcmi_jax as fc


def pulled(*, strength: float = 0.1) -> fc.Method:
    """Pulls clients back to the global model.

    Args:
      strength: How much.
    """

    def update(client, grads, step, context):
        change = optax.tree.sub(step.params, client.params)
        return optax.tree.add_scale(grads, strength, change), context

    return fc.Method(name="pulled", update=update)


def toy(*, size: int = 60) -> fc.data.Dataset:
    """Two numbers per sample.

    Args:
      size: Samples.
    """
    return fc.data.load("synthetic", train_samples=size, test_samples=20)


fc.register("method", "pulled", pulled)
fc.register("dataset", "toy", toy)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "somebodys_own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "somebodys_own"
    sys.modules.pop("somebodys_own", None)
    for kind, name in (("method", "pulled"), ("dataset", "toy")):
        REGISTRIES[kind].pop(name, None)
    section.cache_clear()


def test_they_are_listed_and_have_flags(package, capsys):
    assert main(["list", "methods", f"--import={package}"]) == 0
    assert "Pulls clients back to the global model." in capsys.readouterr().out
    assert main(["list", "datasets", f"--import={package}"]) == 0
    assert "registered by somebodys_own" in capsys.readouterr().out
    flags = [f"--import={package}", "--method.name=pulled"]
    assert main(["train", *flags, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--method.strength" in shown
    assert "--import" in shown


def test_a_configuration_names_what_it_imports(package):
    values = {"imports": [package], "method": {"name": "pulled", "strength": 0.5}}
    config = from_dict(values)
    assert config.imports == (package,)
    assert config.method.strength == 0.5
    assert fc.config.from_dict(fc.config.to_dict(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "broken_package cannot be imported (ModuleNotFoundError"),
        ("import no_such_thing", "(ModuleNotFoundError: No module named 'no_such"),
        ("def (", "(SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "(RuntimeError: two lines)"),
    ],
)
def test_a_package_that_does_not_import_is_one_line(
    text, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text:
        (tmp_path / "broken_package.py").write_text(text)
    before = sorted(tmp_path.iterdir())
    assert main(["train", "--import=broken_package"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p for p in sorted(tmp_path.iterdir()) if p.suffix == ".py"] == before


def test_a_flag_that_is_there_twice_is_one_line(package, capsys):
    assert main(["train", f"--import={package}", "--import=json"]) == 2
    assert (
        "--import: is there twice; give --import=one,other" in capsys.readouterr().err
    )


def undocumented(*, a: int = 1):
    return fc.Method()


def untyped(*, a=1):
    """Documented."""
    return fc.Method()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("metod", "mine", untyped), "kind: unknown 'metod'; did you mean 'method'"),
        (("method", "fedavg", untyped), "there is a method 'fedavg' already"),
        (("method", "my method", untyped), "'my method' is no identifier"),
        (("method", "mine", undocumented), "has no docstring"),
        (("method", "mine", untyped), "option 'a' needs a type and a default"),
    ],
)
def test_what_cannot_be_registered_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        fc.register(*arguments)
    assert "mine" not in REGISTRIES["method"]


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_a_killed_run_of_its_method_is_resumed_bit_for_bit(package, tmp_path):
    flags = [*TRAIN[:7], f"--import={package}", "--method.name=pulled", *TRAIN[8:]]
    command = [sys.executable, "-m", "fedcmi_jax.cli"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run([*command, *flags, f"--output={whole}"], env=environment, check=True)
    process = subprocess.Popen([*command, *flags, f"--output={cut}"], env=environment)
    deadline = time.monotonic() + 200
    while not (cut / "checkpoints" / "5").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "resume", str(cut)], env=environment, check=True)
    assert metrics(cut) == metrics(whole)
