"""Limits on files from anywhere: what is opened, and how much memory it may take.

What a file asks for (a shape in a header, the size of an unpacked member) is compared with what it
may take before any of it is made.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from crashsim.errors import ArgumentError, FileError

VARIABLE = "CRASHSIM_FILE_LIMIT"
_MOST = 2 * 2**30  # bytes that the content of one file may take in memory, unasked
_SHARE = 4  # at most a quarter of the memory
_TEXT = 16  # bytes of objects that a byte of JSON may turn into
_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]iB|)", re.IGNORECASE)


def memory() -> int:
    """Bytes of this computer's memory, or of as much as this process may have (``ulimit -v``)."""
    try:
        import resource  # of POSIX alone
    except ImportError:
        return sys.maxsize
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total if allowed == resource.RLIM_INFINITY else min(total, allowed)


def most_bytes() -> int:
    """Bytes that the content of one file may take in memory.

    2 GiB, or a quarter of the memory where that is less; the environment variable
    ``CRASHSIM_FILE_LIMIT`` (``8GiB``, ``500MiB``, or a number of bytes) says otherwise.

    Raises:
        ArgumentError: the variable holds no size.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return min(_MOST, memory() // _SHARE)
    return read_size(VARIABLE, given)


def read_size(argument: str, given: str) -> int:
    """Bytes of a size in words: ``8GiB``, ``500MiB``, or a number of bytes.

    Raises:
        ArgumentError: it is none.
    """
    match = _SIZE.fullmatch(given.strip())
    if match is None:
        raise ArgumentError(f"{argument}={given!r}; give a size such as 8GiB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def check_size(subject: str, needed: int, remedy: str, *, allowed: int | None = None) -> None:
    """Raises FileError where a file asks for more memory than it may take.

    Args:
        subject: what asks, with the argument and the file's name: ``data='x.npz': inputs ...``.
        needed: bytes in memory.
        remedy: what else to do than to raise the limit.
        allowed: bytes; by default ``most_bytes()``.
    """
    most = most_bytes() if allowed is None else allowed
    if needed > most:
        raise FileError(
            f"{subject} would take {in_units(needed)} of memory, more than the {in_units(most)} "
            f"that a file may; {remedy}, or set {VARIABLE}={_next(needed)} if it is right"
        )


def in_units(size: int) -> str:
    """A number of bytes in words: ``1.5 GiB``."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}" if size < 2**70 else f"{size:.1e} bytes"
    return f"{size:,} bytes"


def _next(size: int) -> str:
    """The size in whole units, rounded up."""
    return f"{-(-size // 2**30)}GiB" if size >= 2**30 else f"{-(-size // 2**20)}MiB"


def size_on_disk(path: str | Path) -> int:
    """Bytes that a file really takes: one with holes takes less than its length."""
    found = os.stat(path)
    blocks: int | None = getattr(found, "st_blocks", None)
    return found.st_size if blocks is None else min(found.st_size, 512 * blocks)


def check_file(subject: str, path: str | Path, remedy: str) -> None:
    """Raises FileError unless the path is a regular file; folders, pipes and devices are not.

    Args:
        subject: what the file is, by the argument that names it.
        path: of the file; links are followed, for the path is the user's own word.
        remedy: what to give instead.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
        what = "it does not exist" if missing else _reason(error)
        raise FileError(f"{subject} cannot be read: {what}; {remedy}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{subject} cannot be read: it is {_kind(mode)}; {remedy}")


@contextmanager
def opened(subject: str, path: str | Path, remedy: str) -> Iterator[BinaryIO]:
    """Opens a regular file to read bytes from; raises FileError where it cannot."""
    check_file(subject, path, remedy)
    try:
        # Without waiting, should it have become a pipe in the meantime.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise FileError(f"{subject} cannot be read: {_reason(error)}; {remedy}") from error
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileError(f"{subject} cannot be read: it is not a file; {remedy}")
        yield file


def read_text(subject: str, path: str | Path, remedy: str) -> str:
    """Reads a file of JSON as text.

    Raises:
        FileError: it is not a file, cannot be read, or would take too much memory once parsed.
        UnicodeDecodeError: it is not text.
    """
    with opened(subject, path, remedy) as file:
        length = os.fstat(file.fileno()).st_size
        check_size(f"{subject}: {in_units(length)} of JSON", _TEXT * length, remedy)
        return file.read(length).decode("utf-8")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe, which can be read only once"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
