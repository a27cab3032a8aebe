"""The linear surrogate of Delta with more coordinates than a dense array of gains holds.

It answers what ``crashsim_theory.LinearSurrogate`` does, from slopes by value (``gains``): mean and
variance from one pass through them; tails from a few thousand cells in which the gains of each
input are gathered once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from crashsim_theory import BERNOULLI, NORMAL
from crashsim_theory.tails.compressed import CompressedRows, compress
from crashsim_theory.tails.estimates import (
    RowFunction,
    chernoff_tail,
    deciding_strikes,
    saddlepoint_tail,
    solve_tilt,
)
from crashsim_theory.tails.gain_chunks import GainChunk
from numpy.typing import NDArray

from crashsim.analytic.gains import Gains, InputSlopes
from crashsim.arrays import Floats
from crashsim.errors import NotApplicableError
from crashsim.injection.slopes import Values
from crashsim.working import worked

Side = Literal["upper", "lower", "both"]
_TOGETHER = 2**17  # values of a chunk
_TAILS = 256  # solved together
_RATES = 64  # different probabilities, up to which each has cells of its own


class Chunks(list[GainChunk]):
    """Chunks that tell of it as they are read, one after the other."""

    def __iter__(self) -> Iterator[GainChunk]:
        for chunk in super().__iter__():
            worked(0.0)
            yield chunk


@dataclass(frozen=True, eq=False)
class FactoredSurrogate:
    """L = shift + sum_i e_i g_i, of combinations of outputs of some inputs.

    Attributes:
        gains: of R combinations of outputs for every input.
        shift: (...) L at e = 0.
        inputs: (...) of which input each is.
        rows: (..., R) the combination of the gains' combinations.
    """

    gains: Gains
    shift: Floats
    inputs: NDArray[np.int64]
    rows: Floats

    @classmethod
    def of(cls, gains: Gains, shift: Floats) -> FactoredSurrogate:
        """Of every input and combination of the gains, (B, R)."""
        b, r = shift.shape
        inputs = np.broadcast_to(np.arange(b)[:, None], (b, r))
        return cls(gains, shift, inputs, np.broadcast_to(np.eye(r), (b, r, r)))

    def part(self, where: Any) -> FactoredSurrogate:
        """Some of them, chosen as by numpy's indexing of their leading axes."""
        shift, inputs = np.asarray(self.shift[where]), np.asarray(self.inputs[where])
        return FactoredSurrogate(self.gains, shift, inputs, self.rows[where])

    def combined(self, weights: Floats, shift: Floats) -> FactoredSurrogate:
        """Of combinations of each input's surrogates.

        Args:
            weights: (B, Q, R).
            shift: (B, Q) of them.
        """
        inputs = np.broadcast_to(self.inputs[:, :1], shift.shape)
        return FactoredSurrogate(self.gains, shift, inputs, weights @ self.rows)

    @property
    def negative(self) -> FactoredSurrogate:
        """The surrogates -L."""
        return FactoredSurrogate(self.gains, -self.shift, self.inputs, -self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading axes (...)."""
        return self.shift.shape

    @cached_property
    def mean(self) -> Floats:
        """E L, (...)."""
        sums: Floats = self.gains.sums.mean[self.inputs]
        return np.asarray(self.shift + (self.rows * sums).sum(-1))

    @cached_property
    def variance(self) -> Floats:
        """Var L, (...)."""
        sums = self.gains.sums
        if sums.covariance is not None:
            of_inputs = sums.covariance[self.inputs]
            found = np.einsum("...r,...rs,...s->...", self.rows, of_inputs, self.rows)
            return np.asarray(np.maximum(found, 0.0))
        total = np.zeros(self.shift.size)
        for slopes, chosen, rows in self._by_input():
            for second, slope in zip(sums.second, slopes, strict=True):
                total[chosen] += second @ (slope @ rows.T) ** 2
        return total.reshape(self.shape)

    @property
    def without_cgf(self) -> list[str]:
        """The names of the laws whose tails cannot be had here."""
        laws = (v.placement.fault.law for v in self.gains.values)
        return list(dict.fromkeys(law.name for law in laws if law not in (BERNOULLI, NORMAL)))

    def chernoff(self, eps: Floats | float, side: Side = "both") -> Floats:
        """Chernoff's bound on P(L >= eps), P(L <= -eps) or P(|L| >= eps), (..., *E)."""
        return self._tail(np.asarray(eps, dtype=np.float64), side, chernoff_tail)

    def saddlepoint(self, eps: Floats | float, side: Side = "both") -> Floats:
        """The Lugannani-Rice estimate of the tail, (..., *E)."""
        return self._tail(np.asarray(eps, dtype=np.float64), side, saddlepoint_tail)

    def tilt(self, eps: Floats | float) -> Floats:
        """The t with K'(t) = eps, (...); infinite beyond the ends of the support.

        Args:
            eps: broadcasts to (...).
        """
        return self._at(eps, solve_tilt)

    def deciding_strikes(self, eps: Floats | float) -> Floats:
        """About how many strikes bring L to eps, (...): few, where few faults decide."""
        return self._at(eps, deciding_strikes)

    def _at(self, eps: Floats | float, solve: RowFunction) -> Floats:
        at = np.broadcast_to(eps, self.shape).reshape(-1)
        found = solve(self.compressed, np.arange(at.size), at.astype(np.float64))
        return np.asarray(found.reshape(self.shape))

    @cached_property
    def tilts_to_zero(self) -> Floats:
        """(...) the tilts at which the mean is 0, as a margin's is where the class changes."""
        return self.tilt(0.0)

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], Chunks]]:
        """Numbers of surrogates of one input, in flat order, and the chunks of their gains.

        Raises:
            NotApplicableError: a law is neither Bernoulli nor normal.
        """
        for slopes, chosen, rows in self._by_input():
            found = Chunks()
            for v, slope in zip(self.gains.values, slopes, strict=True):
                fault = v.placement.fault
                if fault.law == NORMAL:
                    continue
                p = np.asarray(fault.rate)
                for low in range(0, v.size, _TOGETHER):
                    part = slice(low, low + _TOGETHER)
                    of_rows = (slope[part] @ rows.T.astype(np.float32)).T
                    own = p if p.ndim == 0 else p.reshape(v.size, v.bits)[part]
                    found.append(GainChunk(of_rows, _displacements(v, part), own))
                    worked(0.0)
            yield chosen, found

    @property
    def first_columns(self) -> list[int]:
        """The coordinate with which each of an input's chunks begins."""
        return [
            v.placement.start + low * v.bits
            for v in self.gains.values
            if v.placement.fault.law != NORMAL
            for low in range(0, v.size, _TOGETHER)
        ]

    def _by_input(self) -> Iterator[tuple[InputSlopes, NDArray[np.int64], Floats]]:
        """Each input's slopes, numbers of its surrogates in flat order, and their rows."""
        inputs = self.inputs.reshape(-1)
        rows = self.rows.reshape(len(inputs), -1)
        if len(np.unique(inputs)) == self.gains.space.B:
            each = self.gains.each()
        else:
            each = ((int(b), self.gains.of_input(int(b))) for b in np.unique(inputs))
        for b, slopes in each:
            chosen = np.flatnonzero(inputs == b)
            yield slopes, chosen, rows[chosen]

    @cached_property
    def compressed(self) -> CompressedRows:
        """The surrogates' gains in cells, in flat order.

        Raises:
            NotApplicableError: a law without tails here, or too many different rates.
        """
        if unknown := self.without_cgf:
            raise NotApplicableError(
                f"for Bernoulli and normal faults with as many coordinates; {unknown[0]!r} is "
                "neither"
            )
        flat, parts, order = self.shift.reshape(-1), [], []
        normal = self.normal_variance.reshape(-1)
        for chosen, chunks in self.chunks():
            parts.append(
                compress(flat[chosen], _with_one_rate(chunks), normal[chosen], lambda: worked(0.0))
            )
            order.append(chosen)
        back = np.argsort(np.concatenate(order))

        def joined(name: str) -> Floats:
            found: Floats = np.concatenate([getattr(part, name) for part in parts])[back]
            return found

        shift, gains, normal_variance, counts = map(
            joined, ("shift", "gains", "normal_variance", "counts")
        )
        return CompressedRows(shift, gains, normal_variance, parts[0].p, counts=counts)

    @cached_property
    def normal_variance(self) -> Floats:
        """(...) that normal coordinates contribute."""
        total = np.zeros(self.shift.size)
        normal = [v.placement.fault.law == NORMAL for v in self.gains.values]
        if any(normal):
            for slopes, chosen, rows in self._by_input():
                for is_normal, second, slope in zip(
                    normal, self.gains.sums.second, slopes, strict=True
                ):
                    if is_normal:
                        total[chosen] += second @ (slope @ rows.T) ** 2
        return total.reshape(self.shape)

    def _tail(self, eps: Floats, side: Side, upper: RowFunction) -> Floats:
        rows, count = self.compressed, self.shift.size
        index, values = np.repeat(np.arange(count), eps.size), np.tile(eps.reshape(-1), count)
        total, negative = np.zeros(len(index)), rows.negative
        for low in range(0, len(index), _TAILS):
            part = slice(low, low + _TAILS)
            worked(0.0)
            if side != "lower":
                total[part] += upper(rows, index[part], values[part])
            if side != "upper":
                total[part] += upper(negative, index[part], values[part])
        found = np.minimum(total, 1.0).reshape((*self.shape, *eps.shape))
        return np.where(eps <= 0, 1.0, found) if side == "both" else found


def _displacements(v: Values, part: slice) -> Any:
    """(n, bits) of some values: in single precision, where that is what the model computes in."""
    moved = v.displacements(part)
    is_single = v.by_value and v.parameter.dtype != torch.float64
    return moved.astype(np.float32) if is_single else moved


def _with_one_rate(chunks: list[GainChunk]) -> list[GainChunk]:
    """Chunks of coordinates that share a probability.

    Raises:
        NotApplicableError: there are too many different ones.
    """
    found = []
    for chunk in chunks:
        if chunk.p.ndim == 0:
            found.append(chunk)
            continue
        rates = np.unique(chunk.p)
        if len(rates) > _RATES:
            raise NotApplicableError(
                f"for at most {_RATES} different rates with as many coordinates; there are "
                f"{len(rates)}"
            )
        for rate in rates:
            alone = np.where(chunk.p == rate, chunk.displacements, 0.0)
            found.append(GainChunk(chunk.gains, alone, rate))
    return found
