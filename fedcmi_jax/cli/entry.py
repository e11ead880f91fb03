"""What ``fedcmi`` starts with: signals first, so that Ctrl-C works while it imports."""

import io
import sys

from fedcmi_jax.cli import interrupts


def main() -> int:
    """Runs the command line of this process.

    Returns:
      The exit code.
    """
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows ASCII only gets \\xe9 for an e with an accent.
        sys.stdout.reconfigure(errors="backslashreplace")
    from fedcmi_jax.cli.main import main

    return main()
