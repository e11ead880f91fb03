"""Zip files of others: what they would unpack to is looked at before they are read."""

import pathlib
import zipfile
import zlib

from fedcmi_jax.memory import GIB, check_fits

LARGEST_MEMBER, LARGEST_ALL = GIB // 4, GIB
"""Bytes of one file in an archive of measurements, and of all: HAPT, the largest that
is read, has 0.12 GiB in all.
"""

SMALL = GIB // 4
"""Bytes from which on an archive's ratio is looked at: less does no harm."""

LARGEST_RATIO = 100
"""Unpacked over packed bytes of arrays; deflated zeros have 1,030, images about 2."""

DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,  # bz2's
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What reading from an archive raises that is damaged, or packed in unknown ways."""


def members(path: pathlib.Path) -> list[zipfile.ZipInfo]:
    """What is in an archive; nothing is unpacked.

    The sizes there can be believed: zipfile never unpacks more than it was told.

    Raises:
      ValueError: It is no zip file, damaged, or a file in it is encrypted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); get the file again") from None
    for member in found:
        if member.flag_bits & 1:
            raise ValueError(f"{path}: {member.filename} is encrypted; unpack it first")
    return found


def check_sizes(path: pathlib.Path, found: list[zipfile.ZipInfo]) -> None:
    """Refuses an archive of measurements that unpacks to more than such have.

    Raises:
      ValueError: One file or all together are too large; has the size.
    """
    total = sum(member.file_size for member in found)
    largest = max(found, key=lambda member: member.file_size, default=None)
    if largest is not None and largest.file_size > LARGEST_MEMBER:
        raise ValueError(
            f"{path}: {largest.filename} unpacks to {largest.file_size / GIB:.3g} GiB, "
            f"at most {LARGEST_MEMBER / GIB:.3g} GiB are read; get the archive again"
        )
    if total > LARGEST_ALL:
        raise ValueError(
            f"{path}: unpacks to {total / GIB:.3g} GiB, at most "
            f"{LARGEST_ALL / GIB:.3g} GiB are read; get the archive again"
        )


def check_arrays(path: pathlib.Path, found: list[zipfile.ZipInfo]) -> None:
    """Refuses an .npz file that cannot be in memory, or is packed as no data are.

    Raises:
      ValueError: It unpacks to more than all memory, or to ``LARGEST_RATIO`` times its
        size; says what to do.
    """
    total = sum(member.file_size for member in found)
    check_fits(f"{path}: its arrays", total, "give a folder of .npy files")
    packed = path.stat().st_size
    if total > max(SMALL, LARGEST_RATIO * packed):
        raise ValueError(
            f"{path}: {packed / 1e6:.3g} MB that unpack to {total / GIB:.3g} GiB; if "
            "they are meant to, write them with np.savez, which does not pack"
        )
