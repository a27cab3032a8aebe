"""NIR files as data: what is in an HDF5 file, before anything of it is read.

HDF5 can take a part of a file from any other file (external links, external raw storage, virtual
data sets), name a group within itself, and declare more numbers than it holds. `nir.read` follows
all of it. Here every object is looked at first, and what is not plainly in the file is refused.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crashsim_hardware.errors import HardwareError

__all__ = ["MOST_BYTES", "check_nir_file", "check_room"]

MOST_BYTES = 2**31
"""What the numbers of a chip may take in memory, unless said otherwise."""

_COPIES = 4  # of each number that a chip is made of, as float64
_DEEPEST = 32  # groups in groups
_OBJECTS = 100_000
_TEXTS = 100_000  # strings in one data set
_SMALL = 2**20  # bytes that a data set may leave to its fill value
# What HDF5 and h5py bring along, in this order; all others may be plug-ins.
_SHUFFLE, _DEFLATE, _LZF, _CHECKSUM = 2, 1, 32000, 3
_PIPELINES = {
    (*shuffle, *packing, *checksum)
    for shuffle in ((), (_SHUFFLE,))
    for packing in ((), (_DEFLATE,), (_LZF,))
    for checksum in ((), (_CHECKSUM,))
}


def check_nir_file(path: str | Path, most_bytes: int = MOST_BYTES) -> None:
    """Raises HardwareError, naming the object, unless all of an HDF5 file is data within it.

    Parameters
    ----------
    path: of a file.
    most_bytes: what the chip may take in memory.
    """
    import h5py

    if not os.path.isfile(path):
        raise HardwareError(f"{str(path)!r} is no file")
    try:
        with h5py.File(path, "r") as file:
            _Contents(h5py, most_bytes, os.path.getsize(path)).group(file.id, "", 0)
    except HardwareError:
        raise
    except Exception as error:  # a damaged file fails in many ways inside HDF5
        raise HardwareError(f"is no readable HDF5 file ({error})") from error


def check_room(what: str, numbers: int, most_bytes: int) -> None:
    """Raises HardwareError where this many numbers, as float64, would take too much memory."""
    if 8 * numbers > most_bytes:
        raise HardwareError(
            f"{what} would take {8 * numbers / 2**20:,.0f} MiB of memory, more than the "
            f"{most_bytes / 2**20:,.0f} MiB that a file may; give a smaller one, or raise "
            "most_bytes (CRASHSIM_FILE_LIMIT on the command line) if it is right"
        )


@dataclass
class _Contents:
    """A walk through a file: what was seen of it so far."""

    h5py: Any
    most_bytes: int
    length: int
    seen: set[tuple[int, int]] = field(default_factory=set)
    objects: int = 0
    numbers: int = 0

    def group(self, group: Any, where: str, depth: int) -> None:
        h5o, hard = self.h5py.h5o, self.h5py.h5l.TYPE_HARD
        if depth > _DEEPEST:
            raise HardwareError(f"{where!r}: groups more than {_DEEPEST} deep")
        for name in group:
            here = f"{where}/{name.decode('utf-8', 'replace')}".removeprefix("/")
            self.objects += 1
            if self.objects > _OBJECTS:
                raise HardwareError(f"{here!r}: more than {_OBJECTS:,} objects")
            if group.links.get_info(name).type != hard:
                raise HardwareError(
                    f"{here!r} is a link, to another place or file; links are not followed: "
                    "store the data itself"
                )
            found = h5o.get_info(group, name)
            if found.type == h5o.TYPE_GROUP:
                if (found.fileno, found.addr) in self.seen:
                    raise HardwareError(
                        f"{here!r} is a group that is in the file elsewhere too; store each once"
                    )
                self.seen.add((found.fileno, found.addr))
                self.group(self.h5py.h5g.open(group, name), here, depth + 1)
            elif found.type == h5o.TYPE_DATASET:
                self.data_set(self.h5py.h5d.open(group, name), here)
            else:
                raise HardwareError(f"{here!r} is neither a group nor a data set")

    def data_set(self, data: Any, where: str) -> None:
        layout = data.get_create_plist()
        # Before its shape is asked for, which opens the sources of a virtual one.
        if layout.get_layout() == self.h5py.h5d.VIRTUAL:
            raise HardwareError(f"{where!r} is virtual: its data is elsewhere; store it itself")
        if layout.get_external_count():
            raise HardwareError(f"{where!r} has its data in another file; store it itself")
        kind, h5t = data.get_type(), self.h5py.h5t
        if data.get_space().get_simple_extent_type() == self.h5py.h5s.NULL:
            raise HardwareError(f"{where!r} holds nothing")
        shape = tuple(int(n) for n in data.shape)
        is_text = isinstance(kind, h5t.TypeStringID)
        if not is_text and not isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID):
            is_truth = isinstance(kind, h5t.TypeEnumID) and kind.dtype == np.bool_
            if not is_truth:
                raise HardwareError(f"{where!r} holds neither numbers nor text")
        size = int(kind.get_size())
        self.numbers += math.prod(shape) * max(1, -(-size // 8))
        check_room(f"{where!r} of shape {shape}", _COPIES * self.numbers, self.most_bytes)
        if layout.get_layout() == self.h5py.h5d.CHUNKED:
            self.chunks(data, layout, shape, size, where)
        elif math.prod(shape) * size > max(_SMALL, int(data.get_storage_size())):
            raise HardwareError(f"{where!r} of shape {shape} holds no data: it is a fill value")
        if is_text and kind.is_variable_str():
            self.texts(data, shape, where)

    def chunks(self, data: Any, layout: Any, shape: tuple[int, ...], size: int, where: str) -> None:
        """Every piece must be in the file, and unpack to just its own size."""
        filters = tuple(layout.get_filter(i)[0] for i in range(layout.get_nfilters()))
        if filters not in _PIPELINES:
            raise HardwareError(
                f"{where!r} is packed by HDF5 filters {filters}, which may be plug-ins; store it "
                "plainly, or with gzip or lzf"
            )
        chunk = tuple(int(n) for n in layout.get_chunk())
        each = math.prod(chunk) * size
        check_room(f"{where!r} in pieces of {chunk}", _COPIES * -(-each // 8), self.most_bytes)
        wanted = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
        found: list[Any] = []
        data.chunk_iter(found.append)
        if len(found) < wanted and math.prod(shape) * size > _SMALL:
            raise HardwareError(
                f"{where!r} of shape {shape} holds {len(found)} of its {wanted:,} pieces: the rest "
                "is a fill value"
            )
        if _LZF in filters and each > _SMALL:  # it may unpack to a hundred times as much
            raise HardwareError(f"{where!r} is packed by lzf in pieces of more than 1 MiB")
        for piece in found:
            if piece.size > min(self.length, each + each // 100 + 1024):
                raise HardwareError(f"{where!r}: a piece of {piece.size:,} bytes for {each:,}")
            if _DEFLATE in filters and not piece.filter_mask & (1 << filters.index(_DEFLATE)):
                _, raw = data.read_direct_chunk(piece.chunk_offset)
                # HDF5 itself would unpack whatever comes, without end.
                if len(zlib.decompressobj().decompress(raw, each + 1)) != each:
                    raise HardwareError(
                        f"{where!r}: a piece that does not unpack to {each:,} bytes"
                    )

    def texts(self, data: Any, shape: tuple[int, ...], where: str) -> None:
        """Many strings may be the same one in the file, and are as many in memory."""
        count = math.prod(shape)
        if count > _TEXTS:
            raise HardwareError(f"{where!r} holds {count:,} texts, more than {_TEXTS:,}")
        values = self.h5py.Dataset(data)
        for index in np.ndindex(shape):
            self.numbers += len(values[index]) // 8
            check_room(f"{where!r}", self.numbers, self.most_bytes)
