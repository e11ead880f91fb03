"""Raw files of a builder: taken from a folder or downloaded, checked by sha256."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tensorflow_datasets.core.download import checksums, download_manager, util


def url_info(size: int, sha256: str, filename: str) -> checksums.UrlInfo:
    """A row of a builder's checksum table.

    Args:
      size: Bytes.
      sha256: Hexadecimal digest.
      filename: Name by which a file got by hand is known.

    Returns:
      The record that TFDS checks a download against.
    """
    return checksums.UrlInfo(
        size=checksums.utils.Size(size), checksum=sha256, filename=filename
    )


def fetch(
    dl_manager: Any, url_infos: Mapping[str, checksums.UrlInfo]
) -> dict[str, pathlib.Path]:
    """Files of a checksum table, from the manual folder or else by download.

    Args:
      dl_manager: TFDS's download manager.
      url_infos: URL -> size, sha256 and file name.

    Returns:
      File name -> path of the checked file.

    Raises:
      ValueError: A file cannot be downloaded or has a wrong checksum.
    """
    files = {}
    for url, expected in url_infos.items():
        manual = find_manual(dl_manager, expected.filename)
        if manual is not None:
            _check_manual(manual, url, expected)
            files[expected.filename] = manual
    for url, expected in url_infos.items():
        if expected.filename not in files:
            files[expected.filename] = _download(dl_manager, url, expected)
    return files


def find_manual(dl_manager: Any, name: str) -> pathlib.Path | None:
    """A file or folder of that name in the manual folder or one folder below.

    Args:
      dl_manager: TFDS's download manager.
      name: Name to look for.

    Returns:
      Its path, or None.
    """
    try:
        folder = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # there is no such folder, or nothing in it
        return None
    candidates = [folder / name, *sorted(folder.glob(f"*/{name}"))]
    return next((path for path in candidates if path.exists()), None)


def _check_manual(path: pathlib.Path, url: str, expected: checksums.UrlInfo) -> None:
    found = checksums.compute_url_info(path)
    if found != expected:
        raise ValueError(
            f"{path}: sha256 {found.checksum}, expected {expected.checksum}; replace "
            f"it by {url}, or delete it to have it downloaded"
        )


def _download(dl_manager: Any, url: str, expected: checksums.UrlInfo) -> pathlib.Path:
    try:
        return pathlib.Path(dl_manager.download(url))
    except download_manager.NonMatchingChecksumError as error:
        digests = re.findall(r"checksum='(\w+)'", str(error))
        found = next((d for d in digests if d != expected.checksum), "unknown")
        raise ValueError(
            f"{url}: sha256 {found}, expected {expected.checksum}; download it again, "
            f"or get the original elsewhere and give its folder as manual_dir"
        ) from None
    except util.DownloadError as error:
        reason = " ".join(str(error).split())
    except OSError as error:
        if error.errno is not None:
            raise  # of the disk; those of the network have no number
        reason = type(error).__name__
    raise ValueError(
        f"{url}: cannot be downloaded ({reason}); get {expected.filename} by other "
        "means and give its folder as manual_dir"
    )
