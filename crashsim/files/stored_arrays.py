"""Arrays in files: ``.npy``, members of ``.npz``, idx. Headers first, then only the rows asked for.

No array of Python objects is ever read: those are pickles, which run code.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from crashsim.errors import CrashsimError, FileError
from crashsim.files.limits import check_size, opened

_HEADER = 10_000  # bytes of a numpy header: as many as numpy itself accepts
_CHUNK = 2**20  # bytes read at a time
_CONTENTS = 64 * _CHUNK  # of an archive's table of contents
_MEMBERS = 10_000  # of an .npz archive
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that numpy writes
_UNSIGNED_BYTES = 8  # of an idx file
_FEWER = "give fewer rows (--limit) or a smaller file"


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: its header has been read, its numbers have not.

    Attributes:
        name: what errors call it.
        shape: as the header says.
        dtype: of what is stored.
        is_fortran: the first axis varies fastest.
        stream: opens the file where the numbers begin.
        is_packed: to skip numbers takes as long as to read them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    stream: Callable[[], IO[bytes]]
    is_packed: bool

    def first(self, count: int | None, kept: np.dtype[Any]) -> NDArray[Any]:
        """The first rows, converted. Numbers beyond those of the new type become infinite.

        Args:
            count: of rows; None for all.
            kept: their new type.

        Raises:
            FileError: they would take too much memory.
            ValueError, OSError, EOFError, zlib.error: the file is damaged.
        """
        rows = self.shape[0] if count is None else min(count, self.shape[0])
        wanted = (rows, *self.shape[1:])
        what = f"{self.name} of shape {wanted}"
        check_size(what, math.prod(wanted) * kept.itemsize, _FEWER)
        with self.stream() as stream:
            if rows == self.shape[0]:
                found = self._all(stream, kept)
            elif self.is_fortran and len(wanted) > 1:
                if self.is_packed:
                    stored = math.prod(self.shape) * self.dtype.itemsize
                    check_size(
                        f"{what}, packed column by column, of which the first rows cannot be read "
                        "alone,",
                        stored,
                        "store it row by row",
                    )
                found = self._columns(stream, rows, kept)
            else:
                found = np.empty(wanted, kept)
                self._fill(stream, found.reshape(-1))
        return np.ascontiguousarray(found)

    def _all(self, stream: IO[bytes], kept: np.dtype[Any]) -> NDArray[Any]:
        found: NDArray[Any] = np.empty(math.prod(self.shape), kept)
        self._fill(stream, found)
        if stream.read(1):  # at the end, archives also compare their checksums
            raise ValueError("more numbers than its header says")
        return found.reshape(self.shape, order="F" if self.is_fortran else "C")

    def _columns(self, stream: IO[bytes], rows: int, kept: np.dtype[Any]) -> NDArray[Any]:
        """The first rows of an array whose first axis varies fastest."""
        turned = np.empty((math.prod(self.shape[1:]), rows), kept)
        skipped = (self.shape[0] - rows) * self.dtype.itemsize
        for column in turned:
            self._fill(stream, column)
            stream.seek(skipped, os.SEEK_CUR)
        return turned.T.reshape((rows, *self.shape[1:]), order="F")

    def _fill(self, stream: IO[bytes], target: NDArray[Any]) -> None:
        """Reads as many numbers as the flat target holds."""
        size = self.dtype.itemsize
        step = max(1, _CHUNK // size)
        with np.errstate(over="ignore"):
            for start in range(0, len(target), step):
                part = target[start : start + step]
                part[...] = np.frombuffer(exactly(stream, len(part) * size), self.dtype)


@contextmanager
def numpy_arrays(spec: str) -> Iterator[StoredArray | dict[str, StoredArray]]:
    """The array of a ``.npy`` file, or those of an ``.npz`` file by name.

    Raises:
        FileError: it is not a file, is damaged (also where that shows while it is used), or asks
            for too much memory.
    """
    remedy = "give one of plain numbers, as numpy.save or numpy.savez writes it"
    try:
        with ExitStack() as stack:
            file = stack.enter_context(opened(f"data={spec!r}", spec, remedy))
            start = file.read(4)
            file.seek(0)
            if start.startswith(b"PK"):
                archive = stack.enter_context(zipfile.ZipFile(_InPieces(file)))
                yield _members(spec, archive)
            else:
                length = os.fstat(file.fileno()).st_size
                yield _array(f"data={spec!r}", lambda: _again(spec), length, is_packed=False)
    except CrashsimError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise FileError(
            f"data={spec!r}: cannot be read as a numpy file ({reason}); {remedy}"
        ) from error


def idx_array(path: Path) -> StoredArray:
    """The array of an idx file of unsigned bytes, gzipped or not.

    The format: two zero bytes, type 8, number of axes, their sizes (big-endian), the bytes.

    Raises:
        FileError: it is not a file.
        ValueError, OSError, EOFError, zlib.error, struct.error: it is damaged.
    """
    remedy = "download it again"
    with opened(f"data: {str(path)!r}", path, remedy) as raw:
        length = os.fstat(raw.fileno()).st_size
        packed = path.suffix == ".gz"
        with _unpacked(raw) if packed else raw as stream:
            zero, kind, axes = struct.unpack(">HBB", exactly(stream, 4))
            if zero != 0 or kind != _UNSIGNED_BYTES:
                raise ValueError("no idx file of unsigned bytes")
            shape = struct.unpack(f">{axes}I", exactly(stream, 4 * axes))
    begin = 4 + 4 * axes
    if not packed and begin + math.prod(shape) != length:
        raise ValueError(f"{length} bytes long, which its shape {shape} does not give")

    def numbers() -> IO[bytes]:
        stream = _unpacked(path) if packed else _again(path)
        stream.seek(begin)
        return stream

    name = f"data: {path.name}"
    return StoredArray(name, shape, np.dtype(np.uint8), False, numbers, packed)


def exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes. Raises EOFError where the stream ends before."""
    found = stream.read(count)
    while 0 < len(found) < count:
        more = stream.read(count - len(found))
        if not more:
            break
        found += more
    if len(found) < count:
        raise EOFError("the file ends before its numbers do")
    return found


class _InPieces(io.RawIOBase):
    """A file that is read piece by piece, 64 MiB at once at most.

    A damaged archive may ask for any length of its table of contents.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and 0 <= size <= _CHUNK:
            return self._file.read(size)
        most = sys.maxsize if size is None or size < 0 else size
        found = bytearray()
        while piece := self._file.read(min(_CHUNK, most - len(found))):
            found += piece
            if len(found) > _CONTENTS:
                raise ValueError("a table of contents of more than 64 MiB")
        return bytes(found)


def _again(path: str | Path) -> IO[bytes]:
    return open(path, "rb")


def _unpacked(file: Path | IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file))


def _members(spec: str, archive: zipfile.ZipFile) -> dict[str, StoredArray]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > _MEMBERS:
        raise ValueError(f"{len(infos):,} members, more than {_MEMBERS:,}")
    found: dict[str, StoredArray] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{name!r} is in it twice")
        if info.compress_type not in _METHODS:
            raise ValueError(f"{name!r} is packed in a way that numpy does not use")

        def begin(info: zipfile.ZipInfo = info) -> IO[bytes]:
            return archive.open(info)

        packed = info.compress_type != zipfile.ZIP_STORED
        try:
            found[name] = _array(
                f"data={spec!r}: {name!r}", begin, info.file_size, is_packed=packed
            )
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return found


def _array(
    name: str, begin: Callable[[], IO[bytes]], length: int, *, is_packed: bool
) -> StoredArray:
    """The array at the beginning of a stream of ``length`` bytes."""
    with begin() as stream:
        shape, is_fortran, dtype, header = _header(stream)
    if header + math.prod(shape) * dtype.itemsize != length and not dtype.hasobject:
        raise ValueError(f"{length:,} bytes, which its shape {shape} of {dtype} does not give")

    def numbers() -> IO[bytes]:
        stream = begin()
        exactly(stream, header)
        return stream

    return StoredArray(name, shape, dtype, is_fortran, numbers, is_packed)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type, and where the numbers begin."""
    magic = exactly(stream, 8)
    major, minor = np.lib.format.read_magic(io.BytesIO(magic))  # type: ignore[no-untyped-call]
    if (major, minor) not in ((1, 0), (2, 0)):
        raise ValueError(f"version {major}.{minor} of numpy's format")
    length = exactly(stream, 2 if major == 1 else 4)
    size = int.from_bytes(length, "little")
    if size > _HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    text = io.BytesIO(length + exactly(stream, size))
    read: Any = getattr(np.lib.format, f"read_array_header_{major}_0")
    shape, is_fortran, dtype = read(text)
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape of {shape}")
    return tuple(int(n) for n in shape), is_fortran, dtype, len(magic) + len(length) + size
