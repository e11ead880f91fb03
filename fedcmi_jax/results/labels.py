"""What runs side by side are called, and how their values are spelled.

They are called by what differs between their configurations.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedcmi_jax.evaluation.glossary import is_share
from fedcmi_jax.experiment.sections import REGISTRIES

NO_DIFFERENCE = (
    *("seed", "seeds", "preset", "output", "imports", "log_clients", "stream"),
    *("checkpoint_every", "rounds_per_call", "eval_every", "chunk_size"),
)
"""Fields that change no model, or that are an entry's seeds."""


def same_but_seeds(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations differ in nothing but what ``NO_DIFFERENCE`` names.

    Example:
      >>> same_but_seeds({"seed": 0, "rounds": 5}, {"seed": 1, "rounds": 5})
      True
    """
    return _relevant(one) == _relevant(other)


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in config.items() if name not in NO_DIFFERENCE}


def labelled(
    configs: Sequence[Mapping[str, Any]], hints: Sequence[str]
) -> tuple[tuple[str, ...], list[str], list[dict[str, Any]]]:
    """Names entries by what differs.

    Args:
      configs: Nested configurations, as in config.json.
      hints: Of each, what tells it from another of the same configuration: its folder.

    Returns:
      The axes, of every entry its label, and of every entry axis -> value. The value on
      the axis of a section such as ``method`` is the section's name with the options in
      which entries of this name differ.

    Example:
      >>> one = {"method": {"name": "fedprox", "mu": 0.1}, "clients": 5}
      >>> other = {"method": {"name": "fedavg"}, "clients": 5}
      >>> labelled([one, other], ["a", "b"])[:2]
      (('method',), ['fedprox', 'fedavg'])
    """
    flat = [_flat(config) for config in configs]
    tables: dict[str, list[Any]] = {}
    for kind in REGISTRIES:
        names = [config.get(kind, {}).get("name") for config in configs]
        if kind == "method" or len(set(names)) > 1:
            tables[kind] = [
                _with_options(kind, i, names, flat) for i in range(len(configs))
            ]
    shared = set.intersection(*(set(values) for values in flat))
    for path in flat[0]:
        is_axis = path in shared and path.partition(".")[0] not in tables
        if is_axis and any(values[path] != flat[0][path] for values in flat):
            tables[path] = [values[path] for values in flat]
    varied = {
        axis: column
        for axis, column in tables.items()
        if any(value != column[0] for value in column)
    }
    methods = tables["method"]
    labels = [_label(methods, varied, i) for i in range(len(configs))]
    counts = Counter(labels)
    labels = [
        f"{label} ({hint})" if counts[label] > 1 else label
        for label, hint in zip(labels, hints, strict=True)
    ]
    values = [
        {axis: column[i] for axis, column in varied.items()} for i in range(len(flat))
    ]
    return tuple(varied), labels, values


def _flat(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Path -> value."""
    found: dict[str, Any] = {}
    for name, value in _relevant(config).items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def _with_options(
    kind: str, i: int, names: Sequence[str], flat: Sequence[Mapping[str, Any]]
) -> str:
    """A section's name, with its options that differ among those of this name."""
    peers = [
        values for name, values in zip(names, flat, strict=True) if name == names[i]
    ]
    parts = [str(names[i])]
    for path, value in flat[i].items():
        is_option = path.startswith(f"{kind}.") and path != f"{kind}.name"
        if is_option and any(value != other.get(path, value) for other in peers):
            parts.append(f"{path.rpartition('.')[2]}={text(value)}")
    return " ".join(parts)


def _label(methods: Sequence[str], varied: Mapping[str, Sequence[Any]], i: int) -> str:
    parts = [methods[i]] if "method" in varied or not varied else []
    for axis, column in varied.items():
        if axis != "method":
            parts.append(f"{axis.rpartition('.')[2]}={text(column[i])}")
    return ",".join(parts)


def text(value: Any) -> str:
    """A value as a label shows it.

    Example:
      >>> text(0.10), text([1, 2]), text(None)
      ('0.1', '1-2', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "-".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def scale_of(column: str) -> tuple[float, int]:
    """Factor and digits that a column's values are shown with: shares in per cent.

    Example:
      >>> scale_of("val_acc"), scale_of("loss_task")
      ((100.0, 1), (1.0, 3))
    """
    return (100.0, 1) if is_share(column) else (1.0, 3)
