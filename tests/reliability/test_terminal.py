"""Terminals and disks that do not take what is printed."""

import os
import subprocess
import sys

import pytest

LIST = "import sys; from fedcmi_jax.cli.entry import main; sys.exit(main())"
ACCENT = (
    "import sys, fedcmi_jax.cli.main as other\n"
    "other.main = lambda: print('caf\\u00e9 \\udcff') or 0\n" + LIST
)


def ended(program, *args, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        text=True,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = ended(LIST, "list", "methods", stdout=full)
    assert done.returncode == 1
    line = "fedcmi: error: No space left on device: standard output\n"
    assert done.stderr == line


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "caf\\xe9 \\udcff"), ("utf-8", "café \\udcff")]
)
def test_what_a_terminal_has_no_character_for_is_written_out(encoding, shown):
    done = ended(ACCENT, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{shown}\n"
