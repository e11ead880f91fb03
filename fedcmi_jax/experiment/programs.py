"""Where compiled programs are kept from one process to the next."""

import warnings

import jax

from fedcmi_jax.data.places import cache_home

WORTH_KEEPING = 0.05
"""Seconds of compiling from which a program is kept: reading one takes 5 ms or more."""


def keep_programs() -> None:
    """Keeps compiled programs under the user's cache folder, unless told where.

    A user without a home folder has none, and compiles again each time.

    Raises:
      ValueError: $XDG_CACHE_HOME is relative: programs would come from whatever folder
        this is run in.
    """
    root = cache_home()
    if root and jax.config.values["jax_compilation_cache_dir"] is None:
        folder = root / "fedcmi_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX's default of a second compiles a run's middling programs each time.
        name = "jax_persistent_cache_min_compile_time_secs"
        jax.config.update(name, WORTH_KEEPING)
        # A full disk, or a damaged program: it is compiled again, nothing is lost.
        about = "Error (reading|writing) persistent compilation cache"
        warnings.filterwarnings("ignore", about)
