"""A store: a folder that keeps the sums of finished blocks, so that no work is done twice.

There is a folder in it for each piece of work, named by all that its sums depend on, with a
manifest that says so in words. Files are written whole or not at all and never changed; nothing is
locked, so that several programs, machines and network file systems can share a store: who computes
a block that another has written meanwhile writes the same bytes.

    STORE/<name of the work>/manifest.json
                             blocks-<first>-<last>.npz   sums of each of some consecutive blocks
                             total-<n>.npz               sums of the first n blocks together

Totals take the place of the blocks that they hold, so that a store of very many blocks stays small
and quick to open. There is one at each power of two, where runs look whether to stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashsim.arguments import path as file_path
from crashsim.campaign.identity import difference
from crashsim.campaign.store_files import (
    TOTAL,
    ensure_manifest,
    files_in,
    read_file,
    read_manifest,
    take_away_held,
)
from crashsim.campaign.stored_work import Work
from crashsim.errors import ArgumentError, FileError
from crashsim.writing import write_files

_WORK = re.compile(r"[0-9a-f]{32}")
_FOLLOWS = ("clean outputs", "counted")  # parts of an identity that others decide


class Store:
    """Keeps the sums of finished blocks in a folder.

    Args:
        folder: is made when something is first written to it.
        argument: how the caller names it, in messages.
    """

    def __init__(self, folder: str | Path, argument: str = "store") -> None:
        self.folder, self.argument = file_path(argument, folder), argument
        if self.folder.exists() and not self.folder.is_dir():
            raise FileError(
                f"{argument}={str(self.folder)!r}: is a file; give the name of a folder, which is "
                "made where there is none"
            )

    def work(self, identity: Mapping[str, str], made_of: Iterable[type]) -> Work[Any]:
        """What is kept of one piece of work.

        Args:
            identity: what its sums depend on, in words.
            made_of: the dataclasses that its sums are made of.
        """
        return Work(self.folder, identity, tuple(made_of), self.argument)

    def identities(self) -> dict[str, dict[str, str]]:
        """What each piece of work in the store depends on, by its name."""
        found = {}
        for folder in self._folders():
            with suppress(FileError):
                found[folder.name] = read_manifest(folder / "manifest.json")
        return found

    def _folders(self) -> list[Path]:
        return [
            each for each in self._named() if (each / "manifest.json").exists() or files_in(each)
        ]

    def _named(self) -> list[Path]:
        """Also what a program was ended in before it wrote a manifest, which holds nothing."""
        if not self.folder.is_dir():
            return []
        return sorted(each for each in self.folder.iterdir() if _WORK.fullmatch(each.name))

    def status(self) -> list[Status]:
        """Each piece of work, with what is kept of it and what is damaged."""
        return [_status(folder) for folder in self._folders()]

    def merge(self, other: Store) -> Merged:
        """Takes over what another store has and this one has not, in whatever order.

        Raises:
            FileError: the other is no store, or this one cannot be written.
        """
        if not other.folder.is_dir():
            raise FileError(f"{other.argument}={str(other.folder)!r}: no such folder; give a store")
        if other.folder.resolve() == self.folder.resolve():
            raise ArgumentError(f"{other.argument}={str(other.folder)!r}: is this very store")
        files, left_out = 0, []
        for folder in other._folders():
            try:
                identity = read_manifest(folder / "manifest.json")
            except FileError as error:
                left_out.append(str(error))
                continue
            here = self.folder / folder.name
            for file in files_in(folder):
                if _is_sound(here / file.name, folder.name):
                    continue
                try:
                    read_file(file, folder.name)
                except FileError as error:
                    left_out.append(str(error))
                    continue
                ensure_manifest(here / "manifest.json", identity)
                write_files(self.argument, (here / file.name, file.read_bytes()))
                files += 1
        return Merged(files, tuple(left_out))

    def clean(self) -> int:
        """Takes away what is damaged or held by a total as well; the number of files."""
        gone = 0
        for folder in self._named():
            for file in files_in(folder):
                if not _is_sound(file, folder.name):
                    file.unlink(missing_ok=True)
                    gone += 1
            gone += take_away_held(folder)
            for left in folder.glob(".*.tmp"):  # of a program that was ended while it wrote
                left.unlink(missing_ok=True)
                gone += 1
        return gone


def _is_sound(file: Path, name: str) -> bool:
    try:
        read_file(file, name)
    except (FileError, FileNotFoundError):
        return False
    return True


@dataclass(frozen=True)
class Status:
    """What a store has of one piece of work.

    Attributes:
        name: of its folder.
        identity: what its sums depend on; empty where its manifest cannot be read.
        blocks: number of blocks whose sums are there.
        size: of its files, in bytes.
        damaged: why each file that is left out is.
    """

    name: str
    identity: Mapping[str, str]
    blocks: int
    size: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        files: number of those taken over.
        left_out: why each of the others was not.
    """

    files: int
    left_out: tuple[str, ...]


def apart(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """For each piece of work, in what it differs from the one before that is most like it.

    What follows from other differences (the clean outputs, of another model) is told only where
    there is no other.
    """
    found: list[tuple[str, ...]] = []
    for i, status in enumerate(statuses):
        before = [difference(status.identity, other.identity) for other in statuses[:i]]
        nearest = min(before, key=len, default=[])
        causes = [each for each in nearest if not each.startswith(_FOLLOWS)]
        found.append(tuple(causes or nearest))
    return found


def store_of(store: str | Path | Store | None) -> Store | None:
    """A store as users give it: a folder, or a store already."""
    return store if store is None or isinstance(store, Store) else Store(store)


def _status(folder: Path) -> Status:
    damaged: list[str] = []
    identity: dict[str, str] = {}
    try:
        identity = read_manifest(folder / "manifest.json")
    except FileError as error:
        damaged.append(str(error))
    held, size, first = set(), 0, 0
    for file in files_in(folder):
        try:
            numbers, _, _ = read_file(file, folder.name)
            size += file.stat().st_size
        except FileNotFoundError:  # meanwhile taken away
            continue
        except FileError as error:
            damaged.append(str(error))
            continue
        if TOTAL.fullmatch(file.name):
            first = max(first, numbers[0])
        else:
            held.update(numbers)
    return Status(
        folder.name, identity, first + sum(b >= first for b in held), size, tuple(damaged)
    )
