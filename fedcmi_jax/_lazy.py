"""Packages whose names are imported when they are first used (PEP 562).

Every command imports ``fedcmi_jax``; with this, ``fedcmi --version`` does not wait for
JAX, nor ``fedcmi train --help`` for Orbax.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__``, which finds the names it lacks, and ``__dir__``.

    Type checkers do not run it: the package also imports all names for them, under
    ``TYPE_CHECKING``.

    Args:
      package: The package's name.
      where: Name -> module that it is imported from. The package's own modules are
        found without, and none may have such a name: its import would hide the object.

    Returns:
      Both functions.

    Example:
      >>> find, names = lazy("fedcmi_jax", {"Batch": "fedcmi_jax.types"})
      >>> find("Batch").__name__, "methods" in names()
      ('Batch', True)
    """

    def get(name: str) -> Any:
        from importlib import util

        own = f"{package}.{name}"
        if name in where:
            module = where[name]
            value = getattr(importlib.import_module(module), name)
        elif not name.startswith("_") and util.find_spec(own) is not None:
            value = importlib.import_module(own)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    def names() -> list[str]:
        from pkgutil import iter_modules

        module = sys.modules[package]
        own = (m.name for m in iter_modules(module.__path__))
        return sorted({*vars(module), *where, *own})

    return get, names
