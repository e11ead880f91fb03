"""Lines for a person, who may stop reading them."""

import os
import sys
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Prints lines; where nobody reads them any more, work goes on without.

    Args:
      text: The lines.
      file: Where to; None: standard output.

    Example:
      >>> say("round 1")
      round 1
    """
    file = sys.stdout if file is None else file
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        discard(file)


def discard(file: TextIO) -> None:
    """Sends what is still printed nowhere: the interpreter flushes when it ends.

    Args:
      file: A file with a descriptor whose reader is gone.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
