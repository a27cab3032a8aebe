"""Faults of words that are guarded: what is struck in memory, and what is left when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Integers
from crashsim.errors import ArgumentError
from crashsim.faults.fault import Strikes
from crashsim.faults.words.guards import Guard, Ints, Struck
from crashsim.faults.words.word_fault import WordFault, WordTable

_ZEROED, _STOPPED = -1, -2  # masks of words in which an error is seen; all others are positive
_WIDEST = 62  # bits of a word, so that these are no masks of bits


@dataclass(frozen=True)
class GuardedWords(WordFault):
    """A fault of words as it strikes the memory, and what guards leave of it when words are read.

    One coordinate for each bit, as the fault itself has, and behind them one for each bit that the
    guards store besides, of the same probability unless ``p`` says otherwise. Coordinates stay
    independent; which words change follows from all those of a block together.

    Args:
        struck: the fault without guards.
        guards: of bits of the words, each of at most one of them.
        words: number of words of the tensor.
        clips: whether a word that is read as more than any of the tensor can be (its exponent is
            larger than the largest), or as no number, is taken for 0.
    """

    name: ClassVar[str] = "guarded-words"
    strikes: ClassVar[Strikes] = "both"
    struck: WordFault = field(kw_only=True)
    guards: tuple[Guard, ...] = field(kw_only=True)
    words: int = field(kw_only=True)
    clips: bool = field(default=False, kw_only=True)

    @classmethod
    def of(
        cls,
        struck: WordFault,
        guards: Sequence[Guard],
        shape: tuple[int, ...],
        clips: bool = False,
    ) -> Self:
        """Guards around a fault that is placed at a tensor of this shape.

        Raises:
            ArgumentError: the fault strikes rows or columns, an exact number of bits, or words of
                more than 62 bits; or its bits have probabilities of their own.
        """
        told = f"{type(struck).__name__}: "
        if struck.upset in ("row", "column"):
            raise ArgumentError(
                f"{told}upset={struck.upset!r}: guards are of words; give upset='bit', 'word' or a "
                "number of bits"
            )
        if struck.count is not None:
            raise ArgumentError(f"{told}count={struck.count}: guarded words want p; give that")
        if struck.is_varied:
            raise ArgumentError(
                f"{told}p={struck.p!r}: guarded words want one p for all bits; give a number"
            )
        if struck.word.bits > _WIDEST:
            raise ArgumentError(
                f"{told}words of {struck.word.name} cannot be guarded; give words of at most "
                f"{_WIDEST} bits, float32 say"
            )
        own = {f.name: getattr(struck, f.name) for f in fields(WordFault)}
        return cls(
            **own,
            struck=struck,
            guards=tuple(guards),
            words=int(np.prod(shape, dtype=int)),
            clips=clips,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = np.zeros(self.data, dtype=np.int64)
        for guard in self.guards:
            taken[guard.members.numbers] += 1
        if taken.size and taken.max() > 1:
            raise ArgumentError(
                "schemes: a bit is guarded twice; give schemes for different sites or bits"
            )

    # Coordinates: data bits first, then those that guards store.

    @property
    def each(self) -> int:
        """Coordinates of a word."""
        return len(self.masks)

    @property
    def data(self) -> int:
        """Number of bits of the words themselves: of those that can be struck."""
        return self.words * len(self.chosen)

    @property
    def extra(self) -> int:
        """Number of bits that guards store besides."""
        return sum(guard.extra for guard in self.guards)

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.words * self.each + self.extra,)

    @property
    def adds_up(self) -> bool:
        """Never: a block's bits act together."""
        return False

    @property
    def is_guarded(self) -> bool:
        return True

    def act(self, words: Tensor, masks: Tensor | int) -> Tensor:
        return self.struck.act(words, masks)

    @property
    def joins(self) -> np.ufunc:
        return self.struck.joins

    def hits(
        self, rows: Integers, columns: Integers, shape: tuple[int, ...]
    ) -> tuple[Ints, Ints, Ints]:
        samples: Ints = rows.astype(np.int64)
        struck: Ints = columns.astype(np.int64)
        first = self.words * self.each
        is_data = struck < first
        row, bit = self._bits(samples[is_data], struck[is_data])
        extra_row, extra_at = samples[~is_data], struck[~is_data] - first
        parts_rows, parts_bits = [], []
        bare = np.ones(len(row), dtype=np.bool_)
        alarms: list[tuple[Ints, Ints, int]] = []
        start = 0
        for guard, rank in zip(self.guards, self._ranks, strict=True):
            places = rank[bit]
            inside = places >= 0
            bare &= ~inside
            stored = (extra_at >= start) & (extra_at < start + guard.extra)
            left = guard.left(
                Struck(row[inside], places[inside].astype(np.int64)),
                Struck(extra_row[stored], extra_at[stored] - start),
            )
            start += guard.extra
            parts_rows.append(left.wrong.rows)
            parts_bits.append(guard.members.numbers[left.wrong.places])
            if guard.on_detection != "last":
                word = guard.members.numbers[left.alarms.places] // len(self.chosen)
                mask = _ZEROED if guard.on_detection == "zero" else _STOPPED
                alarms.append((left.alarms.rows, word, mask))
        parts_rows.append(row[bare])
        parts_bits.append(bit[bare])
        return self._joined_hits(np.concatenate(parts_rows), np.concatenate(parts_bits), alarms)

    def _bits(self, rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
        """The struck bits, each once in a sample: rows and numbers among the data bits."""
        word, which = np.divmod(columns, self.each)
        bits = len(self.chosen)
        if self.each == bits and all(m.bit_count() == 1 for m in self.masks):
            return rows, word * bits + which
        number = {bit: i for i, bit in enumerate(self.chosen)}
        struck = [[number[b] for b in self.chosen if mask >> b & 1] for mask in self.masks]
        counts = np.array([len(of) for of in struck])
        of_each = np.concatenate([np.array(of, dtype=np.int64) for of in struck])
        begin = np.concatenate([[0], np.cumsum(counts)])[:-1]
        times = counts[which]
        offset = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        bit = np.repeat(word * bits, times) + of_each[np.repeat(begin[which], times) + offset]
        key, often = np.unique(np.repeat(rows, times) * self.data + bit, return_counts=True)
        if self.joins is np.bitwise_xor:
            key = key[often % 2 == 1]
        found: tuple[Ints, Ints] = np.divmod(key, self.data)
        return found

    def _joined_hits(
        self, rows: Ints, bits: Ints, alarms: list[tuple[Ints, Ints, int]]
    ) -> tuple[Ints, Ints, Ints]:
        """Sample, word and mask of each word that is read wrong, in order."""
        word, which = np.divmod(bits, len(self.chosen))
        masks = np.array([1 << bit for bit in self.chosen], dtype=np.int64)[which]
        rows = np.concatenate([rows, *(a[0] for a in alarms)])
        word = np.concatenate([word, *(a[1] for a in alarms)])
        masks = np.concatenate([masks, *(np.full(len(a[0]), a[2]) for a in alarms)])
        place = rows * self.words + word
        order = np.argsort(place, kind="stable")
        place, masks = place[order], masks[order]
        first = np.flatnonzero(np.diff(place, prepend=-1))
        if not len(first):
            return place, place, masks
        joined = np.bitwise_or.reduceat(np.maximum(masks, 0), first)
        least = np.minimum.reduceat(masks, first)  # who stops does not answer; who zeroes is 0
        found = np.where(least < 0, least, joined)
        return *np.divmod(place[first], self.words), found

    @cached_property
    def _ranks(self) -> list[NDArray[np.int32]]:
        """Of each guard, (data,) which of its members a data bit is; -1 for none of them."""
        found = []
        for guard in self.guards:
            rank = np.full(self.data, -1, dtype=np.int32)
            rank[guard.members.numbers] = np.arange(len(guard.members), dtype=np.int32)
            found.append(rank)
        return found

    # What becomes of the values.

    def _joined(self, struck: Tensor, shape: tuple[int, ...]) -> Tensor:
        leading = struck.shape[:-1]
        flat = struck.reshape(-1, struck.shape[-1]).cpu().numpy()
        at, columns = np.nonzero(flat)
        rows, words, masks = self.hits(at, columns, shape)
        joined = np.zeros((len(flat), self.words), dtype=np.int64)
        joined[rows, words] = masks
        return torch.from_numpy(joined).to(struck.device).view(*leading, *shape)

    def _changed(self, value: Tensor, masks: Tensor) -> Tensor:
        struck = super()._changed(value, masks.clamp(min=0))
        return _as_seen(struck, masks, largest_possible(value) if self.clips else None)

    def displacement(self, value: Tensor) -> Tensor:
        """Change of each value by each coordinate of its own word alone, without guards."""
        return self.struck.displacement(value)

    def table(self, value: Tensor) -> WordTable:
        own = super().table(value)
        limit = largest_possible(value) if self.clips else None
        return GuardedTable(self, own.values, own.words, own.step, limit)

    # What reports say of it.

    def to_dict(self) -> dict[str, Any]:
        own = super().to_dict()
        for name in ("struck", "guards", "words", "clips"):
            del own[name]
        return {**own, "fault": self.struck.name, "guarded": self.guarded}

    def facts(self) -> dict[str, object]:
        return super().facts() | {"fault": self.struck.name, "guarded": self.guarded}

    @property
    def guarded(self) -> int:
        """Number of bits that are guarded."""
        return sum(len(guard.members) for guard in self.guards)


@dataclass(frozen=True)
class GuardedTable(WordTable):
    """The words of a tensor that is guarded.

    Attributes:
        limit: () what no number of the tensor reaches; None where that is not looked at.
    """

    limit: Tensor | None = None

    def struck(self, units: Tensor, masks: Tensor) -> Tensor:
        return _as_seen(super().struck(units, masks.clamp(min=0)), masks, self.limit)


def largest_possible(value: Tensor) -> Tensor:
    """() the power of two above all numbers of a tensor: no exponent reaches it."""
    return torch.exp2(torch.frexp(value.detach().abs().max().double())[1].double())


def _as_seen(read: Tensor, masks: Tensor, limit: Tensor | None) -> Tensor:
    """Values as they are taken: as they are read, 0, or no number."""
    if limit is not None:
        read = torch.where(read.abs() < limit, read, torch.zeros_like(read))
    read = torch.where(masks == _ZEROED, torch.zeros_like(read), read)
    return torch.where(masks == _STOPPED, torch.full_like(read, torch.nan), read)
