"""One digest over all files of a folder, and the check that they are intact."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from fedcmi_jax.experiment.files import read_json, sync, write_json

FORMAT = 2
"""Of checkpoints. Version 0.1.0 wrote format 1."""

METADATA = "metadata.json"
"""The file with the digest."""


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Writes metadata.json; on return the folder is complete and on the disk.

    The file holds the content, the SHA-256 of every other file, and as ``checksum``
    that of all this: the folder's digest.

    Args:
      folder: With all its other files.
      content: JSON values.

    Raises:
      OSError: The disk refused.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> (folder / "a").write_text("some text")
      9
      >>> seal(folder, {"round": 5})
      >>> unseal(folder)["round"]
      5
      >>> (folder / "a").write_text("other text")
      10
      >>> unseal(folder)
      Traceback (most recent call last):
      OSError: a has changed
    """
    version = importlib.metadata.version("fedcmi_jax")
    value = {"format": FORMAT, "version": version, **content, "files": _digests(folder)}
    write_json(folder / METADATA, value | {"checksum": _checksum(value)})
    for path in (*folder.rglob("*"), folder):
        sync(path)


def unseal(folder: Path) -> dict[str, Any]:
    """The content of an intact folder, with the ``version`` that wrote it.

    Raises:
      OSError: A file cannot be read, is missing or has changed, or the metadata lack a
        key; names it.
      ValueError: Another version wrote it in another format; names the remedy.
    """
    try:
        value = read_json(folder / METADATA)
        is_intact = value.pop("checksum") == _checksum(value)
    except (ValueError, AttributeError, KeyError, TypeError):
        is_intact = False
    if not is_intact:
        raise OSError(f"{METADATA} does not match its checksum")
    check_keys(value, format=int)
    if value["format"] != FORMAT:
        writer = f"fedcmi_jax {value.get('version', '0.1.0')}, which wrote it"
        raise ValueError(
            f"checkpoint {folder} has format {value['format']}, this version reads "
            f"{FORMAT}; finish the run with {writer}"
        )
    check_keys(value, version=str, files=dict)
    found = _digests(folder)
    for name, digest in value["files"].items():
        if found.get(name) != digest:
            raise OSError(f"{name} {'has changed' if name in found else 'is missing'}")
    return value


def check_keys(value: dict[str, Any], **types: type) -> None:
    """Refuses metadata that lacks a key, or has another type there.

    Raises:
      OSError: Names the first of these keys.

    Example:
      >>> check_keys({"round": "5"}, round=int)
      Traceback (most recent call last):
      OSError: metadata.json has no valid 'round'
    """
    for name, kind in types.items():
        if type(value.get(name)) is not kind:
            raise OSError(f"{METADATA} has no valid {name!r}")


def _digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
