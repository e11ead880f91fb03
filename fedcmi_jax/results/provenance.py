"""Where numbers come from: machines, versions, commands, and what went wrong."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedcmi_jax.experiment.config import Config, to_dict
from fedcmi_jax.experiment.presets import PRESETS, preset
from fedcmi_jax.experiment.run_name import differences
from fedcmi_jax.experiment.sections import REGISTRIES, section
from fedcmi_jax.results.blocks import Table
from fedcmi_jax.results.collect import Entry


def command(config: Mapping[str, Any]) -> str:
    """The ``fedcmi train`` that has this configuration.

    Args:
      config: Nested, as in config.json.

    Example:
      >>> from fedcmi_jax.experiment.presets import preset
      >>> values = to_dict(preset("noisy-digits")) | {"rounds": 7}
      >>> command(values | {"method": {"name": "fedprox", "mu": 0.5}})
      'fedcmi train noisy-digits --method.name=fedprox --method.mu=0.5 --rounds=7'
    """
    name = config.get("preset")
    known = name in PRESETS
    base = to_dict(preset(str(name)) if known else Config())
    first, rest = [], []
    for kind in REGISTRIES:
        own = config.get(kind)
        own_name = own.get("name") if isinstance(own, dict) else None
        if own_name is not None and own_name != base[kind]["name"]:
            first.append(f"--{kind.replace('_', '-')}.name={own_name}")
            is_known = own_name in REGISTRIES[kind]
            options = (
                to_dict(Config(**{kind: section(kind, own_name)()})) if is_known else {}
            )
            base[kind] = options.get(kind, {"name": own_name})
    for path, value in differences(config, base):
        if path not in ("preset", "output") and not path.endswith(".name"):
            rest.append(f"--{path.replace('_', '-')}={_spelled(value)}")
    if config.get("imports"):
        imports = [f"--import={_spelled(config['imports'])}"]
        rest = imports + [flag for flag in rest if not flag.startswith("--imports=")]
    head = ["fedcmi", "train", *([str(name)] if known else [])]
    return shlex.join([*head, *first, *rest])


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def how(entry: Entry) -> str:
    """What trains an entry again; of a script's own parts a remark."""
    parts = entry.record.get("parts")
    if isinstance(parts, Mapping) and parts:
        return f"# {entry.label}: a script, with its own {', '.join(map(str, parts))}"
    return command(entry.config)


def resume_commands(entries: Sequence[Entry]) -> list[str]:
    """What goes on with the runs that have not finished."""
    return [
        f"fedcmi resume {shlex.quote(str(folder))}"
        for entry in entries
        if entry.unfinished and not entry.failure
        for folder in entry.folders
        if folder.is_dir()
    ]


def machines(entries: Sequence[Entry]) -> Table:
    """Hardware and versions, a row for each that differs, with its entries."""
    found: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        if entry.record:
            found.setdefault(_machine(entry.record), []).append(entry.label)
    every = len(found) == 1
    rows = [["all" if every else ", ".join(who), *what] for what, who in found.items()]
    heads = ["entries", "processor", "cores", "memory", "devices", "versions", "commit"]
    return Table("What the runs were trained on, as each recorded it.", heads, rows)


def _machine(record: Mapping[str, Any]) -> tuple[str, ...]:
    hardware = _table(record.get("hardware"))
    versions = _table(record.get("versions"))
    git = _table(record.get("git"))
    memory = hardware.get("memory_bytes")
    devices = _table(hardware.get("devices"))
    commit = str(git.get("commit") or "-")[:12]
    return (
        str(hardware.get("cpu") or "-"),
        str(hardware.get("cores") or "-"),
        f"{memory / 2**30:.1f} GiB" if isinstance(memory, int) else "-",
        ", ".join(f"{n} {kind}" for kind, n in devices.items()) or "-",
        ", ".join(f"{name} {version}" for name, version in versions.items()) or "-",
        f"{commit} (changed)" if git.get("dirty") else commit,
    )


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def warnings(entries: Sequence[Entry]) -> list[str]:
    """What a reader has to know first: failed and unfinished entries, bad signs."""
    lines = []
    for entry in entries:
        if entry.failure:
            lines.append(f"{entry.label} failed: {entry.failure}")
        elif entry.unfinished:
            seeds = ", ".join(map(str, entry.unfinished))
            lines.append(f"{entry.label} is unfinished: seed {seeds}")
        for seed, summary in entry.summaries.items():
            signs = summary.get("signs")
            for sign in signs if isinstance(signs, list) else ():
                lines.append(f"{entry.label}, seed {seed}: {sign}")
    return lines
