"""The state before the first round, and the digest of what it was loaded from."""

import hashlib
import pathlib

import jax
import numpy as np

from fedcmi_jax.blocks import by_path
from fedcmi_jax.experiment.config_file import record_start
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.types import FederationState, Start

KINDS = ("params", "batch_stats")
"""Names of the two trees of a model in files."""


def digest(start: Start) -> str:
    """SHA-256 over names, shapes, types and contents of all arrays, in hexadecimal.

    Example:
      >>> import numpy as np
      >>> digest(Start({"a": np.zeros(2)}, {}))[:8]
      '324d3d03'
    """
    found = hashlib.sha256()
    for kind, tree in zip(KINDS, start, strict=True):
        for path, x in sorted(by_path(tree).items()):
            found.update(f"{kind}/{path} {x.dtype.str} {x.shape}\n".encode())
            found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def initial_state(
    experiment: Experiment, folder: pathlib.Path | None = None
) -> FederationState:
    """The state before the first round, from ``init_from`` where that is given.

    Args:
      experiment: The run's.
      folder: The run's folder, whose config.json gets the digest of what was loaded;
        None: there is none.

    Raises:
      ValueError: See ``init_from``; or the run began before with other arrays.
    """
    init = jax.jit(experiment.algorithm.init)
    start = experiment.start()
    if start is None:
        return init(experiment.key, experiment.federation)
    if folder is not None:
        record_start(folder, digest(start))
    return init(experiment.key, experiment.federation, start)


def described(start: Start, source: str) -> str:
    """What was loaded, in a line."""
    paths = [*by_path(start.params), *by_path(start.batch_stats)]
    blocks = dict.fromkeys(map(block_of, paths))
    return f"init_from {source}: {len(paths)} arrays of {', '.join(blocks)}"


def block_of(path: str) -> str:
    """The first two parts of a path: kind and modality."""
    return "/".join(path.split("/")[:2])
