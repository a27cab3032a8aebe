"""Names by which faults are told apart, and how each name tells the coordinates of a site apart.

==========  ===================================================================================
name        what its parts are
==========  ===================================================================================
layer       the site's name, as ``relu1`` or ``fc.weight``
fault       what the command line calls the fault
bit         the number of a struck bit, 0 the least significant; ``4-6`` where neighbours fail
field       of that bit: sign, exponent, mantissa, or magnitude (of integers)
channel     of neurons the feature (where it is known, else the first axis); of weights the first
            axis, which are those that feed it
neuron      the unit, in all of its time steps; of weights, the neuron that they feed
step        the time step or call in which a transient fault strikes
word        the single weight, or the value of a neuron in a step
row         of weights: the index on the first axis, as ``upset="row"`` counts
column      of weights: the index on all other axes, as ``upset="column"`` counts
tile:R      R consecutive weights or neurons
tile:RxC    of weights: R rows by C columns of a crossbar
==========  ===================================================================================

Indices on several axes are written as in fault lists, ``3;17``. A part's key is None where a fault
has no such thing: the bit of a dead neuron, the channel of a core that spans several.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.arguments import nearest, shown
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError
from crashsim.faults import WordFault

Key = str | int | None
Codes = NDArray[np.int64]

_UNKNOWN = 2**62  # units that a coordinate may strike together, where they are not known
_TILE = re.compile(r"tile:([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Split:
    """How one name tells the coordinates of a placement apart.

    Attributes:
        levels: how many numbers there are.
        codes: the number of each of some coordinates, counted from the placement's first.
        key: what a number stands for.
    """

    levels: int
    codes: Callable[[Codes], Codes]
    key: Callable[[int], Key]


def check_names(by: object) -> tuple[str, ...]:
    """The names of parts that a user gave, as a sequence or with commas between.

    Raises:
        ArgumentError: a name that is not known, one twice, or none.
    """
    given = by.split(",") if isinstance(by, str) else by
    if not isinstance(given, Sequence) or not given:
        raise ArgumentError(f"by={shown(by)}; give names such as ('layer', 'bit')")
    names = tuple(name.strip() if isinstance(name, str) else name for name in given)
    for name in names:
        if not isinstance(name, str) or (name not in _NAMED and not _TILE.fullmatch(name)):
            raise ArgumentError(
                f"by: {shown(name)} is no name of parts{nearest(name, _NAMED)}"
                f"; choose among {', '.join(_NAMED)}, "
                "tile:64 (consecutive units) and tile:64x64 (rows by columns)"
            )
    if len(set(names)) < len(names):
        raise ArgumentError(f"by={shown(by)} names one twice; give each once")
    return names


def splits_of(p: Placement, by: Sequence[str]) -> list[Split]:
    place = _Place.of(p)
    found = []
    for name in by:
        if p.fault.is_guarded and name not in ("layer", "fault"):
            found.append(_NONE)  # bits of a block, and those that guards store, act together
            continue
        tile = _TILE.fullmatch(name)
        found.append(_tile(place, *tile.groups()) if tile else _NAMED[name](place))
    if math.prod(split.levels for split in found) >= 2**62:
        raise ArgumentError(
            f"by={','.join(by)}: too many parts at {p.site.name!r} to be told apart; leave out "
            "the names that say the same"
        )
    return found


@dataclass(frozen=True)
class _Place:
    """Where the coordinates of a placement lie: each first strikes a unit, of the units' shape.

    Attributes:
        placement: the fault at its site.
        shape: of the units.
        together: how many units one coordinate strikes, as they lie in memory; 0 for a column.
        masks: bits that the coordinates of a word strike; none where no words are struck.
    """

    placement: Placement
    shape: tuple[int, ...]
    together: int
    masks: tuple[int, ...]

    @classmethod
    def of(cls, p: Placement) -> _Place:
        if isinstance(p.fault, WordFault) and p.fault.is_guarded:
            # Bits that guards store besides stand for no word.
            return cls(p, (), _UNKNOWN, ())
        if isinstance(p.fault, WordFault):
            inner = math.prod(p.shape[1:]) if len(p.shape) > 1 else p.units
            together = {"row": inner, "column": 0 if len(p.shape) > 1 else 1}
            return cls(p, p.shape, together.get(str(p.fault.upset), 1), p.fault.masks)
        is_alone = p.fault.is_of_features or p.size == p.units
        return cls(p, p.shape, 1 if is_alone else p.fault.group_size(p.shape), ())

    @property
    def is_weight(self) -> bool:
        return self.placement.site.kind == "parameter"

    def units(self, local: Codes) -> Codes:
        """(n,) the first unit that each coordinate strikes."""
        number = local // len(self.masks) if self.masks else local
        return number * max(self.together, 1)

    @property
    def steps(self) -> int | None:
        """The axis of the shape that is time, where steps are struck one by one."""
        axis = self.placement.site.steps
        return None if axis is None or axis in self.placement.tied else self._kept(axis)

    @property
    def features(self) -> int | None:
        """The axis of the shape that tells channels apart."""
        axis = self.placement.site.features
        if self.is_weight:
            return 0 if self.shape else None
        if axis is not None and axis not in self.placement.tied:
            return self._kept(axis)
        others = [a for a in range(len(self.shape)) if a != self.steps]
        return others[0] if others else None

    def _kept(self, axis: int) -> int:
        """An axis of the site's shape, as one of that of the units."""
        return axis - sum(1 for tied in self.placement.tied if tied < axis)

    def along(self, axis: int) -> Split:
        """The index on an axis."""
        inner, count = math.prod(self.shape[axis + 1 :]), self.shape[axis]
        if not self._has_one(inner):
            return _NONE
        return Split(count, lambda local: self.units(local) // inner % count, int)

    def _has_one(self, inner: int) -> bool:
        """Whether what each coordinate strikes lies within one of so many units."""
        if self.together == 0:
            return inner == 1 and len(self.shape) < 2
        return inner % self.together == 0


def _nothing(local: Codes) -> Codes:
    return np.zeros(len(local), dtype=np.int64)


_NONE = Split(1, _nothing, lambda code: None)


def _always(key: Key) -> Split:
    return Split(1, _nothing, lambda code: key)


def _layer(place: _Place) -> Split:
    site = place.placement.site
    return _always(site.units or site.name)  # of the same neurons, in whatever call


def _fault(place: _Place) -> Split:
    return _always(place.placement.fault.name)


def _bit(place: _Place) -> Split:
    if not place.masks or place.placement.fault.upset == "word":  # type: ignore[attr-defined]
        return _NONE
    masks = place.masks

    def key(code: int) -> Key:
        low, high = (masks[code] & -masks[code]).bit_length() - 1, masks[code].bit_length() - 1
        return low if low == high else f"{low}-{high}"

    return Split(len(masks), lambda local: local % len(masks), key)


def _field(place: _Place) -> Split:
    """Of the highest bit that is struck."""
    fault = place.placement.fault
    if not place.masks or not isinstance(fault, WordFault) or fault.upset == "word":
        return _NONE
    of_bit = {bit: name for name, bits in fault.word.fields.items() for bit in bits}
    names = [of_bit.get(mask.bit_length() - 1) for mask in place.masks]
    levels = list(dict.fromkeys(names))
    table = np.array([levels.index(name) for name in names], dtype=np.int64)
    return Split(len(levels), lambda local: table[local % len(table)], lambda code: levels[code])


def _channel(place: _Place) -> Split:
    return _NONE if place.features is None else place.along(place.features)


def _neuron(place: _Place) -> Split:
    if place.is_weight:
        return _channel(place)
    steps = place.steps
    if place.together != 1:
        return _NONE
    if steps is None:
        return _word(place)
    inner, count = math.prod(place.shape[steps + 1 :]), place.shape[steps]
    rest = place.shape[:steps] + place.shape[steps + 1 :]

    def codes(local: Codes) -> Codes:
        units = place.units(local)
        return units // (inner * count) * inner + units % inner

    return Split(math.prod(rest), codes, lambda code: _index(code, rest))


def _step(place: _Place) -> Split:
    p = place.placement
    if p.fault.duration != "transient" or p.site.kind == "parameter":
        return _NONE
    if place.steps is not None and p.site.shape[p.site.steps or 0] > 1:
        return place.along(place.steps)
    return _always(p.site.call) if p.site.units or p.site.call else _NONE


def _word(place: _Place) -> Split:
    if place.together != 1:
        return _NONE
    count = math.prod(place.shape)
    return Split(count, place.units, lambda code: _index(code, place.shape))


def _row(place: _Place) -> Split:
    if not place.is_weight or not place.shape:
        return _NONE
    return place.along(0) if len(place.shape) > 1 else _always(0)


def _column(place: _Place) -> Split:
    if not place.is_weight or place.together > 1:
        return _NONE
    count = math.prod(place.shape[1:]) if len(place.shape) > 1 else math.prod(place.shape)
    return Split(count, lambda local: place.units(local) % count, int)


def _tile(place: _Place, rows: str, columns: str | None) -> Split:
    height, width = int(rows), int(columns or 1)
    if columns is None:
        if place.together == 0 or height % place.together:
            return _NONE
        count = -(-math.prod(place.shape) // height)
        return Split(count, lambda local: place.units(local) // height, int)
    if not place.is_weight or place.together != 1 or not place.shape:
        return _NONE
    inner = math.prod(place.shape[1:]) if len(place.shape) > 1 else place.shape[0]
    across = -(-inner // width)
    down = -(-(math.prod(place.shape) // inner) // height)

    def codes(local: Codes) -> Codes:
        row, column = np.divmod(place.units(local), inner)
        found: Codes = row // height * across + column // width
        return found

    return Split(down * across, codes, lambda code: ";".join(map(str, divmod(code, across))))


def _index(code: int, shape: tuple[int, ...]) -> Key:
    """A flat index as fault lists write it."""
    if len(shape) < 2:
        return code
    return ";".join(str(int(i)) for i in np.unravel_index(code, shape))


_NAMED: Mapping[str, Callable[[_Place], Split]] = {
    "layer": _layer,
    "fault": _fault,
    "bit": _bit,
    "field": _field,
    "channel": _channel,
    "neuron": _neuron,
    "step": _step,
    "word": _word,
    "row": _row,
    "column": _column,
}
