"""Methods, data sets, partitions and encoders from other packages.

A package registers its factories when it is imported:

    import fedcmi_jax as fc

    fc.register("method", "mine", mine)

It is imported where a configuration names it (``--import=package``, kept in config.json
so that ``fedcmi resume`` imports it again), and everywhere if it declares an entry
point of the group ``fedcmi_jax.plugins``.
"""

import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from fedcmi_jax.experiment.sections import REGISTRIES, lookup

GROUP = "fedcmi_jax.plugins"
"""Entry points of this group are modules that register something."""


def register(kind: str, name: str, factory: Callable[..., Any]) -> None:
    """Adds a factory to those that configurations and flags can name.

    Args:
      kind: method, dataset, partition, encoder, aggregator, attack, privacy,
        compression or systems.
      name: What it is called; with underscores.
      factory: Its keyword-only options become flags, its docstring their help.

    Raises:
      ValueError: There is no such kind, the name is taken by another factory, an option
        has no default or no type, or the factory no docstring.

    Example:
      >>> def mine(*, strength: float = 1.0):
      ...     '''Mine.'''
      >>> register("method", "mine_for_the_docs", mine)
      >>> REGISTRIES["method"].pop("mine_for_the_docs") is mine
      True
    """
    registry = REGISTRIES[lookup("kind", kind, REGISTRIES)]
    if not name.isidentifier():
        raise ValueError(f"name: {name!r} is no identifier; give e.g. 'my_{kind}'")
    known = registry.get(name)
    if known is not None and _place(known) != _place(factory):
        raise ValueError(
            f"name: there is a {kind} {name!r} already, in {known.__module__}; choose "
            "another"
        )
    if not inspect.getdoc(factory):
        raise ValueError(f"{kind} {name!r}: has no docstring, which is its help")
    for option in inspect.signature(factory).parameters.values():
        is_option = option.kind is option.KEYWORD_ONLY
        empty = option.empty in (option.default, option.annotation)
        if is_option and empty:
            raise ValueError(
                f"{kind} {name!r}: option {option.name!r} needs a type and a default"
            )
    registry[name] = factory


def _place(factory: Callable[..., Any]) -> tuple[str, str]:
    """Module and name: the same for a module that is imported again."""
    return factory.__module__, factory.__qualname__


def load(names: Iterable[str] = ()) -> None:
    """Imports packages that register something, and all installed plugins.

    Args:
      names: Modules; also of the current folder.

    Raises:
      ValueError: One cannot be imported; names it and why. An installed plugin that
        cannot is only warned of.

    Example:
      >>> load(["no_such_package"])
      Traceback (most recent call last):
      ValueError: import: no_such_package cannot be imported (ModuleNotFoundError: \
No module named 'no_such_package'); install it, or give a module of this folder
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"imports: {names!r} is no list of modules")
    _load_installed()
    for name in names:
        _import(name)


def _import(name: str) -> None:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a stranger's module raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"import: {name} cannot be imported ({why}); install it, or give a module "
            "of this folder"
        ) from None


@functools.cache
def _load_installed() -> None:
    # A broken package that nobody asked for must not stop runs that do without it.
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            _import(point.value.partition(":")[0])
        except ValueError as error:
            warnings.warn(f"plugin {point.name}: {error}", stacklevel=2)
