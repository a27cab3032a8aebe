"""Quantiles of |Delta|, with intervals that take no law for granted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrik

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import clustered_proportion_interval

_AT_ONCE = 2**20  # values sorted together

Kept = Floats | NDArray[np.float32]


def quantiles_of(
    delta: Kept, levels: Sequence[float], alpha: float
) -> list[tuple[Interval, Interval]]:
    """Of |Delta| for each level: (B, K), and over samples and inputs together, (K,).

    Args:
        delta: (n, B, K) samples, of inputs that share each sample's faults.
        levels: probabilities of the quantiles.
        alpha: 1 - confidence.
    """
    n, b, k = delta.shape
    alone: list[list[Interval]] = [[] for _ in levels]
    pooled: list[list[Interval]] = [[] for _ in levels]
    for columns in _columns(n * b, k):
        size = np.abs(delta[:, :, columns])
        size = np.where(np.isnan(size), np.inf, size)  # as far off as infinity
        # A contiguous row for each of them, which sorts fastest.
        rows = np.ascontiguousarray(size.reshape(n, -1).T)
        rows.sort(axis=1)
        ordered = rows.T.reshape(n, b, -1)
        together = rows.reshape(b, -1, n).swapaxes(0, 1).copy().reshape(-1, b * n)
        if b > 1:
            together.sort(axis=1)
        for i, level in enumerate(levels):
            alone[i].append(quantile_interval(ordered, level, alpha))
            pooled[i].append(pooled_quantile(size, together, level, alpha))
    return [(_joined(a), _joined(p)) for a, p in zip(alone, pooled, strict=True)]


def _columns(each: int, count: int) -> Iterator[slice]:
    """Columns of so many values each, some at a time."""
    step = max(1, _AT_ONCE // max(each, 1))
    yield from (slice(start, start + step) for start in range(0, count, step))


def _joined(parts: Sequence[Interval]) -> Interval:
    return Interval(
        *(np.concatenate([getattr(p, end) for p in parts], -1) for end in ("value", "low", "high"))
    )


def quantile_interval(sorted_values: Kept, level: float, alpha: float) -> Interval:
    """Distribution-free interval of a quantile from order statistics (exact, conservative).

    Args:
        sorted_values: (n, ...) sorted along the first axis.
        level: probability of the quantile.
        alpha: 1 - confidence.
    """
    n = len(sorted_values)
    value = sorted_values[min(n - 1, int(np.ceil(level * n)) - 1)]
    low_rank = _binomial_quantile(alpha / 2, n, level)
    high_rank = _binomial_quantile(1 - alpha / 2, n, level) + 1
    low = sorted_values[low_rank - 1] if low_rank >= 1 else np.zeros_like(value)
    high = sorted_values[high_rank - 1] if high_rank <= n else np.full_like(value, np.inf)
    return Interval(value, low, high)


def _binomial_quantile(probability: float, n: int, p: float) -> int:
    """The smallest count that a binomial one does not exceed with at least this probability."""
    count = int(np.ceil(bdtrik(probability, n, p)))
    return count - (count > 0 and bdtr(count - 1, n, p) >= probability)


def pooled_quantile(size: Kept, ordered: Kept, level: float, alpha: float) -> Interval:
    """Quantile over samples and inputs together, with Woodruff's interval, (K,).

    The interval of the share below the quantile, which allows for inputs that share a mask, is read
    back through the empirical quantiles (Woodruff, JASA 47, 1952).

    Args:
        size: (n, B, K).
        ordered: (K, n B) the same, sorted for each output.
        level: probability of the quantile.
        alpha: 1 - confidence.
    """
    n, b, k = size.shape
    value = _at(ordered, np.full(k, level))
    if b == 1:  # every sample a mask of its own: only the variance with n - 1 is wider
        design = np.where(
            (ordered[:, 0] < value) | (value < ordered[:, -1]), n / max(n - 1, 1), 1.0
        )
    else:
        # How much wider than for independent inputs; the larger side, where many share the value.
        design = np.maximum(_design_effect(size <= value), _design_effect(size < value))
    shares = clustered_proportion_interval(
        np.full(k, level), design * level * (1 - level), n, b, alpha
    )
    low = _at(ordered, shares.low)
    high = np.where(shares.high < 1, _at(ordered, shares.high), np.inf)
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def _at(ordered: Kept, probabilities: Floats) -> Floats:
    """Where the empirical distribution function reaches a probability, for each row."""
    places = np.ceil(ordered.shape[1] * probabilities - 1).astype(int)
    found: Floats = ordered[np.arange(len(ordered)), np.maximum(places, 0)]
    return found


def _design_effect(hits: NDArray[np.bool_]) -> Floats:
    """Variance over masks of the share of inputs that are hit, over that of a single one, (K,)."""
    n, b, _ = hits.shape
    # Whole numbers, whose sums are exact.
    counts = np.einsum("nbk->nk", hits.view(np.uint8), dtype=np.float32 if b < 2**24 else float)
    first = counts.sum(0, dtype=np.float64)
    second = np.einsum("nk,nk->k", counts, counts, dtype=np.float64)
    variance = (second - first**2 / n) / (max(n - 1, 1) * b**2)
    share = first / (n * b)
    alone = share * (1 - share)
    effect: Floats = np.ones_like(alone)
    np.divide(variance, alone, out=effect, where=alone > 0)
    return effect


def stratified_quantiles(
    size: Kept,
    outcomes: Floats,
    weights: Floats,
    rest: float,
    levels: Sequence[float],
    alpha: float,
) -> list[Interval]:
    """Quantiles of laws of which one part is known and the other sampled, (J,) for each level.

    The law's distribution function at the quantile, and just below it, may be off by what their
    intervals allow, which is read back through it (Woodruff, JASA 47, 1952).

    Args:
        size: (n, B, J) samples: of J laws, each averaged over B inputs under one mask.
        outcomes: (A, B, J) of the known part.
        weights: (A,) their probabilities.
        rest: probability of the sampled part.
        levels: probabilities of the quantiles.
        alpha: 1 - confidence.
    """
    n, b, columns = size.shape
    masses = np.concatenate([np.repeat(weights, b) / b, np.full(n * b, rest / (n * b))])
    parts = []
    for some in _columns(len(masses), columns):
        known, drawn = outcomes[:, :, some], size[:, :, some]
        values = np.concatenate([known.reshape(-1, known.shape[2]), drawn.reshape(n * b, -1)]).T
        order = np.argsort(values, axis=1)
        law = np.take_along_axis(values, order, 1), np.cumsum(masses[order], axis=1)
        parts.append([_stratified(drawn, law, rest, level, alpha) for level in levels])
    return [_joined(found) for found in zip(*parts, strict=True)]


def _stratified(
    size: Kept, law: tuple[Floats, Floats], rest: float, level: float, alpha: float
) -> Interval:
    """One quantile of J laws.

    Args:
        size: (n, B, J) the sampled part.
        law: (J, A B + n B) values in order, and the probability up to each.
    """
    n, b, columns = size.shape
    value = _read(*law, np.full(columns, level))
    below, within = (
        clustered_proportion_interval(share.mean(0), share.var(0, ddof=1), n, b, alpha)
        for share in ((size < value).mean(1), (size <= value).mean(1))
    )
    low = _read(*law, level - rest * (below.high - below.value))
    high = _read(*law, level + rest * (within.value - within.low))
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def _read(values: Floats, law: Floats, probabilities: Floats) -> Floats:
    """The first value at which a law reaches a probability, for each row; infinite if none."""
    rows, wanted = np.arange(len(law)), probabilities * (1 - 1e-12)
    low, high = np.zeros(len(law), int), np.full(len(law), law.shape[1])
    while (low < high).any():  # bisection of all rows at once
        middle = (low + high) // 2
        left = low < high
        is_below = left & (law[rows, np.minimum(middle, law.shape[1] - 1)] < wanted)
        low, high = np.where(is_below, middle + 1, low), np.where(left & ~is_below, middle, high)
    there = low < law.shape[1]
    return np.where(there, values[rows, np.where(there, low, 0)], np.inf)
