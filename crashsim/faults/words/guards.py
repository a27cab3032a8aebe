"""What protects the bits of stored words: codes, copies that are compared, and spare words.

A guard takes the bits that are struck, as they are struck in memory, and says what is left of them
once the memory is read: bits that are still wrong, and words in which an error was seen. The bits
that it stores besides (check bits, copies, spares) are struck like all others: they are fault
coordinates of their own, so that all coordinates stay independent, whatever the guard does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from crashsim_theory.codes import DETECTED, Code
from numpy.typing import NDArray

from crashsim.arrays import Integers

Detection = Literal["zero", "last", "stop"]
"""What a word becomes in which an error is seen: 0; the last good value, which a copy elsewhere
holds; or the machine stops, and there is no answer (NaN)."""

Ints = NDArray[np.int64]


class Struck(NamedTuple):
    """Struck bits of some samples, (n,) each.

    Attributes:
        rows: the samples.
        places: which of the guarded bits, counted from 0; of extra ones, which of those.
    """

    rows: Ints
    places: Ints


class Left(NamedTuple):
    """What a guard leaves.

    Attributes:
        wrong: the guarded bits that are read wrong.
        alarms: guarded bits of the words in which an error is seen, one of each word or more.
    """

    wrong: Struck
    alarms: Struck


@dataclass(frozen=True, eq=False)
class Members:
    """Numbers of bits, in rising order, that cannot be written to; equal to others by these.

    Attributes:
        numbers: (n,) of a tensor's data bits: number of the word times bits of a word, plus bit.
    """

    numbers: Ints

    @classmethod
    def of(cls, numbers: Integers) -> Members:
        own = np.array(numbers, dtype=np.int64)
        own.setflags(write=False)
        return cls(own)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.numbers.astype("<i8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Members):
            return NotImplemented
        return self is other or np.array_equal(self.numbers, other.numbers)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{len(self):,} bits>"


@dataclass(frozen=True)
class Guard(ABC):
    """Guards some bits of a tensor's words.

    Attributes:
        members: which.
        per_word: how many of them each guarded word has.
        on_detection: what a word becomes in which an error is seen.
    """

    members: Members
    per_word: int
    on_detection: Detection

    @property
    @abstractmethod
    def extra(self) -> int:
        """The number of bits that it stores besides."""

    @abstractmethod
    def left(self, data: Struck, extra: Struck) -> Left:
        """What is read, of bits that are struck in memory, each at most once in a sample."""


@dataclass(frozen=True)
class CodeGuard(Guard):
    """Blocks of a code: the members in order, so many at a time; the last block may be shorter.

    Attributes:
        code: of a block.
    """

    code: Code

    @property
    def blocks(self) -> int:
        return -(-len(self.members) // self.code.data)

    @property
    def extra(self) -> int:
        return self.blocks * self.code.checks

    def left(self, data: Struck, extra: Struck) -> Left:
        k, r = self.code.data, self.code.checks
        columns = np.array(self.code.columns, dtype=np.int64)
        block = np.concatenate([data.places // k, extra.places // r])
        place = np.concatenate([data.places % k, k + extra.places % r])
        rows = np.concatenate([data.rows, extra.rows])
        key = rows * self.blocks + block
        order = np.argsort(key, kind="stable")
        key, place = key[order], place[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        if not len(first):
            return Left(data, Struck(data.rows[:0], data.places[:0]))
        syndromes = np.bitwise_xor.reduceat(columns[place], first)
        row, at = np.divmod(key[first], self.blocks)
        decision = self.code.decisions[syndromes]
        # Bits of the last block that are not there are known to be 0: none is corrected.
        missing = (decision >= 0) & (decision < k) & (at * k + decision >= len(self.members))
        decision = np.where(missing, DETECTED, decision)
        wrong = self._wrong(key, place, key[first], decision)
        seen = decision == DETECTED
        return Left(wrong, self._words_of(row[seen], at[seen]))

    def _wrong(self, key: Ints, place: Ints, blocks: Ints, decision: Ints) -> Struck:
        """The data bits that are wrong after correction, in blocks where no error is seen."""
        k = self.code.data
        there = decision[np.searchsorted(blocks, key)] != DETECTED
        flips = decision >= 0
        keys = np.concatenate([key[there], blocks[flips]])
        places = np.concatenate([place[there], decision[flips]])
        keys, places = keys[places < k], places[places < k]
        both, counts = np.unique(keys * k + places, return_counts=True)
        keys, places = np.divmod(both[counts % 2 == 1], k)
        rows, block = np.divmod(keys, self.blocks)
        return Struck(rows, block * k + places)

    def _words_of(self, rows: Ints, blocks: Ints) -> Struck:
        """All members of some blocks."""
        k = self.code.data
        places = blocks[:, None] * k + np.arange(k)
        inside = places < len(self.members)
        return Struck(np.broadcast_to(rows[:, None], places.shape)[inside], places[inside])


@dataclass(frozen=True)
class CopyGuard(Guard):
    """A copy of each member, compared with it word by word: alike, the word is taken as it is."""

    @property
    def extra(self) -> int:
        return len(self.members)

    def left(self, data: Struck, extra: Struck) -> Left:
        size = max(len(self.members), 1)
        one, other = (np.sort(part.rows * size + part.places) for part in (data, extra))
        differing = np.setxor1d(one, other, assume_unique=True)
        words = np.unique(differing // self.per_word)
        alike = one[~np.isin(one // self.per_word, words)]
        return Left(
            Struck(*np.divmod(alike, size)), Struck(*np.divmod(words * self.per_word, size))
        )


@dataclass(frozen=True)
class VoteGuard(Guard):
    """Two more copies of each member, and the majority of the three, bit by bit."""

    @property
    def extra(self) -> int:
        return 2 * len(self.members)

    def left(self, data: Struck, extra: Struck) -> Left:
        size = max(len(self.members), 1)
        copies = extra.rows * size + extra.places % size
        keys = np.concatenate([data.rows * size + data.places, copies])
        key, often = np.unique(keys, return_counts=True)
        wrong = Struck(*np.divmod(key[often > 1], size))
        return Left(wrong, Struck(wrong.rows[:0], wrong.places[:0]))


@dataclass(frozen=True)
class SpareGuard(Guard):
    """Spare words for each group of words, in place of those that a test found struck.

    The struck words of a group are replaced in order, as far as there are spares that are whole.

    Attributes:
        group: words of a group, consecutive ones; the last may have fewer.
        spares: of each group.
    """

    group: int
    spares: int

    @property
    def groups(self) -> int:
        return -(-len(self.members) // (self.per_word * self.group))

    @property
    def extra(self) -> int:
        return self.groups * self.spares * self.per_word

    def left(self, data: Struck, extra: Struck) -> Left:
        none = Struck(data.rows[:0], data.places[:0])
        if not len(data.rows):
            return Left(data, none)
        words = -(-len(self.members) // self.per_word)
        key = data.rows * words + data.places // self.per_word
        struck, back = np.unique(key, return_inverse=True)
        row, word = np.divmod(struck, words)
        of_group = row * self.groups + word // self.group
        first = np.flatnonzero(np.diff(of_group, prepend=-1))
        rank = np.arange(len(struck)) - np.repeat(first, np.diff([*first, len(struck)]))
        stays = rank >= self.spares - self._lost(of_group, extra)
        kept = stays[back]
        return Left(Struck(data.rows[kept], data.places[kept]), none)

    def _lost(self, groups: Ints, extra: Struck) -> Ints:
        """How many spares of each of these groups (of a sample) are struck themselves."""
        spare = np.unique(extra.rows * (self.groups * self.spares) + extra.places // self.per_word)
        broken, count = np.unique(spare // max(self.spares, 1), return_counts=True)
        found = np.append(count, 0)[np.searchsorted(broken, groups)]
        at = np.append(broken, -1)[np.searchsorted(broken, groups)]
        return np.where(at == groups, found, 0)
