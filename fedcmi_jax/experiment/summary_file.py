"""A run's summary.json, read back: what it says is checked before it is believed."""

import pathlib
from typing import Any

from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.run_folder import SUMMARY

REMEDY = "remove the file, and `fedcmi resume` writes it anew"


def read_summary(folder: pathlib.Path) -> dict[str, Any]:
    """Reads how a run ended.

    Args:
      folder: A run's folder, with a summary.json.

    Returns:
      Its fields; ``final`` is a metrics line, ``best`` one or None.

    Raises:
      ValueError: It is damaged, or a field is of another type; names it.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / SUMMARY).write_text('{"final": 3}')
      12
      >>> read_summary(folder)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: ...summary.json: has no valid 'final'; remove the file, and ...
    """
    path = folder / SUMMARY
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is no table of fields; {REMEDY}")
    valid = {
        "rounds": _is_round(found.get("rounds", 1)),  # version 0.1 wrote none
        "stopped_early": _is_round(found.get("stopped_early") or 1),
        "final": _is_line(found.get("final")),
        "best": found.get("best") is None or _is_line(found["best"]),
        "seconds": _is_number(found.get("seconds", 0.0)),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"{path}: has no valid {name!r}; {REMEDY}")
    return found


def _is_line(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("acc"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_round(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
