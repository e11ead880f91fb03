"""Decoding many samples, in this process or several, with a word about the progress."""

import collections
import functools
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

Log = Callable[[str], None]
"""Receives a line of progress."""

_AHEAD = 4  # decoded samples per process that may wait for the reader
_SAY_SECONDS = 10.0  # between two lines


class Item(NamedTuple):
    """One sample that is still to be decoded.

    Attributes:
      sources: Its files.
      where: The place that lists it, "train.csv, row 12", for messages.
      values: What else its decoding depends on, as start and end.
    """

    sources: tuple[pathlib.Path, ...]
    where: str
    values: tuple[float, ...] = ()


Decode = Callable[[Item], dict[str, np.ndarray]]


def silent(text: str) -> None:
    """Says nothing."""
    del text


def decoded(
    name: str, items: Sequence[Item], decode: Decode, workers: int, log: Log
) -> Generator[dict[str, np.ndarray], None, None]:
    """The decoded samples in order, as few in memory as keep the processes busy.

    Args:
      name: What is decoded, for the progress.
      items: n samples.
      decode: Item -> {modality: array}; a module's function or a partial of one.
      workers: Processes that decode; 1: this one.
      log: Receives progress, now and then and at the end.

    Yields:
      Modality -> array.

    Raises:
      ValueError: A sample cannot be decoded (names file and row), or a process died.
    """
    begun = last = time.monotonic()
    for done, row in enumerate(_ahead(decode, items, workers), 1):
        yield row
        now = time.monotonic()
        if done == len(items) or now - last > _SAY_SECONDS:
            last = now
            rate = done / max(now - begun, 1e-9)
            log(f"{name}: {done:,} of {len(items):,} samples, {rate:.1f} per second")


def _decode_one(decode: Decode, item: Item) -> dict[str, np.ndarray]:
    try:
        return decode(item)
    except ValueError as error:
        raise ValueError(f"{item.where}: {error}") from None
    except OSError as error:
        raise ValueError(
            f"{item.where}: {error.filename}: {error.strerror}; replace the file"
        ) from None


def _ahead(
    decode: Decode, items: Sequence[Item], workers: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """The decoded samples in order, a bounded number of them ahead of the reader."""
    if workers == 1:
        yield from map(functools.partial(_decode_one, decode), items)
        return
    # Not fork: JAX has threads, and a forked child could wait for ever for their locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    waiting: collections.deque[Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(_decode_one, decode, item))
            if len(waiting) == _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            f"workers={workers}: a decoding process died (out of memory, or a script "
            "without `if __name__ == '__main__':`); use fewer, or 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
