"""SIGINT and SIGTERM: outside training they end the command at once, with one line.

Training itself has another answer, ``stopping.stop_requests``: it saves first. Python
runs a signal's handler only between two of its own instructions, so neither an import
nor a compilation would be left for minutes, and an exception raised there may be
swallowed. Here a thread is woken by the signal itself.
"""

import os
import signal
import threading
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a command to stop."""


def install() -> None:
    """Ends this process at the signals; for a command's first line.

    Files are written beside their place and renamed, so nothing is left half-written.
    While another handler is in place, which saves what it has, the first signal is
    that handler's, and the next one ends the process.
    """
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    threading.Thread(target=_watch, args=(wakes,), daemon=True).start()
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in STOPPING:
        signal.signal(number, _watched)


def _watched(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the thread to be woken; the thread does the rest."""
    del number, frame


def _watch(wakes: int) -> None:
    asked = 0
    while received := os.read(wakes, 1):
        number = received[0]
        if number not in STOPPING:
            continue
        asked += 1
        if asked > 1 or signal.getsignal(number) is _watched:
            name = signal.Signals(number).name
            os.write(2, f"fedcmi: stopped by {name}\n".encode())
            os._exit(128 + number)
