"""Cumulants of many surrogates at once, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.tails.coordinates import OfLaw

CHUNK_BYTES = 2**22  # what a core's cache holds
_TEMPORARIES = 8  # arrays of shape (rows, N) alive at once in `_cumulants`


@dataclass(frozen=True)
class Cumulants:
    """K, K', K'', K''' at the requested points."""

    k: Array
    k1: Array
    k2: Array
    k3: Array


@dataclass(frozen=True)
class Rows:
    """Surrogates with their leading axes flattened: what the vectorised solvers work on."""

    shift: Array  # (R,)
    gains: Array  # (R, N) of the Bernoulli coordinates
    normal_variance: Array  # (R,)
    p: Array  # (N,)
    others: tuple[tuple[Array, OfLaw], ...] = ()  # gains (R, n) of other laws' coordinates

    @property
    def negative(self) -> Rows:
        """The rows of -L."""
        others = tuple((-gains, block) for gains, block in self.others)
        return Rows(-self.shift, -self.gains, self.normal_variance, self.p, others)

    @functools.cached_property
    def _width(self) -> int:
        return self.p.size + sum(len(block) for _, block in self.others)

    @functools.cached_property
    def logit(self) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.p) - np.log1p(-self.p))

    def maximum(self) -> tuple[Array, Array]:
        """The largest value of L and the log of its probability, each (R,)."""
        return self._maximum

    @functools.cached_property
    def lowest(self) -> Array:
        """(R,) the smallest value of L."""
        likely, sure = self.p > 0, self.p == 1
        bottom = self.shift + np.minimum(self.gains, 0)[:, likely].sum(-1)
        bottom = bottom + np.maximum(self.gains, 0)[:, sure].sum(-1)
        for gains, block in self.others:
            bottom = bottom - block.largest(-gains)[0]
        return np.where(self.normal_variance > 0, -np.inf, bottom)

    @functools.cached_property
    def _maximum(self) -> tuple[Array, Array]:
        likely = self.p > 0
        top = self.shift + np.where(self.gains > 0, self.gains, 0)[:, likely].sum(-1)
        sure = self.p == 1
        top = top + np.where(self.gains < 0, self.gains, 0)[:, sure].sum(-1)
        with np.errstate(divide="ignore"):
            log_p, log_q = np.log(self.p), np.log1p(-self.p)
        forced = np.where(self.gains > 0, log_p, np.where(self.gains < 0, log_q, 0.0))
        log_atom = np.where(likely & ~sure, forced, 0.0).sum(-1)
        for gains, block in self.others:
            largest, log_probability = block.largest(gains)
            top, log_atom = top + largest, log_atom + log_probability
        unbounded = self.normal_variance > 0
        return np.where(unbounded, np.inf, top), np.where(unbounded, -np.inf, log_atom)

    def cumulants(self, rows: Any, t: Array) -> Cumulants:
        """K and its derivatives of surrogate rows[j] at t[j]; shapes (J,)."""
        return Cumulants(self.log_mgf(rows, t), *self.moments(rows, t))

    def log_mgf(self, rows: Any, t: Array) -> Array:
        """K of surrogate rows[j] at t[j], (J,)."""
        result = np.empty(len(t))
        for part in chunks(len(t), self._width):
            at, row = t[part], rows[part]
            terms = log_mgf_terms(self.p, at[:, np.newaxis] * self.gains[row])
            normal = self.normal_variance[row] * at * at / 2
            result[part] = self.shift[row] * at + terms.sum(-1) + normal
            for gains, block in self.others:
                (k,) = block.cumulants(at[:, np.newaxis] * gains[row], 0)
                result[part] += k.sum(-1)
        return result

    def moments(self, rows: Any, t: Array) -> tuple[Array, Array, Array]:
        """Mean, variance and third central moment under the tilt (K's derivatives), (J,)."""
        result = np.empty((3, len(t)))
        for part in chunks(len(t), self._width):
            at, row = t[part], rows[part]
            g, v = self.gains[row], self.normal_variance[row]
            tilted = expit(at[:, np.newaxis] * g + self.logit)
            result[0, part] = self.shift[row] + (tilted * g).sum(-1) + v * at
            spread = tilted * (1 - tilted) * g * g
            result[1, part] = spread.sum(-1) + v
            result[2, part] = (spread * (1 - 2 * tilted) * g).sum(-1)
            for gains, block in self.others:
                g = gains[row]
                found = block.cumulants(at[:, np.newaxis] * g, 1, 2, 3)
                for order, derivative in enumerate(found, 1):
                    result[order - 1, part] += (derivative * g**order).sum(-1)
        return result[0], result[1], result[2]


def log_mgf_terms(p: Array, y: Array) -> Array:
    """log(1 - p + p e^y) elementwise, without overflow, and without cancellation near y = 0."""
    large = np.abs(y) > 1
    terms = np.log1p(p * np.expm1(np.where(large, 0.0, y)))
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log1p(-p)
    np.logaddexp(log_q, log_p + y, out=terms, where=large)
    return np.asarray(terms)


def chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of `width` float64 that keep temporaries under CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // (8 * _TEMPORARIES * max(width, 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
