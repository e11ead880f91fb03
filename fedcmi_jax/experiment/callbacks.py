"""Callbacks: what follows a run, and may end it."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.stopping import Interrupted
from fedcmi_jax.types import FederationState, RoundInfo

Ending = Literal["finished", "stopped", "interrupted", "failed"]
"""How a run ends: after its last round; early, by validation or by a callback; by a
signal; with an error, such as divergence. The last two can be resumed."""


class Begun(NamedTuple):
    """What a callback is told first.

    Attributes:
      config: The run's configuration.
      folder: Its folder; None: nothing is written.
      round: Rounds done before; above 0: the run goes on.
    """

    config: Config
    folder: pathlib.Path | None
    round: int


class Callback:
    """Follows a run. This base class does nothing: override what is of interest.

    Rounds are numbered from 1. Where a callback has ``round_start`` or ``round_end``, a
    compiled call holds one round, else several (``Config.rounds_per_call``); results
    are the same to the bit. In the order in which they are called:

    - ``started`` once, then for every round
    - ``round_start``
    - ``round_end``, which may end the run
    - ``evaluated`` if the round is, which may end the run
    - ``saved`` if a checkpoint is written (never without a folder)
    - ``ended`` once, also after an error.

    An exception in a hook ends the run after the round, with its checkpoint saved, as
    ``CallbackError``. Of several seeds, each is a run of its own.

    Example:
      >>> import fedcmi_jax as fc
      >>> class StopAt(fc.Callback):
      ...     def evaluated(self, record):
      ...         return record["acc"] > 0.9
    """

    def started(self, begun: Begun) -> None:
        """Training starts or goes on."""

    def round_start(self, round: int) -> None:
        """A round is about to run."""

    def round_end(
        self, round: int, info: RoundInfo, state: FederationState
    ) -> bool | None:
        """A round has run, and was not evaluated yet.

        Args:
          round: Its number.
          info: Its cohort, accepted clients, training metrics, as host arrays.
          state: After it, on the device; of mapped seeds [S, ...]. The next round
            takes its buffers: copy what is to be kept, ``jax.device_get``.

        Returns:
          True: evaluate this round and end the run with it.
        """

    def evaluated(self, record: dict[str, Any]) -> bool | None:
        """A round was evaluated.

        Args:
          record: Its metrics line, as in metrics.jsonl; not to be changed.

        Returns:
          True: end the run with this round.
        """

    def saved(self, round: int) -> None:
        """The checkpoint of a round was written."""

    def ended(self, round: int, how: Ending) -> None:
        """The run is over, or cannot go on now.

        Args:
          round: Rounds done.
          how: Why it ended.
        """

    def note(self, text: str) -> None:
        """Something the user should read."""


class CallbackError(Exception):
    """A callback failed; its own exception is the cause."""


class Callbacks:
    """Several callbacks as one. After a hook that fails only ``ended`` is called.

    Args:
      callbacks: In the order in which they are called.

    Attributes:
      round: Rounds done.
      wants_stop: Whether one has asked to end the run.
      failure: What failed; None: nothing.

    Raises:
      ValueError: They are no list, or one is no ``Callback``.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()):
        if not isinstance(callbacks, Iterable):
            raise ValueError(f"callbacks: {callbacks!r} is no list; give [callback]")
        for one in callbacks:
            if not isinstance(one, Callback):
                raise ValueError(
                    f"callbacks: {one!r} is no fedcmi_jax.Callback; give a list of "
                    "objects of classes derived from it"
                )
        self._all = tuple(callbacks)
        self.round = 0
        self.wants_stop = False
        self.failure: CallbackError | None = None

    @property
    def wants_rounds(self) -> bool:
        """Whether one looks at single rounds."""
        return any(
            getattr(type(one), hook) is not getattr(Callback, hook)
            for one in self._all
            for hook in ("round_start", "round_end")
        )

    @contextlib.contextmanager
    def run(self, begun: Begun) -> Iterator[None]:
        """Tells of the start, and of an end by an exception.

        Raises:
          CallbackError: A callback failed to start.
        """
        self.round, self.wants_stop, self.failure = begun.round, False, None
        try:
            self._tell("started", begun)
            self.check("")
            yield
        except BaseException as error:
            was_asked = isinstance(error, Interrupted)
            self._end("interrupted" if was_asked else "failed")
            raise

    def round_start(self, round: int) -> None:
        """See ``Callback``."""
        self._tell("round_start", round)

    def round_end(self, round: int, info: RoundInfo, state: FederationState) -> None:
        """See ``Callback``."""
        self._tell("round_end", round, info, state)

    def evaluated(self, record: dict[str, Any]) -> None:
        """See ``Callback``."""
        self._tell("evaluated", record)

    def saved(self, round: int) -> None:
        """See ``Callback``."""
        self._tell("saved", round)

    def note(self, text: str) -> None:
        """See ``Callback``."""
        self._tell("note", text)

    def finished(self, stopped: bool) -> None:
        """Tells of the regular end.

        Raises:
          CallbackError: A callback failed now or after the last checkpoint.
        """
        self._end("stopped" if stopped else "finished")
        self.check("the run is complete")

    def check(self, where: str) -> None:
        """Raises the failure, if there is one.

        Args:
          where: What became of the run, for the message.
        """
        if self.failure is not None:
            message = f"{self.failure}; {where}" if where else str(self.failure)
            raise CallbackError(message) from self.failure.__cause__

    def _end(self, how: Ending) -> None:
        for one in self._all:  # also those that failed: they may have files to close
            self._call(one, "ended", self.round, how)

    def _tell(self, hook: str, *args: Any) -> None:
        for one in self._all:
            if self.failure is None:
                self.wants_stop |= bool(self._call(one, hook, *args))

    def _call(self, one: Callback, hook: str, *args: Any) -> Any:
        try:
            return getattr(one, hook)(*args)
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            where = f"{type(one).__name__}.{hook}, {self.round} rounds done"
            failure = CallbackError(f"callback {where}: {what}")
            failure.__cause__ = error
            self.failure = self.failure or failure
