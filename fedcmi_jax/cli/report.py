"""``fedcmi report``: a page on runs and sweeps."""

from fedcmi_jax.cli.commands import Report
from fedcmi_jax.results.report import report


def run(options: Report) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: No folder is given, one is no run or sweep, or the output is taken.
    """
    if not options.folders:
        raise ValueError(f"report: takes {Report.takes}")
    page = report(
        options.folders,
        options.output,
        baseline=options.baseline,
        target=options.target,
    )
    print(f"written: {page}, with report.md, tables and figures beside it")
    return 0
