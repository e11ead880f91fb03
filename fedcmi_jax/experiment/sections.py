"""The parts of a configuration that are chosen by name.

Data set, partition, encoder, method, aggregator, attack, privacy, compression and
systems: such a section is the name plus the keyword-only options of the factory
registered under it, so a new factory brings its own flags and help.
"""

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from fedcmi_jax import (
    aggregators,
    attacks,
    compression,
    data,
    methods,
    models,
    partition,
    privacy,
    systems,
)
from fedcmi_jax.samples import PathOption

REGISTRIES: dict[str, dict[str, Callable[..., Any]]] = {
    "dataset": data.REGISTRY,
    "partition": partition.REGISTRY,
    "encoder": models.ENCODERS,
    "method": methods.REGISTRY,
    "aggregator": aggregators.REGISTRY,
    "attack": attacks.REGISTRY,
    "privacy": privacy.REGISTRY,
    "compression": compression.REGISTRY,
    "systems": systems.REGISTRY,
}
"""Section -> registry of factories."""

DEFAULT_NAMES = {
    "dataset": "noisy_digits",
    "partition": "dirichlet",
    "encoder": "mlp",
    "method": "fedcmi",
    "aggregator": "mean",
    "attack": "none",
    "privacy": "none",
    "compression": "none",
    "systems": "none",
}


RENAMED = {"multi_ratio": "multimodal_fraction", "knee": "decay_start"}
"""Field of release 0.1 -> its name now."""


def lookup(what: str, name: str, known: typing.Iterable[str]) -> str:
    """Returns the name if it is known; hyphens may stand for underscores.

    Raises:
      ValueError: It is not; suggests a close one.
    """
    known = list(known)
    for candidate in (name, name.replace("-", "_"), name.replace("_", "-")):
        if candidate in known:
            return candidate
    prefix, dot, field = name.rpartition(".")
    renamed = prefix + dot + RENAMED.get(field.replace("-", "_"), "")
    close = difflib.get_close_matches(name, known, n=1)
    elsewhere = [k for k in known if dot and k.rpartition(".")[2] == field]
    close = elsewhere if len(elsewhere) == 1 else close
    close = [renamed] if renamed in known else close
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {sorted(known)}"
    raise ValueError(f"{what}: unknown {name!r}; {hint}")


@functools.cache
def section(kind: str, name: str) -> type:
    """The dataclass of a section: ``name`` and the options of its factory.

    Args:
      kind: A key of ``REGISTRIES``.
      name: A name in that registry.

    Raises:
      ValueError: Unknown name.

    Example:
      >>> section("method", "fedprox")(mu=0.1)
      FedproxMethod(name='fedprox', mu=0.1)
    """
    registry = REGISTRIES[kind]
    name = lookup(f"{kind}.name", name, registry)
    factory = registry[name]
    hints = typing.get_type_hints(factory)
    fields: list[tuple[str, Any, Any]] = [
        ("name", str, dataclasses.field(default=name))
    ]
    fields += [
        (p.name, hints[p.name], dataclasses.field(default=p.default))
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    title = "".join(part.capitalize() for part in (*name.split("_"), kind))
    known = ", ".join(sorted(registry))
    doc = inspect.getdoc(factory) or ""
    args = doc.partition("Args:\n")[2].partition("\n\n")[0]
    doc = f"{doc.splitlines()[0]}\n\nAttributes:\n  name: One of {known}.\n{args}\n"
    return dataclasses.make_dataclass(
        title, fields, frozen=True, namespace={"__doc__": doc}
    )


def path_options(kind: str, name: str) -> tuple[str, ...]:
    """Options of a factory that name a file or a folder.

    Example:
      >>> path_options("dataset", "npz")
      ('path',)
    """
    hints = typing.get_type_hints(REGISTRIES[kind][name], include_extras=True)
    return tuple(
        option
        for option, hint in hints.items()
        if PathOption in (hint, *typing.get_args(hint))
    )


def create(kind: str, chosen: Any, *args: Any) -> Any:
    """Calls the factory that a section names with its options."""
    options = {
        f.name: getattr(chosen, f.name)
        for f in dataclasses.fields(chosen)
        if f.name != "name"
    }
    return REGISTRIES[kind][chosen.name](*args, **options)
