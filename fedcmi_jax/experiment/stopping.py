"""Requests to stop a run: SIGINT and SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop, and has saved a checkpoint of ``round``."""

    def __init__(self, signal_number: int, round: int, seed: int | None = None):
        """Keeps what the caller needs to report."""
        of = "" if seed is None else f" of seed {seed}"
        super().__init__(f"saved round {round}{of}")
        self.signal_number = signal_number
        self.round = round


@contextlib.contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one ends the process at once.

    Args:
      note: Receives a line for the user when one has come.

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
        for s in signals:  # Python's own would raise an exception somewhere
            is_own = before[s] is signal.default_int_handler
            signal.signal(s, signal.SIG_DFL if is_own else before[s])
        note("stopping after this round; once more to stop at once")

    before = {s: signal.signal(s, handle) for s in signals}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
