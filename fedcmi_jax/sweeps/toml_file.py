"""A sweep's TOML file; docs/sweeps.md has the format."""

import pathlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedcmi_jax.experiment import plugins
from fedcmi_jax.experiment.config import lookup, to_dict
from fedcmi_jax.experiment.one_call import overlaid
from fedcmi_jax.experiment.presets import PRESETS, preset
from fedcmi_jax.experiment.values import typed
from fedcmi_jax.sweeps.blocks import Block, Variant, plan_of, variant
from fedcmi_jax.sweeps.fields import Values
from fedcmi_jax.sweeps.plan import Plan

OF_BLOCK: dict[str, Any] = {
    "preset": str,
    "base": dict,
    "grid": dict,
    "methods": list | dict,
    "tune": dict,
}
"""Keys that a block may have, and the whole file for all blocks."""

OF_FILE: dict[str, Any] = OF_BLOCK | {
    "presets": tuple[str, ...],
    "seeds": int,
    "measure": str,
    "baseline": str,
    "tune_seeds": int,
    "blocks": list,
}
"""Keys of the file."""

NOT_IN_BASE = {
    "preset": "has no effect here; write preset = ... above [base]",
    "output": "has no effect here; give --output, the folder of the whole sweep",
}
"""Fields of a configuration that are no cell's -> what to do."""


def read_toml(path: str | pathlib.Path) -> Plan:
    """The plan that a file describes; trains and writes nothing.

    Args:
      path: The file.

    Returns:
      The plan; every cell's configuration is checked.

    Raises:
      ValueError: It cannot be read, or something in it is impossible: one line with the
        file, the key, the value and the remedy.

    Example:
      >>> read_toml("no/such/file.toml")
      Traceback (most recent call last):
      ValueError: no/such/file.toml: No such file or directory
    """
    try:
        text = pathlib.Path(path).read_text("utf-8")
        return parse_toml(text)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_toml(text: str) -> Plan:
    """The plan that a file's text describes.

    Raises:
      ValueError: See ``read_toml``; without the file's name.

    Example:
      >>> plan = parse_toml('methods = ["fedavg", "fedcmi"]')
      >>> [cell.name for cell in plan.cells]
      ['fedavg', 'fedcmi']
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError("not valid TOML: tables are nested too deeply") from None
    _check_keys("", values, OF_FILE)
    imports = values.get("base", {}).get("imports", ())
    plugins.load(typed("base.imports", imports, tuple[str, ...]))
    common = {k: v for k, v in values.items() if k in OF_BLOCK}
    named = values.get("presets")
    own = values.get("blocks")
    for key, given in (("presets", named), ("blocks", own)):
        if given is not None and not given:
            raise ValueError(f"{key}: is empty; give at least one")
    if named is not None and ("preset" in values or own is not None):
        raise ValueError(
            "presets: stands for a block each; leave out preset and blocks"
        )
    if named is not None:
        own = [{"preset": name} for name in named]
    blocks = list(_blocks(common, own or [{}], values.get("seeds")))
    labels = [block.label for block in blocks]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"blocks: {labels.count(label)} are called {label!r}; give each a name"
            )
    are_presets = all("name" not in block for block in own or [])
    return plan_of(
        blocks,
        source=text,
        block_axis="preset" if are_presets else "block",
        measure=values.get("measure", "acc"),
        baseline=values.get("baseline"),
        tune_seeds=values.get("tune_seeds", 1),
    )


def _blocks(
    common: Mapping[str, Any], own: Sequence[Any], seeds: int | None
) -> Iterator[Block]:
    """The blocks; each has what is common, and its own on top."""
    for i, values in enumerate(own, 1):
        where = f"blocks.{i}." if len(own) > 1 else ""
        if not isinstance(values, dict):
            raise ValueError(f"blocks: {values!r} is no table; write [[blocks]]")
        _check_keys(where, values, OF_BLOCK | {"name": str})
        name = values.get("preset", common.get("preset", ""))
        base: dict[str, Any] = {}
        if name:
            name = lookup(f"{where}preset", name, PRESETS)
            base = to_dict(preset(name))
        for table in (common.get("base", {}), values.get("base", {})):
            for key in NOT_IN_BASE.keys() & table.keys():
                raise ValueError(f"{where}base.{key}: {NOT_IN_BASE[key]}")
            base = overlaid(base, _expanded(f"{where}base", table))
        if seeds is not None:
            if "seeds" in {*common.get("base", {}), *values.get("base", {})}:
                raise ValueError(f"{where}base.seeds: seeds stands above; keep one")
            base["seeds"] = seeds
        methods = values.get("methods", common.get("methods"))
        yield Block(
            values.get("name", name or str(i)),
            base,
            tuple(_variants(f"{where}methods", methods)),
            _lists("grid", common.get("grid", {}))
            | _lists(f"{where}grid", values.get("grid", {})),
            _lists("tune", common.get("tune", {}))
            | _lists(f"{where}tune", values.get("tune", {})),
        )


def _variants(where: str, methods: Any) -> Iterator[Variant]:
    if methods is None:
        yield Variant("")
        return
    if not methods:
        raise ValueError(f"{where}: is empty; name at least one method")
    if isinstance(methods, list):
        for name in typed(where, methods, tuple[str, ...]):
            yield variant(name)
        return
    for name, changes in methods.items():
        if not isinstance(changes, dict):
            raise ValueError(
                f"{where}.{name}: {changes!r} is no table of changes; write "
                f"[{where}.{name}], or methods = [...] with names alone"
            )
        own = _expanded(f"{where}.{name}", changes)
        tune = _lists(f"{where}.{name}.tune", own.pop("tune", {}))
        yield variant(name, own, tune)


def _expanded(
    where: str, table: Mapping[str, Any], into: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Nested tables; a key in quotes may have dots."""
    found = {} if into is None else into
    for key, value in table.items():
        first, dot, rest = key.partition(".")
        value = {rest: value} if dot else value
        is_table = isinstance(value, dict)
        if first in found and not (is_table and isinstance(found[first], dict)):
            raise ValueError(f"{where}.{first}: is there twice; keep one")
        if is_table:
            value = _expanded(f"{where}.{first}", value, found.get(first))
        found[first] = value
    return found


def _lists(where: str, table: Any) -> Values:
    """Dotted field -> its list of values."""
    if not isinstance(table, dict):
        raise ValueError(f"{where}: {table!r} is no table of fields")
    found: Values = {}
    for key, value in table.items():
        if isinstance(value, dict):
            inner = _lists(f"{where}.{key}", value)
        elif isinstance(value, list):
            inner = {"": tuple(value)}
        else:
            raise ValueError(
                f"{where}.{key}: {value!r} is no list; write [{value!r}, ...]"
            )
        for field, values in inner.items():
            path = f"{key}.{field}" if field else key
            if path in found:
                raise ValueError(f"{where}.{path}: is there twice; keep one")
            found[path] = values
    return found


def _check_keys(where: str, table: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuses unknown keys, and values of another kind."""
    kinds = {dict: "a table", list: "a list", list | dict: "a list or a table"}
    for key, value in table.items():
        if key not in known:
            meant = lookup(f"{where}key", key, known)
            raise ValueError(f"{where}key: unknown {key!r}; did you mean {meant!r}?")
        kind = known[key]
        if kind in kinds:
            if not isinstance(value, kind):
                raise ValueError(f"{where}{key}: {value!r} is not {kinds[kind]}")
        else:
            typed(f"{where}{key}", value, kind)
