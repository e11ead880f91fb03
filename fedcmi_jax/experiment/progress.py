"""Observers of a run's progress, and requests to stop it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Observer:
    """Receives the progress of a run; this base class ignores all of it."""

    def started(self, round: int, rounds: int) -> None:
        """Training starts, or goes on, after this round."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """A metrics line was written."""

    def note(self, text: str) -> None:
        """Something the user should read."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint of ``round``."""

    def __init__(self, signal_number: int, round: int, seed: int | None = None):
        """Keeps what the caller needs to report."""
        of = "" if seed is None else f" of seed {seed}"
        super().__init__(f"saved round {round}{of}")
        self.signal_number = signal_number
        self.round = round


@contextlib.contextmanager
def stop_requests(observer: Observer) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one ends the process at once.

    Yields:
      A list that holds the signal once one has come.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        for s in signals:
            signal.signal(s, signal.SIG_DFL)
        observer.note("stopping after this round; once more to stop at once")

    before = {s: signal.signal(s, handle) for s in signals}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
