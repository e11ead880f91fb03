"""Which modalities clients have, as a configuration says it."""

import csv
import pathlib

import numpy as np

from fedcmi_jax import partition
from fedcmi_jax.data.places import expanded
from fedcmi_jax.data.raw.npy import read_npz
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.partition.subsets import draw_subsets, read_subsets, table_by_client

TABLES = (".csv", ".npz")
"""Suffixes of a file with a table."""


def is_table(modalities: str) -> bool:
    """Whether ``Config.modalities`` names a file.

    Example:
      >>> is_table("who.csv"), is_table("clean=1")
      (True, False)
    """
    return modalities.endswith(TABLES)


def client_modalities(
    config: Config,
    names: tuple[str, ...],
    num_clients: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[N, M] bool: by ``Config.modalities``, else by ``multimodal_fraction``.

    Args:
      config: The configuration.
      names: M modalities, in the data set's order.
      num_clients: Clients N that the partition gave.
      rng: Source of the draw; a table draws nothing.

    Returns:
      True where a client has a modality.

    Raises:
      ValueError: A name is unknown, a number is impossible or a file is none; one line.

    Example:
      >>> config, rng = Config(modalities="a=1,a+b=1"), np.random.default_rng(0)
      >>> client_modalities(config, ("a", "b"), 2, rng).sum(axis=0).tolist()
      [2, 1]
    """
    if config.modalities is None:
        return partition.allocate_modalities(
            num_clients, len(names), rng, multimodal_fraction=config.multimodal_fraction
        )
    if not is_table(config.modalities):
        return draw_subsets(read_subsets(config.modalities), names, num_clients, rng)
    path = expanded(config.modalities)
    if not path.is_file():
        raise ValueError(f"modalities: there is no file {path}")
    columns = _of_npz(path) if path.suffix == ".npz" else _of_csv(path)
    return table_by_client(columns, names, num_clients, str(path))


def _of_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    for name, dimensions in (("modalities", 1), ("available", 2)):
        if name not in arrays or arrays[name].ndim != dimensions:
            raise ValueError(
                f"{path}: has no array {name!r} of {dimensions} axes; give modalities "
                "[M], the names, and available [N, M]"
            )
    names = [str(name) for name in arrays["modalities"]]
    table = arrays["available"]
    if table.shape[1] != len(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{path}: available has {table.shape[1]} columns for the modalities "
            f"{names}; give one for each"
        )
    return dict(zip(names, table.T, strict=True))


def _of_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Columns by the header's names; rows are clients 0..N-1, or say which."""
    try:
        text = path.read_text("utf-8-sig")
        header, *lines = [x for x in csv.reader(text.splitlines(), strict=True) if x]
    except (UnicodeDecodeError, csv.Error, ValueError):
        raise ValueError(
            f"{path}: is no table; give a header line of modalities and 0 or 1 for "
            "each client"
        ) from None
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column stands twice in the header; drop one")
    rows = []
    for number, line in enumerate(lines):
        try:
            if len(line) != len(header):
                raise ValueError
            rows.append([int(value) for value in line])
        except ValueError:
            raise ValueError(
                f"{path}: line {','.join(line)!r} (client {number}) is no row of "
                f"{len(header)} whole numbers; correct it"
            ) from None
    table = np.array(rows, np.int64).reshape(len(rows), len(header))
    columns = dict(zip(header, table.T, strict=True))
    if "client" in columns:
        ids = columns.pop("client")
        if not np.array_equal(np.sort(ids), np.arange(len(ids))):
            raise ValueError(
                f"{path}: the column client is not 0 to {len(ids) - 1}, each once; "
                "correct it"
            )
        columns = {name: values[np.argsort(ids)] for name, values in columns.items()}
    return columns
