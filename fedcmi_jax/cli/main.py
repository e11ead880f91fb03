"""The ``fedcmi`` command: train, resume, evaluate, predict, export, sweep and others.

Exit codes: 0 done, 1 the training diverged, a logger or a check of doctor failed, 2 a
user's mistake (one line on standard error, nothing written), 130 / 143 stopped by
SIGINT / SIGTERM with everything saved.
"""

import errno
import sys
from collections.abc import Sequence

import fedcmi_jax
from fedcmi_jax import backend
from fedcmi_jax.cli.parser import parse
from fedcmi_jax.experiment.output import discard


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: Arguments without the program's name; None: those of the process.

    Returns:
      The exit code.

    Example:
      >>> main(["train", "no-such-preset"])
      2
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(fedcmi_jax.__version__)
        return 0
    try:
        command = parse(args)
        backend.guard()
        code = command.run()
        sys.stdout.flush()  # here, where a full disk is still an error in one line
        return code
    except SystemExit as stop:  # the parser's, which has printed help
        return int(stop.code or 0)
    except ValueError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # whoever read a list or a table has seen enough
        discard(sys.stdout)
        return 0
    except OSError as error:
        return _fail(_refusal(error), 1)
    except KeyboardInterrupt:
        return 130
    except _failed() as error:
        return _fail(str(error), 1)


def _failed() -> tuple[type[Exception], ...]:
    # Imported where something failed only, for it takes Orbax along.
    from fedcmi_jax.experiment.callbacks import CallbackError
    from fedcmi_jax.experiment.loop import DivergedError

    return DivergedError, CallbackError


def _refusal(error: OSError) -> str:
    """What the operating system refused, and of which file."""
    if error.filename is None and error.errno == errno.ENOSPC:
        discard(sys.stdout)  # what is left in its buffer would fail again at the end
        return f"{error.strerror}: standard output"  # files have their names
    return f"{error.strerror}: {error.filename}" if error.filename else str(error)


def _fail(message: str, code: int) -> int:
    print(f"fedcmi: error: {' '.join(message.split())}", file=sys.stderr)
    return code
