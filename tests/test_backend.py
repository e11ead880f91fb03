"""The installed compiler's defects: found, avoided, and told of."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import pytest

from fedcmi_jax import backend
from fedcmi_jax.bench import peers
from fedcmi_jax.cli.main import main

JAXLIB = importlib.metadata.version("jaxlib")
affected = pytest.mark.skipif(
    JAXLIB != backend.JAXLIB, reason=f"jaxlib {JAXLIB} is not {backend.JAXLIB}"
)


# Only what the package's backend.py needs: a fresh process starts in a second.
ALONE = f"""
import importlib.util, os, jax
spec = importlib.util.spec_from_file_location("backend", {backend.__file__!r})
backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(backend)
"""


def run(code, **environment):
    """A fresh Python without any of this process's flags."""
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def error_of(first="", **environment):
    done = run(f"{ALONE}\n{first}\nprint(backend.check())", **environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@affected
def test_the_flag_makes_wrong_sums_right():
    assert error_of() > 0.1
    assert error_of(XLA_FLAGS=backend.FLAG) < 1e-6


def test_a_guarded_script_computes_right():
    assert error_of("backend.guard()") < 1e-6


@affected
def test_a_guard_that_comes_too_late_says_so():
    late = "jax.devices(); backend.guard(); assert 'XLA_FLAGS' not in os.environ"
    done = run(f"{ALONE}\n{late}")
    assert done.returncode == 0, done.stderr
    assert "WrongNumbersWarning" in done.stderr


def test_the_command_line_computes_right():
    done = run(
        "import sys; from fedcmi_jax.cli.main import main; sys.exit(main(['doctor']))"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) <= 24
    for name in ("fedcmi_jax", "jaxlib", "flax", "optax", "orbax", "numpy", "python"):
        assert name in done.stdout


@affected
def test_the_library_warns_once_and_changes_nothing():
    code = """
import os
import fedcmi_jax as fc
model = fc.models.classifier({"a": fc.models.mlp(features=4)}, {"a": (3,)}, 2)
for _ in range(2):
    fc.build_algorithm(fc.methods.fedavg(), model, clients_per_round=1)
assert "XLA_FLAGS" not in os.environ
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WrongNumbersWarning:") == 1
    assert done.stderr.count("39103") == 1


@pytest.mark.parametrize(
    ("jaxlib", "platforms", "needed"),
    [
        ("0.10.2", "", True),
        ("0.10.2", "cpu", True),
        ("0.10.2", "cuda, cpu", True),
        ("0.10.2", "cuda", False),
        ("0.10.2", "tpu", False),
        ("0.10.1", "cpu", False),
        ("0.10.20", "cpu", False),
        ("0.10.2.dev20260601", "cpu", False),
        ("0.11.0", "", False),
    ],
)
def test_only_one_version_on_cpu_needs_the_flag(jaxlib, platforms, needed):
    assert backend.needs_flag(jaxlib, platforms) == needed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, backend.FLAG),
        ({"XLA_FLAGS": "--xla_a=1"}, f"--xla_a=1 {backend.FLAG}"),
        ({"XLA_FLAGS": f"--{backend.OPTION}=dot"}, f"--{backend.OPTION}=dot"),
        ({"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--xla_a=1"}, "--xla_a=1"),
    ],
)
def test_guard_adds_to_the_flags(before, after, monkeypatch):
    monkeypatch.setattr(backend, "version", lambda package: backend.JAXLIB)
    environ = dict(before)
    backend.guard(environ)
    assert environ["XLA_FLAGS"] == after
    backend.guard(environ)  # once is enough
    assert environ["XLA_FLAGS"] == after


def test_guard_keeps_the_flags_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "version", lambda package: backend.JAXLIB)
    path = tmp_path / "flags"
    path.write_text("--xla_a=1\n")
    environ = {"XLA_FLAGS": str(path)}
    backend.guard(environ)
    assert environ["XLA_FLAGS"] == f"--xla_a=1 {backend.FLAG}"


def test_guard_leaves_other_versions_alone(monkeypatch):
    monkeypatch.setattr(backend, "version", lambda package: "0.11.0")
    environ: dict[str, str] = {}
    backend.guard(environ)
    assert environ == {}


def test_peers_start_without_the_flag():
    assert backend.unguarded({"XLA_FLAGS": backend.FLAG, "A": "1"}) == {"A": "1"}
    both = {"XLA_FLAGS": f"--xla_a=1 {backend.FLAG} --xla_b=2"}
    assert backend.unguarded(both) == {"XLA_FLAGS": "--xla_a=1 --xla_b=2"}
    assert backend.unguarded({"A": "1"}) == {"A": "1"}


def test_a_peer_does_not_see_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {backend.FLAG}")
    python = tmp_path / ".venv-torch" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "torch_loop.py").write_text(
        "import json, os; print(json.dumps({'flags': os.environ['XLA_FLAGS']}))"
    )
    with peers.Peer("torch", tmp_path / "spec.json", tmp_path) as peer:
        assert peer.ready == {"flags": "--xla_a=1"}


@pytest.mark.parametrize(
    ("jaxlib", "reports"),
    [
        ("0.10.2", {"39103", "40412"}),
        ("0.10.1", {"39264"}),
        ("0.10.0", {"39264"}),
        ("0.11.0", {"39257", "40633"}),
        ("0.8.1", {"33479"}),
        ("0.8.2", set()),
        ("0.12.0", set()),
    ],
)
def test_pitfalls_of_a_version(jaxlib, reports):
    found = backend.pitfalls(jaxlib)
    assert {pitfall.report.partition("#")[2] for pitfall in found} == reports


def test_doctor_fails_where_sums_are_wrong(monkeypatch, capsys):
    monkeypatch.setattr(backend, "check", lambda: 1.6)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG, largest relative error 1.6e+00" in printed
    assert "to do       nothing" not in printed


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to\ninitialize"), AssertionError()]
)
@pytest.mark.parametrize("command", ["doctor", "bench"])
def test_missing_devices_are_one_line(command, error, monkeypatch, capsys):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main([command]) == {"doctor": 1, "bench": 2}[command]
    captured = capsys.readouterr()
    (line,) = [s for s in (captured.out + captured.err).splitlines() if "cuda" in s]
    assert "JAX cannot start" in line


def test_doctor_takes_no_arguments(capsys):
    assert main(["doctor", "--help"]) == 0
    assert "usage: fedcmi doctor" in capsys.readouterr().out
    assert main(["doctor", "now"]) == 2
    assert "takes no arguments" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert " doctor " in capsys.readouterr().out
