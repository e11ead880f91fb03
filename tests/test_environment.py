"""What a run was started on and from: recorded, and never in the way."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import memory
from fedcmi_jax.experiment import environment, training

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder, *args):
    """git as on a fresh machine, whatever is configured on this one."""
    names = {f"GIT_{who}_NAME": "n" for who in ("AUTHOR", "COMMITTER")}
    mails = {f"GIT_{who}_EMAIL": "e@x" for who in ("AUTHOR", "COMMITTER")}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)} | names | mails
    done = subprocess.run(
        ["git", "-C", str(folder), *args],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path, monkeypatch):
    # As patient as a busy machine needs.
    monkeypatch.setattr(environment, "GIT_PATIENCE", 60.0)
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "a.py").write_text("1")
    git(folder, "add", "a.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@needs_git
def test_the_commit_is_gits_own_and_changes_are_seen(repo):
    head = git(repo, "rev-parse", "HEAD")
    inside = repo / "deep" / "er"
    inside.mkdir(parents=True)
    (inside / "untracked.txt").write_text("")
    assert environment.git(inside) == {"commit": head, "dirty": False}
    git(repo, "pack-refs", "--all")
    assert environment.git(repo)["commit"] == head
    git(repo, "checkout", "-q", "--detach")
    assert environment.git(repo)["commit"] == head
    (repo / "a.py").write_text("2")
    assert environment.git(inside) == {"commit": head, "dirty": True}


@needs_git
def test_a_worktree_has_a_commit_of_its_own(repo):
    other = repo.parent / "other"
    git(repo, "worktree", "add", "-q", "-b", "side", str(other))
    (other / "a.py").write_text("2")
    git(other, "commit", "-q", "-a", "-m", "second")
    found = environment.git(other)
    assert found["commit"] == git(other, "rev-parse", "HEAD")
    assert found["commit"] != environment.git(repo)["commit"]


@needs_git
def test_a_new_repository_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert environment.git(tmp_path)["commit"] is None


@needs_git
def test_without_git_or_in_haste_changes_are_unknown(repo, monkeypatch):
    head = git(repo, "rev-parse", "HEAD")
    monkeypatch.setattr(environment, "GIT_PATIENCE", 0.0)
    assert environment.git(repo) == {"commit": head, "dirty": None}
    monkeypatch.setattr(environment, "GIT_PATIENCE", 60.0)
    monkeypatch.setenv("PATH", "")
    assert environment.git(repo) == {"commit": head, "dirty": None}


@pytest.mark.parametrize("content", [None, "", "gitdir: /no/where"])
def test_no_repository_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / ".git").write_text(content)
    assert environment.git(tmp_path) is None


@needs_git
def test_the_scripts_repository_goes_before_the_current_folders(
    repo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    script = types.SimpleNamespace(__file__=str(repo / "a.py"))
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert environment.git()["commit"] == git(repo, "rev-parse", "HEAD")
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace())
    assert environment.git() is None
    monkeypatch.chdir(repo)
    assert environment.git()["commit"]


def test_hardware_is_that_of_this_process(tmp_path, monkeypatch):
    devices = jax.devices()
    found = environment.hardware()
    assert found["devices"] == {devices[0].device_kind: len(devices)}
    assert found["cores"] >= 1
    info, limit = tmp_path / "meminfo", tmp_path / "limit"
    info.write_text("MemTotal: 100 kB\nMemAvailable: 60 kB\n")
    limit.write_text("max\n")
    monkeypatch.setattr(memory, "MEMINFO", info)
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    assert memory.host_memory() == (102400, 61440)
    limit.write_text("51200\n")
    assert memory.host_memory() == (51200, 51200)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert environment.hardware()["memory_bytes"] is None
    monkeypatch.setattr(environment, "CPUINFO", info)
    assert environment.hardware()["cpu"] != "Fast 9000"
    info.write_text("model name\t: Fast 9000\n")
    assert environment.hardware()["cpu"] == "Fast 9000"


def test_a_run_records_them_and_is_read_without(tmp_path):
    config = fc.config.Config()
    training.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert {"git", "hardware", "xla_flags", "versions"} <= values.keys()
    assert os.uname().nodename not in values
    for name in ("git", "hardware"):
        del values[name]
    path.write_text(json.dumps(values))
    assert training.read_config(tmp_path) == config
