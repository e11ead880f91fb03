"""Dotted fields and their values: tables, combinations, and names of cells."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fedcmi_jax.experiment.one_call import overlaid
from fedcmi_jax.experiment.resume import leaves
from fedcmi_jax.experiment.run_name import text_of

LONGEST_NAME = 150
"""Letters of a cell's name; file systems allow 255."""

Values = dict[str, tuple[Any, ...]]
"""Dotted field -> values to try."""


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted fields as nested tables.

    Example:
      >>> nested({"method.mu": 0.1, "method.name": "fedprox", "rounds": 3})
      {'method': {'mu': 0.1, 'name': 'fedprox'}, 'rounds': 3}
    """
    found: dict[str, Any] = {}
    for path, value in fields.items():
        *above, last = path.split(".")
        inner = found
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return found


def tried(values: Values) -> Iterator[dict[str, Any]]:
    """Every combination of fields' values, the first field the slowest.

    Example:
      >>> list(tried({"a": (1, 2), "b": (3,)}))
      [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def changed(config: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tables with dotted fields in their place."""
    return overlaid(dict(config), nested(point))


def trial_of(
    config: Mapping[str, Any], point: Mapping[str, Any], seeds: int
) -> dict[str, Any]:
    """A tuning trial's tables: a cell's with some values in place, of so many seeds.

    Example:
      >>> trial_of({"seeds": 3, "map_seeds": True}, {"method.mu": 1}, 1)
      {'seeds': 1, 'map_seeds': False, 'method': {'mu': 1}}
    """
    maps = config.get("map_seeds", False) and seeds > 1
    return changed(config, point) | {"seeds": seeds, "map_seeds": maps}


def trial_name(point: Mapping[str, Any]) -> str:
    """Names a tuning trial's folder.

    Example:
      >>> trial_name({"local.learning_rate": 0.01, "method.mu": 1})
      'learning_rate=0.01,mu=1'
    """
    short = short_names(point)
    return slug_of(",".join(f"{short[f]}={text_of(v)}" for f, v in point.items()))


def shown(value: Any) -> Any:
    """A grid's value as tables show it: of a section its name and options."""
    if not isinstance(value, Mapping):
        return list(value) if isinstance(value, tuple) else value
    options = leaves(dict(value))
    name = [str(options.pop("name"))] if "name" in options else []
    return " ".join([*name, *(f"{k}={text_of(v)}" for k, v in options.items())])


def short_names(fields: Mapping[str, Any]) -> dict[str, str]:
    """Field -> its last part, or all of it where others end alike."""
    last = {field: field.rpartition(".")[2] for field in fields}
    count = Counter(last.values())
    return {f: short if count[short] == 1 else f for f, short in last.items()}


def slug_of(name: str) -> str:
    """The name of a folder; what is too long is cut, and a digest tells it apart."""
    slug = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", name).lstrip(".-")
    if len(slug) <= LONGEST_NAME:
        return slug
    return f"{slug[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
