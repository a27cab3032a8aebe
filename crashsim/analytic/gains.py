"""Gains of many coordinates: dF/de for every output of each input, factored, kept or made anew.

A gain is the slope of an output by a value, times what the coordinate moves that value by. Slopes
are kept in float32 where they fit the memory; else each input's are made anew whenever they are
read, and derivatives along a sample's faults are taken forwards, without gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from crashsim_theory import BERNOULLI, NORMAL
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from crashsim.analytic.precision import double_precision
from crashsim.analytic.weighing import BLOCK, Weighings, zeros_of
from crashsim.arrays import Floats
from crashsim.coordinates.points import Listed, Points, Written, is_no_fault
from crashsim.errors import NotApplicableError
from crashsim.injection.site_changes import changes_by_placement
from crashsim.injection.slopes import Point, Slope, Values
from crashsim.results.estimate import MOST_OUTPUTS
from crashsim.space import FaultSpace
from crashsim.working import worked

MEMORY = 2**31  # bytes, unless another number is asked for
DENSE = 2**21  # B x K x N gains, up to which all are written out in double precision
MOST_DENSE = 2**27  # the same, for laws and counts that factored gains do not serve
KEPT = 0.5  # share of the memory that kept slopes may take: what reads them takes the rest
_TOGETHER = 16  # inputs of a pass
_TURNED = 2**11  # values whose slopes are laid side by side at a time
_AT_A_TIME = 2**25  # slopes of inputs that share a pass

At = Literal["zero", "mean"]
InputSlopes = Sequence[NDArray[np.float32]]  # for each placement, (size, R)


@dataclass(frozen=True, eq=False)
class Gains:
    """Gains of R combinations of outputs for every input.

    Attributes:
        space: the model, its inputs and faults.
        at: the point: no fault, or the mean point.
        readouts: (R, K) the combinations; or of each input its own, (B, R, K).
        kept: for each placement, (size, B, R) slopes; None where they are made anew.
    """

    space: FaultSpace
    at: At
    readouts: Floats
    kept: Sequence[NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, space: FaultSpace, at: At, memory: int, readouts: Floats | None = None) -> Gains:
        """Kept where they fit in half the memory, in bytes.

        Args:
            readouts: (R, K) combinations of outputs, or (B, R, K) of each input its own; by
                default every output.

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        if not space.has_derivatives:
            raise NotApplicableError(space.why_no_derivatives)
        rows = np.eye(space.K) if readouts is None else readouts
        gains = cls(space, at, rows)
        if kept_bytes(space, gains.count) > KEPT * memory:
            return gains
        kept = [np.empty((v.size, space.B, gains.count), np.float32) for v in gains.values]
        for where, slopes in gains._made():
            for into, slope in zip(kept, slopes, strict=True):
                for low in range(0, len(into), _TURNED):  # what a processor keeps at hand
                    part = slice(low, low + _TURNED)
                    into[part, where] = np.moveaxis(slope[..., part], -1, 0)
                worked(0.0)
        return replace(gains, kept=kept)

    @property
    def count(self) -> int:
        """R, the number of combinations of each input."""
        return int(self.readouts.shape[-2])

    @property
    def values(self) -> list[Values]:
        """What the coordinates of each placement move."""
        return self.space.slopes.values

    @property
    def _point(self) -> Point:
        if self.at == "zero":
            return [0.0] * len(self.values)
        return [v.placement.fault.mean for v in self.values]

    @cached_property
    def _moved(self) -> list[Tensor]:
        """The values at the point."""
        return self.space.slopes.moved(self._point)

    def each(self) -> Iterator[tuple[int, InputSlopes]]:
        """The slopes of one input after the other."""
        if self.kept is not None:
            for b in range(self.space.B):
                yield b, [kept[:, b] for kept in self.kept]
            return
        for where, slopes in self._made():
            for i, b in enumerate(range(where.start, where.stop)):
                yield b, [slope[i].T for slope in slopes]

    def rows(self) -> Iterator[tuple[slice, int, list[Slope | None]]]:
        """The slopes of one combination of a few inputs after the other, made anew: nothing is
        copied that is read but once.

        Yields:
            the inputs, the combination, and (b, size) for each placement; None where all are 0.
        """
        for where in self._batches():
            rows = self.readouts if self.readouts.ndim == 2 else self.readouts[where]
            inputs = self.space.examples.part(where.start, where.stop)
            each = self.space.slopes.each(inputs, self._moved, rows)
            for row, slopes in enumerate(each):
                yield where, row, slopes

    def of_input(self, b: int) -> InputSlopes:
        """The slopes of one input."""
        if self.kept is not None:
            return [kept[:, b] for kept in self.kept]
        return [slope[0].T for slope in self._slopes(b, b + 1)]

    def _slopes(self, low: int, high: int) -> list[NDArray[np.float32]]:
        inputs = self.space.examples.part(low, high)
        rows = self.readouts if self.readouts.ndim == 2 else self.readouts[low:high]
        return self.space.slopes.at(inputs, self._moved, rows)

    def _made(self) -> Iterator[tuple[slice, list[NDArray[np.float32]]]]:
        """The slopes (b, R, size) of a few inputs at a time."""
        for where in self._batches():
            yield where, self._slopes(where.start, where.stop)

    def _batches(self) -> list[slice]:
        """The inputs that share passes."""
        space = self.space
        each = self.count * space.slopes.size
        batch = max(1, _AT_A_TIME // each) if space.slopes.shares_passes else 1
        return [slice(low, min(low + batch, space.B)) for low in range(0, space.B, batch)]

    def along(self, points: Points) -> Floats:
        """sum_i (e_i - m_i) g_i at each point, (S, B, R): m is the mean point."""
        moved = np.zeros((points.count, self.space.B, self.count)) - self.sums.mean
        if self.kept is not None:
            every = [k.reshape(len(k), -1) for k in self.kept]
            return moved + self._with(points, every).reshape(moved.shape)
        if self.space.slopes.has_forward_derivatives:
            return moved + self._forwards(points)
        for b, slopes in self.each():
            moved[:, b] += self._with(points, slopes)
        return moved

    def _with(self, points: Points, every: InputSlopes) -> Floats:
        """sum_i e_i g_i at each point, (S, X), of slopes (size, X) for each placement."""
        found = np.zeros((points.count, every[0].shape[1]))
        changes = changes_by_placement(points, self.space.placements)
        for v, change, slopes in zip(self.values, changes, every, strict=True):
            base = points.base[v.placement.start : v.placement.stop]
            if not is_no_fault(base):
                at_base = (base.reshape(v.size, v.bits) * v.displacements()).sum(1)
                found += at_base @ slopes
            found += _moved(v, change, base, slopes)
        return found

    @cached_property
    def sums(self) -> Contracted:
        """What first order needs of them, from one pass through all."""
        return _contracted(self)

    @cached_property
    def shift(self) -> Floats:
        """(B, R) F at the point less F(0), in double precision where the model allows it."""
        return self._combined(self.shift_of_outputs)

    @cached_property
    def shift_of_outputs(self) -> Floats:
        """The same for each output, (B, K)."""
        known = _SHIFTS.setdefault(self.space, {})
        if self.at not in known:
            wide = double_precision(self.space)
            known[self.at] = np.asarray(_outputs_at(wide, self._point) - wide.clean())
        return known[self.at]

    def _forwards(self, points: Points) -> Floats:
        """sum_i e_i g_i by derivatives along each point's faults, (S, B, R)."""
        space = self.space
        found = np.empty((points.count, space.B, self.count))
        for s in range(points.count):
            one = points.part(s, s + 1)
            changes = changes_by_placement(one, space.placements)
            moves = []
            for v, change in zip(self.values, changes, strict=True):
                base = one.base[v.placement.start : v.placement.stop]
                moves.append(_by_value(v, change, base))
            slope = space.slopes.along(space.examples, self._moved, moves)
            found[s] = self._combined(slope)
        return found

    def _combined(self, outputs: Floats) -> Floats:
        """(B, R) the combinations of outputs (B, K)."""
        if self.readouts.ndim == 2:
            return np.asarray(outputs @ self.readouts.T)
        return np.asarray((self.readouts @ outputs[..., None])[..., 0])


# Of each space that lives, (B, K) at a point: a pass in double precision takes long.
_SHIFTS: WeakKeyDictionary[FaultSpace, dict[At, Floats]] = WeakKeyDictionary()


def are_dense(space: FaultSpace) -> bool:
    """Whether gains are written out for every coordinate, and not factored."""
    size = space.B * space.K * space.N
    return size <= (DENSE if are_served(space) else MOST_DENSE)


def are_served(space: FaultSpace) -> bool:
    """Whether factored gains serve all of theory: faults strike independently, by known laws."""
    laws = {p.fault.law for p in space.placements}
    return not space.counts and all(law in (BERNOULLI, NORMAL) for law in laws)


def kept_bytes(space: FaultSpace, readouts: int) -> int:
    """What the slopes of so many combinations of outputs take, if they are kept."""
    return 4 * space.B * readouts * space.slopes.size


def _outputs_at(space: FaultSpace, point: Point) -> Floats:
    """(B, K) F at a point, a few inputs at a time."""
    moved = space.slopes.moved(point)
    parts = [space.examples.part(b, b + _TOGETHER) for b in range(0, space.B, _TOGETHER)]
    return np.concatenate([space.slopes.outputs(part, moved) for part in parts])


def _moved(
    v: Values, change: Listed | Written, base: Floats, slopes: NDArray[np.float32]
) -> Floats:
    """(S, B R) what changes of a placement's coordinates add."""
    if isinstance(change, Written):
        e = (change.e - base).reshape(-1, v.size, v.bits)
        return np.asarray(np.einsum("snb,nb->sn", e, v.displacements()) @ slopes)
    columns = np.asarray(change.columns, dtype=np.int64)
    steps = (change.values - base[columns]) * v.moved_by(columns)
    n = len(columns)
    sums = sparse.csr_array((steps, np.arange(n), change.edges), (len(change.edges) - 1, n))
    return np.asarray(sums @ slopes[columns // v.bits].astype(np.float64))


def _by_value(v: Values, change: Listed | Written, base: Floats) -> Floats:
    """(size,) by how much a single point moves each value."""
    if isinstance(change, Written):
        return np.asarray((change.e.reshape(v.size, v.bits) * v.displacements()).sum(1))
    moves = np.zeros(v.size)
    if not is_no_fault(base):
        moves += (base.reshape(v.size, v.bits) * v.displacements()).sum(1)
    columns = np.asarray(change.columns, dtype=np.int64)
    np.add.at(moves, columns // v.bits, (change.values - base[columns]) * v.moved_by(columns))
    return moves


@dataclass(frozen=True)
class Contracted:
    """What first order needs of gains g.

    Attributes:
        mean: (B, R) sum m g.
        variance: (B, R) sum k2 g^2.
        covariance: (B, R, R) sum k2 g g'; None beyond 64 combinations.
        of_sum: (B,) sum k2 (g summed over combinations)^2.
        spread, fourth, squares: (G, B, R) sum k2 g^2, sum k4 g^4 and sum (k2 g^2)^2 of each group
            of coordinates with about the same chance to vary, the rarest first.
        by_value: for each placement, (size,) squared slopes summed over inputs and outputs; in
            single precision of very many, as the next.
        second: for each placement, (size,) what these weigh in the variance.
    """

    mean: Floats
    variance: Floats
    covariance: Floats | None
    of_sum: Floats
    spread: Floats
    fourth: Floats
    squares: Floats
    by_value: list[NDArray[Any]]
    second: list[NDArray[Any]]


def _contracted(gains: Gains) -> Contracted:
    b, r = gains.space.B, gains.count
    mean, variance = np.zeros((2, b, r))
    of_sum = np.zeros(b)
    covariance = np.zeros((b, r, r)) if r <= MOST_OUTPUTS else None
    weighings = Weighings.of(gains.values)
    groups = np.zeros((3, len(weighings.octaves), b, r))
    by_value, second = zeros_of(gains.values), zeros_of(gains.values)
    for row, slopes in gains.each():
        for number, slope in enumerate(slopes):
            for low in range(0, len(slope), BLOCK):
                worked(0.0)
                part, w = slice(low, low + BLOCK), weighings.at(number, low)
                g = slope[part].astype(np.float64)
                mean[row] += w.first @ g
                of_sum[row] += w.second @ g.sum(1) ** 2
                if covariance is not None:
                    covariance[row] += (g * w.second[:, None]).T @ g
                g *= g
                variance[row] += w.second @ g
                by_value[number][part] += g.sum(1)
                second[number][part] = w.second
                fourth = g * g
                for octave, (own, *higher) in w.groups.items():
                    at = weighings.octaves.index(octave)
                    groups[0, at, row] += own @ g
                    groups[1, at, row] += higher[0] @ fourth
                    groups[2, at, row] += higher[1] @ fourth
    return Contracted(
        mean, variance, covariance, of_sum, groups[0], groups[1], groups[2], by_value, second
    )
