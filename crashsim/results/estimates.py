"""Estimates: all numbers of a score, kept as arrays and read as single estimates.

A network with many outputs has hundreds of thousands of numbers. They are kept as arrays over
inputs and outputs (``EstimateArray``); an ``Estimate`` is made of one when it is asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.results.estimate import TOO_FEW, Estimate, Interval, Kind, Quantity, Values


@dataclass(frozen=True, eq=False)
class EstimateArray:
    """The estimates of one method and quantity, as arrays over inputs and outputs.

    Attributes:
        method, quantity, kind, confidence, level, note: as ``Estimate``.
        each_input: it has a row for each input; else its numbers are averaged over the inputs.
        each_output: it has a column for each output; else its numbers are of output ``"all"``.
        outputs: which outputs its columns are, ascending; None: every one.
        values: (B, K), (B,), (K,) or (): ``value``, and with intervals ``low``, ``high``,
            ``worth`` (NaN where that says nothing) and ``enough``.
    """

    method: str
    quantity: str
    kind: Kind
    values: Values
    each_input: bool
    each_output: bool
    confidence: float | None = None
    level: float | None = None
    note: str | None = None
    outputs: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.values.value.size)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.value.shape

    @property
    def value(self) -> Floats:
        return self.values.value

    @property
    def low(self) -> Floats | None:
        return getattr(self.values, "low", None)

    @property
    def high(self) -> Floats | None:
        return getattr(self.values, "high", None)

    @property
    def worth(self) -> Floats | None:
        return getattr(self.values, "worth", None)

    @property
    def enough(self) -> Any:
        return getattr(self.values, "enough", None)

    def place(self, at: int) -> tuple[int | Literal["all"], int | Literal["all"]]:
        """The input and output of the number at this place, counted row by row."""
        where = [int(i) for i in np.unravel_index(at, self.shape)] if self.shape else []
        return (
            where.pop(0) if self.each_input else "all",
            int(self.columns[where.pop(0)]) if self.each_output else "all",
        )

    @property
    def columns(self) -> NDArray[np.int64]:
        """Which outputs its columns are; empty where it has none."""
        if self.outputs is not None or not self.each_output:
            return np.zeros(0, np.int64) if self.outputs is None else self.outputs
        return np.arange(self.shape[-1])

    def at(self, at: int) -> Estimate:
        """The estimate at this place, counted row by row."""
        row, output = self.place(at)
        values, told = self.values, self.note
        low = high = worth = None
        if isinstance(values, Interval):
            low, high = float(values.low.flat[at]), float(values.high.flat[at])
            worth = math.nan if values.worth is None else float(values.worth.flat[at])
            worth = worth if math.isfinite(worth) else None
            if values.enough is not None and not values.enough.flat[at]:
                told = "; ".join(filter(None, (told, TOO_FEW)))
        return Estimate(
            self.method,
            self.quantity,
            row,
            output,
            float(values.value.flat[at]),
            low,
            high,
            self.kind,
            confidence=self.confidence,
            level=self.level,
            note=told,
            worth=worth,
        )

    def find(self, row: int | str, output: int | str) -> Estimate | None:
        """The estimate of this input and output, or None."""
        rows, columns = self.size
        at_row = _at(row, self.each_input, rows)
        if self.outputs is not None and isinstance(output, int):
            output = int(np.searchsorted(self.outputs, output)) if output in self.outputs else -1
        at_column = _at(output, self.each_output, columns)
        if at_row is None or at_column is None:
            return None
        return self.at(at_row * columns + at_column)

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of rows and columns; 1 where there are none of their own."""
        return (
            self.shape[0] if self.each_input else 1,
            self.shape[-1] if self.each_output else 1,
        )


def _at(index: int | str, each: bool, count: int) -> int | None:
    """The place of an index among so many; None where there is none such."""
    if not each:
        return 0 if index == "all" else None
    return index if isinstance(index, int) and 0 <= index < count else None


Part = EstimateArray | Estimate


class Estimates(Sequence[Estimate]):
    """Estimates in order: a sequence that keeps arrays, and makes each estimate when asked.

    Two are added as lists are. Compared with a list, it is equal where its estimates are.

    Args:
        parts: arrays and single estimates.

    Attributes:
        parts: the same.
    """

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)

    @property
    def arrays(self) -> list[EstimateArray]:
        """The arrays alone."""
        return [part for part in self.parts if isinstance(part, EstimateArray)]

    @cached_property
    def _ends(self) -> list[int]:
        """Numbers of estimates up to the end of each part."""
        sizes = [len(part) if isinstance(part, EstimateArray) else 1 for part in self.parts]
        return [int(end) for end in np.cumsum(sizes)]

    def __len__(self) -> int:
        return self._ends[-1] if self.parts else 0

    def __iter__(self) -> Iterator[Estimate]:
        for part in self.parts:
            if isinstance(part, EstimateArray):
                yield from map(part.at, range(len(part)))
            else:
                yield part

    @overload
    def __getitem__(self, index: int) -> Estimate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Estimate]: ...
    def __getitem__(self, index: int | slice) -> Estimate | list[Estimate]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"estimate {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, at, side="right"))
        part = self.parts[number]
        return part if isinstance(part, Estimate) else part.at(at - self._ends[number] + len(part))

    def __add__(self, other: Iterable[Estimate]) -> Estimates:
        return Estimates([*self.parts, *_parts(other)])

    def __radd__(self, other: Iterable[Estimate]) -> Estimates:
        return Estimates([*_parts(other), *self.parts])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Estimates | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Estimates({len(self)} of {len(self.of)} methods and quantities)"

    @cached_property
    def of(self) -> dict[tuple[str, str], list[Part]]:
        """The parts by method and quantity, in order."""
        found: dict[tuple[str, str], list[Part]] = defaultdict(list)
        for part in self.parts:
            found[part.method, part.quantity].append(part)
        return dict(found)

    def without_averages(self, quantities: Collection[str]) -> Estimates:
        """Those that are no average over inputs of one of these quantities."""

        def is_average(part: Part) -> bool:
            if isinstance(part, EstimateArray):
                return not part.each_input
            return part.input == "all"

        parts = self.parts
        return Estimates(p for p in parts if p.quantity not in quantities or not is_average(p))

    def by(self, method: str) -> Estimates:
        """Those of one method."""
        return Estimates(part for part in self.parts if part.method == method)

    @cached_property
    def _single(self) -> dict[tuple[str, str, int | str, int | str], tuple[int, Estimate]]:
        return {
            (e.method, e.quantity, e.input, e.output): (i, e)
            for i, e in enumerate(self.parts)
            if isinstance(e, Estimate)
        }

    @cached_property
    def _arrays(self) -> dict[tuple[str, str], list[tuple[int, EstimateArray]]]:
        """Arrays by method and quantity, with their places, the last first."""
        found: dict[tuple[str, str], list[tuple[int, EstimateArray]]] = defaultdict(list)
        for i in reversed(range(len(self.parts))):
            if isinstance(part := self.parts[i], EstimateArray):
                found[part.method, part.quantity].append((i, part))
        return dict(found)

    def find(
        self, method: str, quantity: str, input: int | str = "all", output: int | str = "all"
    ) -> Estimate | None:
        """The estimate with these names, or None; of several (quantiles), the last."""
        last, found = self._single.get((method, quantity, input, output), (-1, None))
        for i, array in self._arrays.get((method, quantity), ()):
            if i > last and (there := array.find(input, output)) is not None:
                return there
        return found

    def averages(self, method: str, quantity: str) -> tuple[NDArray[np.int64], Floats]:
        """Outputs that a method has an average over inputs of, and these averages, each (n,)."""
        outputs, values = [np.zeros(0, np.int64)], [np.zeros(0)]
        for part in self.of.get((method, quantity), ()):
            if isinstance(part, Estimate):
                if part.input == "all" and isinstance(part.output, int):
                    outputs.append(np.array([part.output]))
                    values.append(np.array([part.value]))
            elif part.each_output and not part.each_input:
                outputs.append(part.columns)
                values.append(part.value)
        return np.concatenate(outputs), np.concatenate(values)

    def inputs(self) -> dict[str, int]:
        """By method, the number of inputs of which it has estimates of their own."""
        rows: dict[str, set[int]] = defaultdict(set)
        most: dict[str, int] = defaultdict(int)
        for part in self.parts:
            if isinstance(part, EstimateArray):
                most[part.method] = max(most[part.method], part.size[0] * part.each_input)
            elif isinstance(part.input, int):
                rows[part.method].add(part.input)
        methods = rows.keys() | most.keys()
        return {m: most[m] + sum(row >= most[m] for row in rows[m]) for m in methods}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, handler(list[Estimate]))


def _parts(estimates: Iterable[Estimate]) -> Iterable[Part]:
    return estimates.parts if isinstance(estimates, Estimates) else estimates


def estimates_of(
    method: str,
    quantity: str,
    kind: Kind,
    *,
    per_input: Values | None = None,
    pooled: Values | None = None,
    total: Values | None = None,
    confidence: float | None = None,
    level: float | None = None,
    note: str | None = None,
    outputs: NDArray[np.int64] | None = None,
) -> Estimates:
    """The estimates of one method and quantity.

    Args:
        per_input: (B, K), or (B,) for what is not specific to an output.
        pooled: averaged over inputs, (K,), or () for what is not specific to an output.
        outputs: which outputs the columns of both are, ascending; None: every one.
        total: averaged over inputs, for output ``"all"``, ().
    """
    found = []
    for values, rows in ((per_input, True), (pooled, False), (total, False)):
        if values is not None:
            columns = values.value.ndim > rows
            facts = (confidence, level, note, outputs if columns else None)
            found.append(EstimateArray(method, quantity, kind, values, rows, columns, *facts))
    return Estimates(found)


def deterministic(
    method: str,
    quantity: Quantity,
    kind: Kind,
    values: Floats,
    *,
    level: float | None = None,
    note: str | None = None,
) -> Estimates:
    """Estimates without intervals from (B, K) or (B,) values, pooled by averaging over inputs.

    The pooled variance over all outputs is the sum over outputs; the pooled tail over all outputs
    is the union bound over outputs.
    """
    pooled = values.mean(0)
    total = None
    if values.ndim == 2 and quantity == "variance":
        total = Values(np.asarray(pooled.sum()))
    elif values.ndim == 2 and quantity == "tail":
        total = Values(np.asarray(np.minimum(values.sum(1), 1.0).mean()))
        if values.shape[1] > 1 and kind == "exact":
            total = None  # a union of exact tails is no longer exact
    found = estimates_of(
        method,
        quantity,
        kind,
        per_input=Values(values),
        pooled=Values(pooled),
        level=level,
        note=note,
    )
    if quantity == "tail":
        note = "; ".join(filter(None, (note, "summed over outputs")))
    return found + estimates_of(method, quantity, kind, total=total, level=level, note=note)


_OF_OUTPUTS = ("mean", "variance", "tail", "quantile")  # quantities that each output has


def _columns(array: EstimateArray) -> NDArray[np.int64]:
    """Where in a table its columns go; the first, where it has none of its own."""
    return array.columns if array.each_output else np.zeros(1, np.int64)


def values_of(
    estimates: Iterable[Estimate],
    method: str,
    quantity: str,
    field: str = "value",
    shape: tuple[int, ...] | None = None,
) -> Floats | None:
    """A field of the per-input estimates of a method and quantity as (B, K), or (B, 1).

    None where there are none; NaN where a single one is missing or has no interval. The shape is
    the smallest that holds them; of a shape that is given, what it holds. What is of all outputs
    together (a total variance) is no number of the first.
    """
    all_of = estimates if isinstance(estimates, Estimates) else Estimates(estimates)
    parts = all_of.of.get((method, quantity), [])
    whole = [p for p in parts if isinstance(p, EstimateArray) and p.each_input]
    single = [p for p in parts if isinstance(p, Estimate) and isinstance(p.input, int)]
    if quantity in _OF_OUTPUTS:
        whole = [array for array in whole if array.each_output]
        single = [e for e in single if isinstance(e.output, int)]
    if not whole and not single:
        return None
    places = [(cast(int, e.input), e.output if isinstance(e.output, int) else 0) for e in single]
    ends = [(array.size[0], int(_columns(array)[-1]) + 1) for array in whole]
    ends += [(row + 1, column + 1) for row, column in places]
    table = np.full(shape or (max(r for r, _ in ends), max(c for _, c in ends)), np.nan)
    for array in whole:
        numbers = getattr(array, field)
        if numbers is not None:
            rows, columns = min(array.size[0], len(table)), _columns(array)
            fit = columns < table.shape[1]
            table[:rows, columns[fit]] = numbers.reshape(array.size)[:rows, fit]
    for e, place in zip(single, places, strict=True):
        number = getattr(e, field)
        if any(at >= most for at, most in zip(place, table.shape, strict=True)):
            continue
        table[place] = np.nan if number is None else number
    return table
