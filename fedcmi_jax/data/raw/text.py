"""Text to token ids: cleaning, mojibake repair, a tokenizer without a vocabulary."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

HASH_BITS = 24
"""Token ids are hashes below 2**24, which float32 holds exactly. How many of them share
a row of an embedding is the encoder's business (its ``buckets``), not the data's."""

_URL = re.compile(r"https?://\S+")
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_REPAIRS = 3  # text can have been mangled twice; a third pass finds nothing to do


def clean(text: str) -> str:
    """A tweet as it was written, without what is not language.

    Repairs mojibake, drops a leading "RT ", URLs and the "#" of hashtags, and makes
    one space of every white space.

    Args:
      text: The tweet.

    Returns:
      The cleaned text, possibly empty.

    Example:
      >>> clean("RT @Cal_OES: We\u00e2\u20ac\u2122re capturing #fire info https://t.co/r")
      '@Cal_OES: We\u2019re capturing fire info'
    """
    text = repair_mojibake(text).removeprefix("RT ")
    return " ".join(_URL.sub("", text).replace("#", "").split())


def repair_mojibake(text: str) -> str:
    r"""Undoes UTF-8 that was read as another encoding, where it happened.

    Three accidents, all of them in CrisisMMD's tweets: UTF-8 read as Windows-1252
    ("â€™") or as Mac Roman ("‚Äô"), piece by piece, so sound characters beside them
    stay; and ``\u1f64f`` read as the four digits of ``\u1f64`` and an F, which makes a
    Greek letter and a hexadecimal digit of an emoji.

    Args:
      text: Any text.

    Returns:
      The text with these pieces replaced.

    Example:
      >>> repair_mojibake("M\u00c3\u00a9xico, \u201a\u00c4\u00f4 \u00b7\u03a9\u00a7F")
      'México, ’ 🙏'
    """
    for _ in range(_REPAIRS):
        repaired = _MOJIBAKE.sub(_decoded, text)
        if repaired == text:
            break
        text = repaired
    return _SPLIT_EMOJI.sub(lambda m: chr(int(f"{ord(m[1]):x}{m[2]}", 16)), text)


def tokenize(text: str) -> list[str]:
    """Words (an inner apostrophe included) and single symbols, in lower case.

    Args:
      text: Cleaned text.

    Returns:
      The tokens.

    Example:
      >>> tokenize("We've lost 2 houses!!")
      ["we've", 'lost', '2', 'houses', '!', '!']
    """
    return _TOKEN.findall(text.lower())


def token_id(token: str) -> int:
    """A token's id, in [1, 2**24): the same in every process and on every machine.

    Args:
      token: A token.

    Returns:
      1 + blake2b(token) mod (2**24 - 1); 0 is left for padding.

    Example:
      >>> token_id("fire") == token_id("fire") != token_id("flood")
      True
    """
    digest = hashlib.blake2b(token.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % ((1 << HASH_BITS) - 1)


def token_ids(tokenized: Sequence[Iterable[str]], length: int) -> np.ndarray:
    """Ids of tokenized texts, padded with 0 and cut to one length.

    Args:
      tokenized: n lists of tokens.
      length: T, tokens kept of each.

    Returns:
      [n, T] int32.

    Example:
      >>> (token_ids([["a", "b"], []], 3) > 0).tolist()
      [[True, True, False], [False, False, False]]
    """
    ids = np.zeros((len(tokenized), length), np.int32)
    for row, tokens in zip(ids, tokenized, strict=True):
        kept = [token_id(token) for token in tokens][:length]
        row[: len(kept)] = kept
    return ids


def _byte_table(encoding: str) -> dict[str, int]:
    """Character -> byte, for the bytes that UTF-8 uses beyond ASCII.

    Bytes that the encoding leaves undefined are read as the control character of the
    same number, as most programs do.
    """
    table = {}
    for byte in range(0x80, 0xF5):
        try:
            table[bytes([byte]).decode(encoding)] = byte
        except UnicodeDecodeError:
            table[chr(byte)] = byte
    return table


_TABLES = {name: _byte_table(name) for name in ("cp1252", "mac_roman")}
_NO_BREAK_SPACE = 0xA0  # its byte is often an ordinary space by the time text is shared


def _sequence(encoding: str, first: list[int], following: int, last: str = "") -> str:
    """Pattern of what becomes of a UTF-8 sequence.

    Args:
      encoding: What it was read as.
      first: Its possible first bytes.
      following: How many follow.
      last: Characters that may stand for the last one, too.

    Returns:
      A regular expression.
    """

    def one_of(known: Iterable[int], also: str = "") -> str:
        found = [c for c, byte in _TABLES[encoding].items() if byte in known]
        return f"[{''.join(map(re.escape, found))}{also}]"

    rest = range(0x80, 0xC0)
    return one_of(first) + one_of(rest) * (following - 1) + one_of(rest, last)


# Longest first: the tail of a long sequence can look like a short one. What Mac Roman
# makes of most first bytes are accented capitals, with which Windows-1252's accidents
# begin as well; the others make the punctuation and symbols of U+0000 to U+4FFF and
# U+F000 to U+FFFF and, of two bytes, the letters of Latin-1.
_PATTERNS = {
    "cp1252_4": _sequence("cp1252", [*range(0xF0, 0xF5)], 3),
    "cp1252_3": _sequence("cp1252", [*range(0xE0, 0xF0)], 2, " "),
    "mac_roman_4": _sequence("mac_roman", [*range(0xF0, 0xF5)], 3),
    "mac_roman_3": _sequence("mac_roman", [*range(0xE0, 0xE5), 0xEF], 2, " "),
    "cp1252_nbsp": _sequence("cp1252", [0xC2], 1, " "),
    "mac_roman_nbsp": _sequence("mac_roman", [0xC2], 1, " "),
    "cp1252_2": _sequence("cp1252", [*range(0xC3, 0xE0)], 1),
    "mac_roman_2": _sequence("mac_roman", [0xC3], 1),
}
_MOJIBAKE = re.compile("|".join(f"(?P<{k}>{v})" for k, v in _PATTERNS.items()))
_SPLIT_EMOJI = re.compile("([\u1f00-\u1faf])([0-9A-Fa-f])")


def _decoded(match: re.Match[str]) -> str:
    """The character behind a match, or the match where it is no UTF-8 after all."""
    table = _TABLES[(match.lastgroup or "").rpartition("_")[0]]
    data = bytes(table.get(c, _NO_BREAK_SPACE) for c in match[0])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return match[0]
