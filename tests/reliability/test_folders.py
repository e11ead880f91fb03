"""Damaged run folders and full disks: the same results, or one line."""

import collections
import errno
import os
import shutil

import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import files, training
from tests.reliability.folders import BAD, DAMAGES, GOOD, copied, outcome
from tests.test_run import assert_same_run, experiment, metrics, reference, stopped

__all__ = ["reference", "stopped"]

pytestmark = [
    pytest.mark.shipped_flags,
    # Tasks of Orbax that a full disk has ended find their loop closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def resume(monkeypatch):
    """``fedcmi resume``, with programs that are compiled already."""
    monkeypatch.setattr(
        "fedcmi_jax.cli.train.build",
        lambda config, *_, **__: experiment()._replace(config=config),
    )
    return lambda folder: main(["resume", str(folder), "--devices=1"])


def right(reference):
    """Whether a folder's run has ended as the reference did."""

    def is_right(folder, is_noted):
        ends = [files.read_json(f / training.SUMMARY) for f in (folder, reference)]
        for end in ends:
            end["final"].pop("seconds", None)
        if any(ends[0].get(k) != ends[1][k] for k in ("rounds", "final", "best")):
            return False
        if metrics(folder) != metrics(reference):
            return False
        try:
            assert_same_run(folder, reference, experiment())
        except (AssertionError, ValueError):
            return is_noted  # the last model of a run that has finished
        return True

    return is_right


def cases(folder, every):
    """(file, how) for all files but the checkpoints before the newest one."""
    newest = max(folder.glob("checkpoints/*"), key=lambda path: int(path.name))
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    paths = [p for p in paths if p.parent == folder or newest in p.parents]
    names = [p.relative_to(folder) for p in paths]
    return [(name, how) for name in names for how in DAMAGES][::every]


def survey(source, every, resume, reference, tmp_path, capsys):
    """Outcome -> cases; fails at a bad one, by name."""
    counts, bad = collections.Counter(), []
    for name, how in cases(source, every):
        folder = copied(source, tmp_path / "damaged")
        DAMAGES[how](folder / name)
        found, line = outcome(resume, folder, right(reference), capsys)
        counts[found] += 1
        if found in BAD:
            bad.append((str(name), how, found, line))
        shutil.rmtree(folder)
    assert bad == []
    return counts


def shown(counts, capsys):
    with capsys.disabled():
        print("\n" + "\n".join(f"| {k} | {counts[k]} |" for k in (*GOOD, *BAD)))


@pytest.mark.parametrize(
    "which", [pytest.param("stopped", marks=pytest.mark.slow), "finished"]
)
def test_some_damages(which, resume, reference, stopped, tmp_path, capsys):
    source, every = (stopped, 29) if which == "stopped" else (reference, 17)
    counts = survey(source, every, resume, reference, tmp_path, capsys)
    assert sum(counts.values()) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("which", ["stopped", "finished"])
def test_every_damage_to_every_file(
    which, resume, reference, stopped, tmp_path, capsys
):
    # Of the slower half every third damage to a file, and others to the next.
    source, every = (stopped, 3) if which == "stopped" else (reference, 1)
    counts = survey(source, every, resume, reference, tmp_path, capsys)
    assert sum(counts.values()) >= 60
    shown(counts, capsys)


class FullDisk:
    """Refuses to put anything on the disk from the n-th time on.

    Attributes:
      left: Times that are still granted.
    """

    def __init__(self, left, monkeypatch):
        self.left, self.inner = left, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.inner(descriptor)


def fills_up(moment, source, resume, reference, tmp_path, monkeypatch, capsys):
    """A disk that is full from a moment of a run on; whether it came to that."""
    folder = copied(source, tmp_path / "full")
    with monkeypatch.context() as patch:
        disk = FullDisk(moment, patch)
        code = resume(folder)
    errors = capsys.readouterr().err.splitlines()
    if disk.left >= 0:
        assert code == 0
        shutil.rmtree(folder)
        return False
    assert code == 1
    (line,) = errors
    assert "No space left on device" in line
    assert str(folder) in line
    assert resume(folder) == 0
    capsys.readouterr()
    assert_same_run(folder, reference, experiment())
    shutil.rmtree(folder)
    return True


@pytest.mark.parametrize("moment", [0, 7])
def test_a_disk_that_is_full_early(
    moment, resume, reference, stopped, tmp_path, monkeypatch, capsys
):
    assert fills_up(moment, stopped, resume, reference, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_moment(
    resume, reference, stopped, tmp_path, monkeypatch, capsys
):
    common = (stopped, resume, reference, tmp_path, monkeypatch, capsys)
    moments = 0
    while fills_up(moments, *common):
        moments += 1
    assert moments >= 10
    shown({GOOD[2]: moments} | dict.fromkeys((*GOOD[:2], *BAD), 0), capsys)
