"""Error-correcting codes of stored words: SECDED and parity, and exactly what they leave.

A block of k data bits is stored with r check bits, n = k + r in all. The syndrome of an error e,
the sum modulo 2 of the parity-check matrix's columns where e has a 1, is all that a decoder sees.
Each of the n bits is wrong with probability p, independently; what the decoder makes of that is a
polynomial in p whose coefficients are whole numbers, counted here without enumerating 2^n errors:
the number of errors of weight w with syndrome s is

    N_w(s) = 2^-r sum over u of (-1)^(u.s) K_w(|u H|),

with K_w Krawtchouk's polynomials and |u H| the weights of the dual code's 2^r words (MacWilliams).
Sources: M. Y. Hsiao, IBM J. Res. Dev. 14 (1970) 395; MacWilliams and Sloane, chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from math import comb, fsum

import numpy as np
from numpy.typing import NDArray

from crashsim_theory.arrays import is_number
from crashsim_theory.errors import TheoryError

MOST_DATA = 256  # bits of a block
DETECTED = -1  # in place of a bit's number: the error is seen, and not corrected
NONE = -2  # no error is seen


@dataclass(frozen=True)
class Outcomes:
    """What becomes of a block: three probabilities that add up to 1, or numbers of errors.

    Attributes:
        right: the data leave the decoder as they were stored.
        detected: an error is seen that is not corrected.
        silent: the data are wrong, and nothing says so (miscorrected ones among them).
    """

    right: float
    detected: float
    silent: float


@dataclass(frozen=True)
class Code:
    """A linear code with check bits, which corrects one error of a block or only detects.

    Attributes:
        name: as reports say it.
        columns: of the parity-check matrix, as words of r bits: those of the k data bits, then
            those of the check bits.
        data: k.
        corrects: whether a syndrome that is a column flips that bit; else every syndrome is an
            alarm.
    """

    name: str
    columns: tuple[int, ...]
    data: int
    corrects: bool

    @property
    def checks(self) -> int:
        """r, the check bits of a block."""
        return len(self.columns) - self.data

    @cached_property
    def decisions(self) -> NDArray[np.int64]:
        """(2^r,) what the decoder does at each syndrome: flips a bit, ``DETECTED``, or ``NONE``."""
        found = np.full(1 << self.checks, DETECTED, dtype=np.int64)
        if self.corrects:
            found[np.array(self.columns)] = np.arange(len(self.columns))
        found[0] = NONE
        return found

    def shortened(self, data: int) -> Code:
        """The code of fewer data bits, the first ones: all others are known to be 0.

        Raises:
            TheoryError: there are not so many.
        """
        if not is_number(data) or not 1 <= data <= self.data:
            raise TheoryError("data", data, f"give a number of data bits from 1 to {self.data}")
        if data == self.data:
            return self
        columns = self.columns[:data] + self.columns[self.data :]
        return Code(self.name, columns, int(data), self.corrects)

    @cached_property
    def counts(self) -> tuple[Outcomes, ...]:
        """(n + 1,) how many of the errors of each weight end how: whole numbers, exactly.

        An error that is corrected to something else than the data is silent; a wrong check bit that
        the decoder leaves does no harm, but one that it cannot correct is detected.
        """
        n, r = len(self.columns), self.checks
        alarms = self.decisions == DETECTED
        signs = _walsh(alarms.astype(np.int64))  # sum over alarms s of (-1)^(u.s), by u
        weights = self._dual_weights
        by_weight = np.zeros(n + 1, dtype=object)
        for weight, sign in zip(weights.tolist(), signs.tolist(), strict=True):
            by_weight[weight] += int(sign)
        found = []
        for w in range(n + 1):
            total = sum(int(by_weight[v]) * krawtchouk(n, w, v) for v in np.flatnonzero(by_weight))
            detected, left = divmod(total, 1 << r)
            assert left == 0
            right = 1 if w == 0 else n if w == 1 and self.corrects else 0
            found.append(Outcomes(right, detected, comb(n, w) - detected - right))
        return tuple(found)

    @property
    def _dual_weights(self) -> NDArray[np.int64]:
        """(2^r,) the weights of the dual code's words: in how many columns u has an odd share."""
        words = np.arange(1 << self.checks)
        weights = np.zeros(len(words), dtype=np.int64)
        for column in self.columns:
            weights += np.bitwise_count(words & column).astype(np.int64) & 1
        return weights

    def law(self, p: float) -> Outcomes:
        """What becomes of a block whose bits are each wrong with probability p: exact.

        All terms are positive, so small probabilities are as precise as large ones.

        Raises:
            TheoryError: p is no probability.
        """
        if not is_number(p) or not 0 <= p <= 1:
            raise TheoryError("p", p, "give a probability")
        n = len(self.columns)
        each = [p**w * (1 - p) ** (n - w) for w in range(n + 1)]
        return Outcomes(
            *(
                fsum(getattr(c, end) * x for c, x in zip(self.counts, each, strict=True) if x)
                for end in ("right", "detected", "silent")
            )
        )


@lru_cache(maxsize=32)
def secded(data: int = 64) -> Code:
    """Hsiao's code: single errors corrected, double ones detected; 8 check bits for 64 of data.

    All columns have odd weight, so two errors give an even syndrome, which is no column. The check
    bits are as few as such columns allow.

    Args:
        data: bits of a block.

    Raises:
        TheoryError: no such number.
    """
    _check_data(data)
    checks = 2
    while (1 << (checks - 1)) - checks < data:
        checks += 1
    columns: list[int] = []
    for weight in range(3, checks + 1, 2):
        columns += [sum(1 << i for i in ones) for ones in combinations(range(checks), weight)]
    units = [1 << i for i in range(checks)]
    name = f"SECDED({data + checks},{data})"
    return Code(name, (*columns[:data], *units), int(data), corrects=True)


@lru_cache(maxsize=64)
def parity(data: int) -> Code:
    """One check bit, which makes the number of ones even: an odd number of errors is detected.

    Raises:
        TheoryError: no such number of bits.
    """
    _check_data(data)
    return Code(f"parity({data + 1},{data})", (1,) * (int(data) + 1), int(data), corrects=False)


def tripled(p: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
    """P(two or three of three independent copies are struck): 3 p^2 - 2 p^3, as a majority sees."""
    return p * p * (3 - 2 * p)


def krawtchouk(n: int, w: int, v: int) -> int:
    """K_w(v) = sum over j of (-1)^j C(v, j) C(n - v, w - j), exactly."""
    return sum((-1) ** j * comb(v, j) * comb(n - v, w - j) for j in range(min(v, w) + 1))


def _check_data(data: int) -> None:
    if not is_number(data) or data != int(data) or not 1 <= data <= MOST_DATA:
        raise TheoryError("data", data, f"give a number of data bits from 1 to {MOST_DATA}")


def _walsh(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The Walsh-Hadamard transform of (2^r,) whole numbers."""
    found, step = values.copy(), 1
    while step < len(found):
        pairs = found.reshape(-1, 2, step)
        found = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        step *= 2
    return found
