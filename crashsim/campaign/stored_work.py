"""What a store keeps of one piece of work: the sums of blocks, and now and then their total."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from crashsim.campaign.identity import name_of
from crashsim.campaign.packing import unpack
from crashsim.campaign.store_files import (
    BLOCKS,
    TOTAL,
    chain,
    content_of,
    ensure_manifest,
    files_in,
    read_file,
    take_away_held,
)
from crashsim.errors import FileError
from crashsim.noticing import notice
from crashsim.writing import write_files

_SELDOM = 0.5  # seconds between two writes of blocks that are done sooner
_LOOK = 2.0  # seconds between two looks at what other programs have written
_MOST_LOOSE = 4096  # blocks: a total is written at each multiple, and at each power of two

S = TypeVar("S")


@dataclass(frozen=True)
class Total(Generic[S]):
    """The sums of the first ``blocks`` blocks, added up in their order."""

    sums: S
    blocks: int


class Work(Generic[S]):
    """The blocks of one piece of work that a store keeps.

    Attributes:
        name: by which the store knows it.
        manifest: the file that says what it is.
    """

    def __init__(
        self, store: Path, identity: Mapping[str, str], made_of: tuple[type, ...], argument: str
    ) -> None:
        self.identity, self.name = dict(identity), name_of(identity)
        self._argument, self._made_of = argument, made_of
        self._folder = store / self.name
        self.manifest = self._folder / "manifest.json"
        self._index: dict[int, Path] = {}
        self._totals: dict[int, Path] = {}
        self._bad: set[Path] = set()
        self._open: tuple[Path, dict[int, S]] | None = None
        self._waiting: dict[int, S] = {}
        self._wrote = self._looked = -float("inf")
        self._is_full = False
        self._look()

    def totals(self, most: int) -> Iterator[Total[S]]:
        """The totals of at most so many blocks, the least first: at every power of two.

        Where rules stop a run, they look there; so totals beyond one that is missing do not serve.
        """
        for count in chain(self._totals):
            held = self._read(self._totals[count]) if count <= most else None
            if held is None or count not in held:  # damaged, or given another file's name
                return
            yield Total(held[count], count)

    def get(self, block: int) -> S | None:
        """The sums of a block, if they are there."""
        if block in self._waiting:
            return self._waiting[block]
        if block not in self._index:
            if time.monotonic() - self._looked < _LOOK:
                return None
            self._look()
        file = self._index.get(block)
        if file is None:
            return None
        if self._open is None or self._open[0] != file:
            held = self._read(file)
            self._open = None if held is None else (file, held)
        if self._open is None:
            self._index = {b: f for b, f in self._index.items() if f != file}
            return None
        return self._open[1].get(block)

    def put(self, block: int, sums: S) -> None:
        """Keeps the sums of a block; on the disk after half a second, at once where it is slow."""
        self._waiting[block] = sums
        if time.monotonic() - self._wrote >= _SELDOM:
            self.flush()

    def flush(self) -> None:
        """Writes what is not on the disk yet."""
        waiting, self._waiting = self._waiting, {}
        self._wrote = time.monotonic()
        for first, last in _runs(sorted(waiting)):
            file = self._folder / f"blocks-{first:08d}-{last:08d}.npz"
            blocks = range(first, last + 1)
            if self._write(file, blocks, [waiting[block] for block in blocks]):
                self._index.update(dict.fromkeys(blocks, file))

    def reached(self, total: Total[S]) -> None:
        """The first blocks have been added up; now and then their total takes their place."""
        count = total.blocks
        if count & (count - 1) and count % _MOST_LOOSE:
            return
        self.flush()
        file = self._folder / f"total-{count:08d}.npz"
        if file.exists() or self._write(file, [count], [total.sums]):
            self._totals[count] = file
            take_away_held(self._folder)
            self._open = None
            self._index = {b: f for b, f in self._index.items() if b >= count}

    def _write(self, file: Path, numbers: Sequence[int], sums: Sequence[S]) -> bool:
        if self._is_full:
            return False
        content = content_of(self.name, numbers, sums)
        try:
            ensure_manifest(self.manifest, self.identity, self._argument)
            write_files(self._argument, (file, content))
        except FileError as error:
            self._is_full = True
            notice(f"{error}; the run goes on, but what it finds is not stored", stacklevel=6)
        return not self._is_full

    def _look(self) -> None:
        self._looked = time.monotonic()
        for file in files_in(self._folder):
            if file in self._bad:
                continue
            if found := TOTAL.fullmatch(file.name):
                self._totals[int(found[1])] = file
            elif found := BLOCKS.fullmatch(file.name):
                for block in range(int(found[1]), int(found[2]) + 1):
                    self._index.setdefault(block, file)

    def _read(self, file: Path) -> dict[int, S] | None:
        try:
            numbers, structures, data = read_file(file, self.name)
            sums = unpack(structures, data, self._made_of)
            if type(sums) is not list or len(sums) != len(numbers):
                raise FileError(f"{file}: holds another number of blocks than it says")
            return dict(zip(numbers, sums, strict=True))
        except FileNotFoundError:  # another program has put a total in its place
            self._totals = {count: f for count, f in self._totals.items() if f != file}
            self._look()
            return None
        except FileError as error:
            self._bad.add(file)
            self._totals = {count: f for count, f in self._totals.items() if f != file}
            notice(f"{error}; it is left out, and its blocks are computed again", stacklevel=6)
            return None


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of consecutive numbers, in order."""
    first = last = None
    for block in blocks:
        if last is None or first is None:
            first = block
        elif block != last + 1:
            yield first, last
            first = block
        last = block
    if first is not None and last is not None:
        yield first, last
