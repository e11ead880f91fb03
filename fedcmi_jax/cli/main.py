"""The ``fedcmi`` command: train, resume, evaluate, predict, export, sweep and others.

Exit codes: 0 done, 1 the training diverged or a check of doctor fails, 2 a user's
mistake (one line on standard error, nothing written), 130 / 143 stopped by SIGINT /
SIGTERM with everything saved.
"""

import os
import sys
from collections.abc import Sequence

import fedcmi_jax
from fedcmi_jax import backend
from fedcmi_jax.cli.parser import parse


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
        return command.run()
    except SystemExit as stop:  # the parser's, which has printed help
        return int(stop.code or 0)
    except ValueError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        # Whoever reads us has gone; leave nothing for the interpreter to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}", 1)
    except KeyboardInterrupt:
        return 130
    except _diverged() as error:
        return _fail(str(error), 1)


def _diverged() -> type[Exception]:
    # Imported where something failed only, for it takes Orbax along.
    from fedcmi_jax.experiment.loop import DivergedError

    return DivergedError


def _fail(message: str, code: int) -> int:
    print(f"fedcmi: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
