"""What tells runs apart: the options that differ from a preset's or a section's."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from fedcmi_jax.experiment.config import Config, section, to_dict
from fedcmi_jax.experiment.presets import preset
from fedcmi_jax.experiment.sections import REGISTRIES

LONGEST = 60
"""Letters of the options in a run's name; the file system allows 255 in all."""

UNNAMED = ("seed", "preset", "output", "imports", "log_clients")
"""Fields that are no part of a name: it has the seed, or they change no result."""


def run_name(config: Config) -> str:
    """A name for a run: preset or data set, method, and what differs from the preset.

    Without a preset what differs from the defaults. Options of a section whose name is
    not the preset's are compared with the section's own defaults. Of paths it
    has the last part, and what would be too long is counted.

    Example:
      >>> import fedcmi_jax as fc
      >>> run_name(fc.config.from_dict({
      ...     **fc.config.to_dict(fc.experiment.presets.preset("noisy-digits")),
      ...     "rounds": 7, "partition": {"name": "dirichlet", "alpha": 0.1}}))
      'noisy-digits-fedcmi-alpha0.1-rounds7'
    """
    base = preset(config.preset) if config.preset else Config()
    own = {}
    for kind in REGISTRIES:
        name = getattr(config, kind).name
        if name != getattr(base, kind).name:
            own[kind] = section(kind, name)()
    is_its_data = "dataset" not in own and config.preset
    head = config.preset if is_its_data else config.dataset.name
    base = dataclasses.replace(base, **own)
    parts = [str(own[k].name) for k in own if k not in ("dataset", "method")]
    for path, value in differences(to_dict(config), to_dict(base)):
        text = text_of(value)
        if path not in UNNAMED:
            short = text.removesuffix("/*").rpartition("/")[2]  # of a path or pattern
            parts.append(f"{path.rpartition('.')[2].replace('_', '-')}{short}")
    kept: list[str] = []
    for i, part in enumerate(parts):
        if len("-".join([*kept, part])) > LONGEST:
            kept.append(f"and{len(parts) - i}more")
            break
        kept.append(part)
    return "-".join([head.replace("_", "-"), config.method.name, *kept])


def differences(
    values: Mapping[str, Any], base: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any]]:
    """Paths and values of what differs in nested dicts.

    Example:
      >>> list(differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0}}))
      [('b.c', 2), ('b.d', 3)]
    """
    for name, value in values.items():
        path, other = f"{where}{name}", base.get(name)
        if isinstance(value, Mapping):
            inner = other if isinstance(other, Mapping) else {}
            yield from differences(value, inner, f"{path}.")
        elif value != other:
            yield path, value


def text_of(value: Any) -> str:
    """A value in a name.

    Example:
      >>> text_of(0.10), text_of([3, 5])
      ('0.1', '3-5')
    """
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def method_of(values: Mapping[str, Any]) -> str:
    """A method's section of a config.json, with the options that are not its defaults.

    Of a method that is not registered here, all options.

    Example:
      >>> method_of({"name": "fedcmi", "lam": 0.0})
      'fedcmi lam=0'
      >>> method_of({"name": "mine", "a": 1})
      'mine a=1'
    """
    name = values["name"]
    base: dict[str, Any] = {"name": name}
    if name in REGISTRIES["method"]:
        base = to_dict(Config(method=section("method", name)()))["method"]
    changed = differences(values, base)
    return " ".join([name, *(f"{path}={text_of(value)}" for path, value in changed)])
