import os
import signal
import subprocess
import sys

import pytest

WAITS = "import threading; threading.Event().wait()"


def ended(program, number):
    """Exit code and error output of a program that sends itself this signal."""
    done = subprocess.run(
        [sys.executable, "-c", program.format(number=int(number))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_in_one_line(number):
    program = (
        "import os; from fedcmi_jax.cli import interrupts; interrupts.install()\n"
        f"os.kill(os.getpid(), {{number}}); {WAITS}"
    )
    line = f"fedcmi: stopped by {number.name}\n"
    assert ended(program, number) == (128 + number, line)


def test_nothing_large_is_imported_before_signals_are_heard():
    program = "import fedcmi_jax.cli.entry, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"tyro", "jax", "rich"}.isdisjoint(done.stdout.split())


def test_while_training_the_first_signal_saves_and_the_second_ends():
    program = (
        "import signal\n"
        "from fedcmi_jax.cli import interrupts; interrupts.install()\n"
        "from fedcmi_jax.experiment.stopping import stop_requests\n"
        "with stop_requests(lambda line: None) as stop:\n"
        "    signal.raise_signal({number})\n"
        "    print(*stop, flush=True)\n"
        f"    signal.raise_signal({{number}}); {WAITS}"
    )
    code, errors = ended(program, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert errors == "fedcmi: stopped by SIGINT\n"


MOMENTS = [0.3, 0.4, 0.5, 0.7, 0.9, 1.2, 1.6, 2, 3, 5, 8, 12]
"""Seconds after the start: imports, arguments, data, compiling, rounds. Earlier, in the
first 0.05 s on a quiet machine, Python itself is not up, and ends in its own way.
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_any_moment(moment, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fedcmi_jax.cli",
        "train",
        "--output=run",
        "--rounds=100000",
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    ) as process:
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    lines = [x for x in errors.splitlines() if "stop" in x or "continue with" in x]
    assert lines == errors.splitlines()
    assert 1 <= len(lines) <= 2  # in training: that it stops, and how to go on
