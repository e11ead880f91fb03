"""``python -m fedcmi_jax.cli``."""

import sys

from fedcmi_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
