"""Who took part in every round: clients.jsonl, written beside the metrics log.

Off by default (``Config.log_clients``). The first line, of round 0, has n_i of all
clients; then there is a line per round with the ids of its cohort. One client is
7 bytes at most where there are up to a million: a round of K = 100,000 clients among
100,000 takes 0.6 MB, 1,000 such rounds 0.6 GB; ``all`` adds 0.8 MB of losses, and as
much per evaluated round. Nothing is kept in memory or copied into checkpoints.

A call's lines are on the disk before its checkpoint, so a run that goes on cuts the
file behind the round of its checkpoint, and ends with the bytes of one that was never
interrupted.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedcmi_jax.experiment.files import plain, replace, set_aside, sync
from fedcmi_jax.types import RoundInfo

DECIMALS = 4
"""Of clients' accuracies, a hundredth of a per cent, and of their losses."""

_HEAD = re.compile(rb'\{"round":(\d+),')


class ClientLog:
    r"""The file of a run.

    Args:
      path: Its place; it need not exist.
      sizes: [N] int, the clients' numbers of training samples.
      losses: Whether lines have every client's training loss.

    Example:
      >>> import tempfile
      >>> log = ClientLog(Path(tempfile.mkdtemp()) / "clients.jsonl", np.array([8, 4]))
      >>> log.start(0)
      ''
      >>> log.path.read_text()
      '{"round":0,"examples":[8,4]}\n'
    """

    def __init__(self, path: Path, sizes: np.ndarray, losses: bool = False):
        self.path = path
        self.sizes = sizes
        self.losses = losses

    def start(self, round: int) -> str:
        """Makes the file what it was after a round.

        Args:
          round: Of the checkpoint from which the run goes on; 0: it starts.

        Returns:
          A line for the user if the file was not that of this run, else "".
        """
        end = self._end_of(round)
        note = ""
        if end is None:
            if self.path.exists():
                aside = set_aside(self.path)
                note = (
                    f"{self.path} is damaged, or lacks round {round}; what "
                    f"was there is {aside}, rounds before are not written again"
                )
            replace(self.path, _line({"round": 0, "examples": self.sizes}))
        elif end < self.path.stat().st_size:
            os.truncate(self.path, end)
            sync(self.path)
        return note

    def append(
        self, rounds: range, infos: RoundInfo, accuracies: np.ndarray | None = None
    ) -> None:
        """Adds the lines of a call; on return they are on the disk.

        Args:
          rounds: Their numbers.
          infos: On the host, stacked.
          accuracies: [N] in [0, 1] for the last line, as ``accuracy``, rounded to
            ``DECIMALS``; null where not finite.
        """
        n, lines = len(self.sizes), []
        for i, round in enumerate(rounds):
            cohort, accepted = infos.cohort[i], infos.accepted[i]
            real = cohort < n  # others pad
            fields = {"round": round, "cohort": cohort[real]}
            lost = np.zeros_like(real)
            if infos.systems:
                lost = real & ~np.asarray(infos.systems.returned)[i]
                fields["lost"] = cohort[lost]
            if not (accepted | lost)[real].all():
                fields["rejected"] = cohort[real & ~accepted & ~lost]
            if self.losses:
                fields["loss"] = _rounded(np.asarray(infos.client_loss)[i][real])
            if round == rounds[-1] and accuracies is not None:
                fields["accuracy"] = _rounded(accuracies)
            lines.append(_line(fields))
        with open(self.path, "ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def _end_of(self, round: int) -> int | None:
        """Bytes up to the end of a round's line; None: it, or one before, is not."""
        if not self.path.exists():
            return None
        before, end = -1, 0
        with open(self.path, "rb") as file:
            for line in file:
                head = _HEAD.match(line)
                whole = line.endswith(b"}\n")
                if head is None or not whole or int(head[1]) <= before:
                    return None
                before, end = int(head[1]), end + len(line)
                if before == round:
                    return end
        return None


def read_clients(path: Path) -> list[dict[str, Any]]:
    """The finished lines; a killed process may have left half a line.

    Raises:
      ValueError: There is no such file.

    Example:
      >>> read_clients(Path("no/clients.jsonl"))
      Traceback (most recent call last):
      ValueError: no/clients.jsonl: no such file; train with log_clients = cohort or all
    """
    if not path.exists():
        raise ValueError(
            f"{path}: no such file; train with log_clients = cohort or all"
        )
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _rounded(values: np.ndarray) -> np.ndarray:
    # In float64, or the digits that were rounded off come back.
    return np.asarray(values, np.float64).round(DECIMALS)


def _line(fields: dict[str, Any]) -> bytes:
    text = json.dumps(plain(fields, True), separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"
