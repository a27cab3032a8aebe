"""What happens to stored words: which bits are struck together, and what the numbers become."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import is_whole, shown, whole
from crashsim.arrays import Integers
from crashsim.errors import ArgumentError
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Strikes
from crashsim.faults.words.bits import (
    Bits,
    Upset,
    chosen_bits,
    is_field,
    listed,
    masks_of,
    upset_given,
)
from crashsim.faults.words.formats import AS_STORED, IntegerFormat, Stored, format_named

_AT_ONCE = 2**16  # bits of which what they add is written out at a time
_WIDTHS = torch.int16, torch.int32
_LISTED = 8  # bits of words of which all changes are listed


@dataclass(frozen=True)
class WordFault(BernoulliFault):
    """What happens to bits of the words in which weights or neurons' outputs are stored.

    The clean network computes with its values as they are; of a struck value, the change is that
    of its word. Several struck bits of one word act together: the value is what the whole word then
    means, infinity and NaN included. One coordinate for each bit, or for each ``upset``, the least
    significant first.

    Args:
        p, count, per: how likely each bit (or upset) is struck, or how many are; as in
            ``BernoulliFault``. Probabilities of their own have the shape of the tensor with an axis
            for the bits behind it: ``p`` of shape (bits,) gives one to each bit, ``p[..., None]``
            one to each word.
        bits: which bits: ``"sign"``, ``"exponent"``, ``"mantissa"`` (of floating point),
            ``"magnitude"`` (of integers), or a list of their numbers, 0 the least significant; by
            default all. Without a format, a whole number is the width of a word of fixed point
            with one scale for the tensor, ``max|w| / (2^(bits - 1) - 1)``.
        format: how values are stored: ``"stored"``: as the model does (the type of its parameters;
            the words of a quantised layer); or as if they were in ``"float32"``, ``"float16"``,
            ``"bfloat16"``, ``"float8_e4m3fn"``, ``"float8_e5m2"``, ``"int8"``, ``"int4"``,
            ``"uint8"`` and so on. Values beyond the range of the format are taken for its largest.
        scale: of integers: ``"tensor"`` (by default) or ``"channel"``: such that the largest
            weight, of each index of the first axis, fits; or what a step stands for, a number.
        upset: what one fault strikes: a ``"bit"``; a number of neighbouring bits of a word; all the
            chosen bits of a ``"word"``; or one bit of each word in a ``"row"`` (of one index of the
            first axis) or a ``"column"`` (of one index of all others).
    """

    reported: ClassVar[tuple[str, ...]] = ("bits", "format", "scale", "upset")
    # By a number of fixed point alone, weights: "hidden" then means these.
    strikes: ClassVar[Strikes] = "both"
    bits: Bits = None
    format: str | None = field(default=None, kw_only=True)
    scale: str | float | None = field(default=None, kw_only=True)
    upset: Upset = field(default="bit", kw_only=True)
    # What the words are, as far as it is known: of those that a model stores, once it is placed.
    stored: Stored | None = field(
        default=None, kw_only=True, repr=False, metadata={"is_option": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        cls = type(self).__name__
        if is_whole(self.bits):
            if self.format is not None:
                raise ArgumentError(
                    f"{cls}: bits={self.bits} with format={shown(self.format)}: a whole number is "
                    f"the width of words of fixed point; give bits=[{self.bits}] for that bit"
                )
            object.__setattr__(self, "bits", whole(f"{cls}: bits", self.bits, 2, 32))
        elif self.format is None:
            object.__setattr__(self, "format", AS_STORED)
        if not (self.bits is None or is_whole(self.bits) or is_field(self.bits)):
            object.__setattr__(self, "bits", listed(cls, self.bits))
        object.__setattr__(self, "upset", upset_given(cls, self.upset))
        if self.format != AS_STORED and self.stored is None:
            object.__setattr__(self, "stored", self._known_format())
        elif self.scale is not None and self.format == AS_STORED:
            raise ArgumentError(
                f"{cls}: scale={shown(self.scale)}: what the model stores has its own; give "
                "format='int8' too, say"
            )
        if self.stored is not None:
            _ = self.masks  # which says what is wrong with the bits

    def _known_format(self) -> Stored:
        try:
            if isinstance(self.bits, int):
                return IntegerFormat(self.bits, cast(str, self.scale or "tensor"))
            return format_named(str(self.format), self.scale)
        except ArgumentError as error:
            raise ArgumentError(f"{type(self).__name__}: {error}") from None

    # Which bits.

    @property
    def word(self) -> Stored:
        """How what it strikes is stored.

        Raises:
            ArgumentError: it is known only once the fault is placed.
        """
        if self.stored is None:
            raise ArgumentError(
                f"{type(self).__name__}: its words are known once it is placed at the sites of a "
                "model; ask a FaultSpace's placements, or give a format"
            )
        return self.stored

    @property
    def chosen(self) -> tuple[int, ...]:
        """The numbers of the bits that can be struck."""
        return chosen_bits(type(self).__name__, self.bits, self.word)

    @cached_property
    def masks(self) -> tuple[int, ...]:
        """What each of a word's coordinates strikes, as a word with these bits set."""
        return masks_of(type(self).__name__, self.chosen, self.upset, self.word)

    @cached_property
    def adds_up(self) -> bool:
        """Whether the coordinates' changes of a value add up, each of a value of its own.

        Bits of an exponent multiply, be it a single one: up to 1e38, by which nothing expands.
        """
        if self.upset in ("row", "column"):
            return False
        linear, chosen = self.word.linear_bits, set(self.chosen)
        if len(self.masks) == 1:
            return chosen <= linear | set(self.word.fields.get("sign", ()))
        return list(self.masks) == [1 << bit for bit in self.chosen] and chosen <= linear

    @property
    def can_overflow(self) -> bool:
        """Whether some bits make numbers immense, infinite or NaN: those of an exponent."""
        exponent = sum(1 << bit for bit in self.word.fields.get("exponent", ()))
        return any(mask & exponent for mask in self.masks)

    @property
    def mild(self) -> tuple[int, ...]:
        """Which of a word's coordinates at most double a value, about."""
        exponent = self.word.fields.get("exponent")
        if exponent is None:
            return tuple(range(len(self.masks)))
        return tuple(i for i, mask in enumerate(self.masks) if mask < 2 << exponent[0])

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How the words, or those that are struck together, lie."""
        if self.upset == "row":
            return shape[:1] if len(shape) > 1 else (1,)
        if self.upset == "column":
            return shape[1:] if len(shape) > 1 else shape
        return shape

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*self._grid(shape), len(self.masks))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return math.prod(self.coordinate_shape(shape))

    # What happens to a word.

    @abstractmethod
    def act(self, words: Tensor, masks: Tensor | int) -> Tensor:
        """The words after the bits of the masks are struck."""

    @property
    @abstractmethod
    def joins(self) -> np.ufunc:
        """How masks that strike one word become one."""

    @property
    def zeroes(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_elementwise(self) -> bool:  # type: ignore[override]
        return False  # but several coordinates to a value, as a rule

    def hits(
        self, rows: Integers, columns: Integers, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The struck words of some samples, each once: sample, unit and mask, in order.

        Args:
            rows: (n,) the sample of each struck coordinate.
            columns: (n,) the coordinate.
            shape: of what is struck.
        """
        masks = np.array(self.masks, dtype=np.uint64).view(np.int64)
        group, which = np.divmod(columns.astype(np.int64), len(masks))
        row, mask, units = rows.astype(np.int64), masks[which], group
        size = math.prod(shape)
        if self.upset in ("row", "column"):
            count = math.prod(self._grid(shape))
            together = size // count
            each = np.arange(together)
            units = (
                group[:, None] * together + each
                if self.upset == "row"
                else group[:, None] + each * count
            ).reshape(-1)
            row, mask = np.repeat(row, together), np.repeat(mask, together)
        place = row * size + units
        order = np.argsort(place, kind="stable")
        place, mask = place[order], mask[order]
        first = np.flatnonzero(np.diff(place, prepend=-1))
        joined = self.joins.reduceat(mask, first) if len(first) else mask
        return *np.divmod(place[first], size), joined

    def displacement(self, value: Tensor) -> Tensor:
        """Change of the value by each coordinate alone, (*shape, coordinates of a word)."""
        word = self.word
        step, old = word.step(value), word.read(value)
        step = step if step is None else step.expand(value.shape).unsqueeze(-1)
        old = old.unsqueeze(-1)
        masks = torch.tensor([as_signed(mask) for mask in self.masks], device=value.device)
        changed: Tensor = word.change(old, self.act(old, masks), step).to(value.dtype)
        return changed

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.adds_up:
            if e.dim() == 1 and len(e) > _AT_ONCE:
                return self._added(value, e.view(-1, len(self.masks)))
            e = e.reshape(*e.shape[:-1], *shape, len(self.masks))
            change = self.displacement(value)
            # What another fault has made infinite stays so; all other changes are finite here.
            return value + (e * torch.where(change.isfinite(), change, 0.0)).sum(-1)
        struck = self._changed(value, self._joined(e != 0, shape))
        # A part of a bit means nothing, and must not pass for one.
        halves = self._joined((e != 0) & (e != 1), shape) != 0
        return torch.where(halves, torch.nan, struck)

    def _added(self, value: Tensor, e: Tensor) -> Tensor:
        """The same of one point (values, bits) of many bits, some at a time for the memory."""
        steps, parts = BitSteps.of(self, value), []
        is_alike = e.stride(0) == 0  # as at the mean point: each word then adds its own
        each = _AT_ONCE if is_alike else _AT_ONCE // len(self.masks)
        for low in range(0, len(e), each):
            part = slice(low, low + each)
            if is_alike and (listed := steps.listed(part)) is not None:
                words, step, changes = listed
                added = ((changes @ e[0].double())[words] * step).to(value.dtype)
            else:
                change = steps.of_values(part)
                added = (e[part] * torch.where(change.isfinite(), change, 0.0)).sum(-1)
            parts.append(value.reshape(-1)[part] + added)
        return torch.cat(parts).view(value.shape)

    def _joined(self, struck: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(..., *shape) the masks of the struck coordinates (..., n) of each word."""
        struck = struck.reshape(*struck.shape[:-1], *self.coordinate_shape(shape))
        leading = struck.shape[: struck.dim() - len(self.coordinate_shape(shape))]
        if self.upset == "row" and len(shape) > 1:
            struck = struck.reshape(*leading, shape[0], *[1] * (len(shape) - 1), len(self.masks))
        elif self.upset == "column" and len(shape) > 1:
            struck = struck.unsqueeze(len(leading))
        struck = struck.expand(*leading, *shape, len(self.masks))
        joined = torch.zeros(struck.shape[:-1], dtype=torch.int64, device=struck.device)
        for i, mask in enumerate(self.masks):
            each = struck[..., i] * as_signed(mask)
            joined = joined ^ each if self.joins is np.bitwise_xor else joined | each
        return joined

    def _changed(self, value: Tensor, masks: Tensor) -> Tensor:
        word = self.word
        step, old = word.step(value), word.read(value)
        new = self.act(old, masks)
        struck = word.struck(value, old, new, step).to(value.dtype)
        return torch.where(new == old, value, struck)

    def table(self, value: Tensor) -> WordTable:
        """The words of a tensor, to look struck ones up in."""
        step = self.word.step(value)
        flat = None
        if step is not None:  # one scale of all takes no memory for each
            alike = step.numel() == 1
            flat = step.reshape(1).expand(value.numel()) if alike else step.expand(value.shape)
            flat = flat.reshape(-1)
        return WordTable(self, value.reshape(-1), self.word.read(value).reshape(-1), flat)

    def struck_alone(self, value: Tensor, masks: Tensor) -> Tensor:
        """The values after the bits of their masks are struck.

        Args:
            value: (n, ...) numbers of neurons, whose words have no scale or one that is known.
            masks: (n, ...) or broadcast to it.
        """
        return self._changed(value, masks)

    # What reports say of it.

    def to_dict(self) -> dict[str, object]:
        own = super().to_dict()
        del own["stored"]
        if self.upset == "bit":
            del own["upset"]
        return {k: v for k, v in own.items() if v is not None or k not in self.reported}

    def facts(self) -> dict[str, object]:
        found = super().facts()
        if self.stored is None:
            return found
        if self.format == AS_STORED:
            found["format"] = self.stored.name
        if self.can_overflow:
            found["immense"] = True  # numbers that some of its bits make
        return found


@dataclass(frozen=True)
class WordTable:
    """The values and words of a tensor, flat.

    Attributes:
        fault: that strikes them.
        values, words: (n,) the clean ones.
        step: (n,) the scale of each; None where words have none.
    """

    fault: WordFault
    values: Tensor
    words: Tensor
    step: Tensor | None

    def struck(self, units: Tensor, masks: Tensor) -> Tensor:
        """(m,) the values of some units after the bits of the masks are struck."""
        old = self.words.index_select(0, units)
        step = None if self.step is None else self.step.index_select(0, units)
        new = self.fault.act(old, masks)
        value = self.values.index_select(0, units)
        changed = self.fault.word.struck(value, old, new, step).to(value.dtype)
        return torch.where(new == old, value, changed)


@dataclass(frozen=True)
class BitSteps:
    """What each bit of a tensor's words adds to it, found where it is asked for.

    Attributes:
        table: of the words, whose bits' changes add up.
    """

    table: WordTable

    @classmethod
    def of(cls, fault: WordFault, value: Tensor) -> BitSteps:
        """Of a tensor that a fault strikes, with words in as few bytes as hold them."""
        table = fault.table(value)
        width = next((w for w in _WIDTHS if torch.iinfo(w).bits > fault.word.bits), torch.int64)
        return cls(replace(table, words=table.words.to(width)))

    def index_select(self, dim: int, columns: Tensor) -> Tensor:
        """(n,) what some coordinates add; as of a tensor of all of them."""
        masks = self._masks
        units = torch.div(columns, len(masks), rounding_mode="floor")
        which = columns - units * len(masks)
        step = self.table.step
        return self._change(
            self.table.words.index_select(dim, units),
            masks.index_select(dim, which),
            None if step is None else step.index_select(dim, units),
        )

    def of_values(self, part: slice) -> Tensor:
        """(m, bits) what the bits of m values add."""
        step, words = self.table.step, self.table.words
        at = None if step is None else step[part, None]
        if self._of_words is not None and at is not None:
            return (self._of_words[words[part].long()] * at).to(self.table.values.dtype)
        return self._change(words[part, None], self._masks, at)

    def listed(self, part: slice) -> tuple[Tensor, Tensor, Tensor] | None:
        """The words (m,) and the steps (m,) of some values, and what the bits of every word add,
        in steps, (words, bits): so that what is asked of all bits of a value is looked up. None
        where words are many."""
        step = self.table.step
        if self._of_words is None or step is None:
            return None
        return self.table.words[part].long(), step[part], self._of_words

    @cached_property
    def _of_words(self) -> Tensor | None:
        """(words, bits) what the bits of each word add, in steps; None where words are many."""
        fault = self.table.fault
        if not isinstance(fault.word, IntegerFormat) or fault.word.bits > _LISTED:
            return None
        words = torch.arange(1 << fault.word.bits, device=self.table.words.device)[:, None]
        one = torch.ones((), dtype=torch.float64, device=words.device)
        listed: Tensor = fault.word.change(words, fault.act(words, self._masks), one)
        return listed

    @property
    def _masks(self) -> Tensor:
        masks = [as_signed(mask) for mask in self.table.fault.masks]
        return torch.tensor(masks, device=self.table.words.device)

    def _change(self, old: Tensor, masks: Tensor, step: Tensor | None) -> Tensor:
        fault = self.table.fault
        old = old.long()
        changed: Tensor = fault.word.change(old, fault.act(old, masks), step)
        return changed.to(self.table.values.dtype)


def as_signed(mask: int) -> int:
    """A word of 64 bits as torch's int64 holds it."""
    return mask - (1 << 64) if mask >> 63 else mask
