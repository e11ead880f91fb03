"""What is kept at a client between rounds: a file, changed when the server accepted.

After its training a client has what would be kept of it, and does not know yet whether
the server took its update. It writes both: what is kept, and what is proposed. The next
message says in which round the server accepted it last, and decides between the two.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedcmi_jax.data.raw.npy import read_npz, zipped
from fedcmi_jax.deploy.wire import as_arrays, as_tree
from fedcmi_jax.experiment.files import replace
from fedcmi_jax.methods.seen import Kept

NEVER = -1
"""The round of what was there before the first one."""


class Memory(NamedTuple):
    """A client's file.

    Attributes:
      kept: What is kept.
      kept_round: The round that it is of, counted from 0, or ``NEVER``.
      proposed: What will be, if the server accepted the update of that round.
      proposed_round: The round of the last training, or ``NEVER``.
    """

    kept: Kept
    kept_round: int
    proposed: Kept
    proposed_round: int


def unused(first: Kept) -> Memory:
    """The memory of a client that has not trained yet."""
    return Memory(first, NEVER, first, NEVER)


def unproposed(memory: Memory) -> Memory:
    """The memory after a training that led to nothing.

    Example:
      >>> unproposed(Memory("old", 3, "new", 5))
      Memory(kept='old', kept_round=3, proposed='old', proposed_round=3)
    """
    return memory._replace(proposed=memory.kept, proposed_round=memory.kept_round)


def settled(memory: Memory, accepted: int) -> Memory:
    """The memory after the server's word.

    Args:
      memory: As it was written.
      accepted: The last round in which the server accepted this client, or ``NEVER``.

    Raises:
      ValueError: It is of neither round: it belongs to another state of the server.

    Example:
      >>> memory = Memory("old", 3, "new", 5)
      >>> settled(memory, 5).kept, settled(memory, 3).kept
      ('new', 'old')
      >>> settled(memory, 4)
      Traceback (most recent call last):
      ValueError: what it keeps is of round 3 or 5, the server accepted it in 4; \
give it the file of that round, or begin a new run
    """
    if accepted == memory.kept_round:
        return memory
    if accepted == memory.proposed_round:
        return memory._replace(kept=memory.proposed, kept_round=accepted)
    raise ValueError(
        f"what it keeps is of round {memory.kept_round} or {memory.proposed_round}, "
        f"the server accepted it in {accepted}; give it the file of that round, or "
        "begin a new run"
    )


def load(path: Path, first: Kept) -> Memory:
    """Reads a client's file; without one, the memory of a client that never trained.

    Args:
      path: The file.
      first: What is kept before the first round.

    Raises:
      ValueError: The file is damaged, or of another model; names it.
    """
    if not path.exists():
        return unused(first)
    number = np.zeros((), np.int32)
    try:
        like = (first, first, (number, number))
        kept, proposed, (kept_round, proposed_round) = as_tree(read_npz(path), like)
    except ValueError as error:
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    return Memory(kept, int(kept_round), proposed, int(proposed_round))


def store(path: Path, memory: Memory) -> None:
    """Writes a client's file, durably and at once.

    Raises:
      OSError: The disk refused; the old file stays.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "run" / "client-0.npz"
      >>> first = Kept({"w": np.zeros(2, np.float32)}, {})
      >>> store(path, unused(first)._replace(proposed_round=4))
      >>> load(path, first).proposed_round
      4
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept, kept_round, proposed, proposed_round = memory
    rounds = (np.int32(kept_round), np.int32(proposed_round))
    replace(path, zipped(as_arrays((kept, proposed, rounds))))
