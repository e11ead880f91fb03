"""The user's folders, as the environment has them; where it says too little, one line.

Containers run programs as users without a home, and a cache folder that is relative
would be another one in every working directory: whoever prepared that directory would
choose which compiled programs are run.
"""

import os
import pathlib


def cache_home() -> pathlib.Path | None:
    """The folder of caches: $XDG_CACHE_HOME, else ``.cache`` in the home folder.

    Returns:
      An absolute path, which need not exist; None: this user has no home folder.

    Raises:
      ValueError: $XDG_CACHE_HOME is no absolute path.

    Example:
      >>> found = cache_home()
      >>> found is None or found.is_absolute()
      True
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given and not os.path.isabs(given):
        raise ValueError(
            f"XDG_CACHE_HOME: {given!r} is no absolute path; give one, or unset it"
        )
    if given:
        return pathlib.Path(given)
    home = os.path.expanduser("~")
    return pathlib.Path(home) / ".cache" if os.path.isabs(home) else None


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path with its ``~`` replaced.

    Raises:
      ValueError: There is no such user, or this one has no home folder.

    Example:
      >>> str(expanded("/data/own"))
      '/data/own'
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{os.fspath(path)}: no home folder is known for '~'; give the whole path"
        ) from None
