"""SIGKILL while a run writes a checkpoint and while it resumes: nothing is lost."""

import collections
import os
import signal
import subprocess
import sys

import jax
import pytest

from fedcmi_jax.experiment import checkpoint, training
from tests.reliability.folders import copied
from tests.test_run import assert_same_run, experiment, reference, start, stopped

__all__ = ["reference", "stopped"]

pytestmark = pytest.mark.shipped_flags

# Resumes runs, each in a process of its own that kills itself before its n-th change to
# the run's folder (an open file, a renaming, a new or removed folder) within a span, or
# before a named one, EVENT:PATH. At the latest it dies where the span ends.
# It forks before JAX starts its threads, so that none costs a new start of Python.
DIES = """
import os, signal, sys
from fedcmi_jax.cli import main as cli
from fedcmi_jax.experiment import checkpoint, resume, training

SPANS = {"checkpoint": (checkpoint, "save"), "resume": (training.resume, "start"),
         "line": (training.MetricsLog, "append"), "summary": (training, "_finish")}
CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}

def dies(folder, span, calls, moment):
    owner, name = SPANS[span]
    inner, done, inside, changes = getattr(owner, name), 0, False, 0
    def spanned(*args, **options):
        nonlocal done, inside
        done += 1
        inside = done == calls
        try:
            return inner(*args, **options)
        finally:
            if inside:
                os.kill(os.getpid(), signal.SIGKILL)
            inside = False
    def watch(event, args):
        nonlocal changes
        if inside and event in CHANGES and str(args[0]).startswith(folder):
            change = event + ":" + str(args[0]).removeprefix(folder + "/")
            if moment in (str(changes), change):
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1
    setattr(owner, name, spanned)
    sys.addaudithook(watch)
    cli.main(["resume", folder, "--devices=1"])

for line in sys.stdin:
    *folder, span, calls, moment = line.split()
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        dies(" ".join(folder), span, int(calls), moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed():
    """Resumes a run in a process that dies at a moment of a span."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(len(jax.devices())),
    }
    with subprocess.Popen(
        [sys.executable, "-c", DIES],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def kill(folder, span, calls, moment):
            process.stdin.write(f"{folder} {span} {calls} {moment}\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == -signal.SIGKILL

        yield kill
        process.stdin.close()


MOMENTS = {
    # Which call of it, and after how many changes to the folder, or before which.
    # A save makes about 48 changes: Orbax writes as many files as its threads need. The
    # fourth removes an old checkpoint, too.
    "checkpoint": [
        *((1, n) for n in range(3, 75, 6)),
        *((4, n) for n in (7, 15, 23, 31, 37, 41, 45, 99)),
        *((4, f"os.rename:checkpoints/{path}") for path in ("8.tmp", "2")),
        *((4, f"{event}:checkpoints/2.removed") for event in ("open", "os.rmdir")),
    ],
    "resume": [(1, n) for n in range(0, 20, 2)],
    "line": [(1, 0), (2, 0), (2, 1)],
    "summary": [(1, 0), (1, 1), (1, 2)],
}


def ends_alike(span, call, moment, killed, reference, stopped, folder):
    """Kills, goes on, compares; which checkpoints the killed run left."""
    if span == "resume":
        copied(stopped, folder)
    else:
        start(experiment(), folder)
    killed(folder, span, call, moment)
    assert not (folder / training.SUMMARY).exists()
    left = checkpoint.rounds(folder / training.CHECKPOINTS)
    training.train(experiment(), folder)
    assert_same_run(folder, reference, experiment())
    return left


def test_killed(killed, reference, tmp_path):
    ends_alike("checkpoint", 1, 6, killed, reference, None, tmp_path / "run")


@pytest.mark.slow
def test_forty_kills(killed, reference, stopped, tmp_path, capsys):
    counts, left = collections.Counter(), collections.Counter()
    for span, moments in MOMENTS.items():
        for number, (call, moment) in enumerate(moments):
            folder = tmp_path / f"{span}-{number}"
            found = ends_alike(span, call, moment, killed, reference, stopped, folder)
            counts[span] += 1
            left[span, call, tuple(found)] += 1
    assert sum(counts.values()) == 40
    assert counts["checkpoint"] >= 20
    assert counts["resume"] >= 10
    # Kills before a checkpoint was there, and after it with the oldest not yet gone.
    assert {k[2] for k in left if k[:2] == ("checkpoint", 1)} == {(), (2,)}
    assert {k[2] for k in left if k[:2] == ("checkpoint", 4)} >= {
        (2, 4, 6),
        (2, 4, 6, 8),
    }
    with capsys.disabled():
        print("\nthe same bits as without a kill:", dict(counts))
        print("checkpoints left:", dict(left))
