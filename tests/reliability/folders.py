"""Ways to damage a run's folder, and the outcomes of going on with it."""

import contextlib
import json
import os
import pathlib
import shutil
import signal

GOOD = ("as if nothing had happened", "repaired, with a note", "refused in one line")
BAD = ("traceback", "hang", "lost", "accepted nonsense")

PATIENCE = 60
"""Seconds until a resume counts as hanging; it takes one or two."""


def _content(change):
    """A damage to a file's bytes."""

    def damage(path):
        path.write_bytes(change(path.read_bytes()))

    return damage


def _flipped(share):
    """Flips the bit 1 of one byte: digits become others, and letters too."""

    def flip(content):
        if not content:
            return b"\1"
        place = min(int(share * len(content)), len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


def _instead(make):
    """Something else in the file's place."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def _other_types(path):
    """The JSON of a file with a text for every number and a list for every table."""

    def other(value):
        if isinstance(value, dict):
            return {k: other(v) for k, v in value.items()}
        return [value] if isinstance(value, str) else "text"

    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        with contextlib.suppress(ValueError):
            path.write_text(json.dumps(other(json.loads(path.read_bytes()))))
        return
    path.write_text("".join(json.dumps(other(line)) + "\n" for line in lines))


DAMAGES = {
    "emptied": _content(lambda content: b""),
    "halved": _content(lambda content: content[: len(content) // 2]),
    **{f"bit flipped at {share}": _content(_flipped(share)) for share in (0.2, 0.5, 1)},
    "with a text behind it": _content(lambda content: content + b"more\n"),
    "removed": os.unlink,
    "a folder": _instead(os.mkdir),
    "a text": _content(lambda content: b"a shopping list\nof two lines\n"),
    "a list": _content(lambda content: b'[1, {"two": 3}]\n'),
    "other types": _other_types,
    "a pipe": _instead(os.mkfifo),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
}


class Late(BaseException):
    """A resume takes too long; no ``except`` of its own takes this for damage."""


def contents(folder):
    """Relative path -> content of every ordinary file below a folder."""
    found = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def outcome(resume, folder, is_right, capsys):
    """What comes of going on with a damaged run.

    Args:
      resume: Goes on with the folder's run; its exit code.
      folder: The damaged folder.
      is_right: Of a folder, and whether a note was printed: whether the run has the
        reference's results.
      capsys: pytest's.
    """
    before = contents(folder)
    capsys.readouterr()

    def late(*_):
        raise Late

    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        code = resume(folder)
        errors = capsys.readouterr().err.splitlines()
        correct = code != 0 or is_right(folder, bool(errors))
    except Late:
        return "hang", ""
    except BaseException as error:
        return "traceback", repr(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    if not correct:
        return "accepted nonsense", ""
    if code == 0:
        return (GOOD[1], errors[0]) if errors else (GOOD[0], "")
    if code not in (1, 2) or len(errors) != 1 or str(folder) not in errors[0]:
        return "traceback", "\n".join(errors)
    if contents(folder).items() < before.items():
        return "lost", errors[0]
    return GOOD[2], errors[0]


def copied(source, target):
    """A copy of a folder, with links and all."""
    return pathlib.Path(shutil.copytree(source, target, symlinks=True))
