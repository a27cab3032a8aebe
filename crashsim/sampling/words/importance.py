"""Importance sampling for faults of words: bits struck where they do harm, samples reweighted.

Each stratum (a layer and a bit) has its own rate in the proposal: its own and a share of one strike
more, by the harm that single faults of it were seen to do (``word_strata``). A part of the samples
is drawn from the faults' own law, so that no weight exceeds its inverse, and what no single fault
shows is found as plain samples find it. Unbiased whatever the survey says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points, no_fault
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import NotApplicableError
from crashsim.metrics import CLASS_CHANGE, NOT_FINITE, Event
from crashsim.results.estimate import Estimate, Interval, Quantity
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.sampling.tilted.weights import RareEvent, WeightSums
from crashsim.sampling.words.strata import Stratum, survey
from crashsim.space import FaultSpace

SAMPLES = 2**13
_SURVEYED = 1024  # single faults that show where harm is
_OWN = 0.25  # share of the samples that are of the faults' own law
_MORE = 1.0  # strikes more, expected in each of the others
_BATCH = 512


def word_importance(
    space: FaultSpace, seed: int, confidence: float, samples: int = SAMPLES
) -> list[Estimate]:
    """``word-importance``: P(class changes) and P(not finite), with intervals (asymptotic).

    Args:
        space: of faults of words alone, independent and with one rate at each site.
        seed: of the survey and the samples.
        confidence: of the intervals.
        samples: to spend.

    Raises:
        NotApplicableError: other faults; or no single fault that was tried does harm.
    """
    strata = [s for s in survey(space, seed, _SURVEYED)[0] if s.rate > 0]
    harm = np.array([s.harm for s in strata])
    if harm.sum() == 0:
        raise NotApplicableError("no single fault that was tried does harm")
    rates = np.array([s.rate for s in strata])
    sizes = np.array([s.size for s in strata])
    own = -np.expm1(-rates)
    raised = -np.expm1(-(rates + _MORE * harm / harm.sum() / sizes))
    quantities: list[tuple[Quantity, Event]] = [("not-finite", NOT_FINITE)]
    if space.K > 1:
        quantities.insert(0, ("class-change", CLASS_CHANGE))
    sums: dict[str, list[WeightSums]] = {}
    for block, start in enumerate(range(0, samples, _BATCH)):
        rng = generator(seed, Stream.WORD_IMPORTANCE, block)
        count = min(_BATCH, samples - start)
        is_own = rng.random(count) < _OWN
        struck = rng.binomial(sizes, np.where(is_own[:, None], own, raised))
        weights = _weights(struck, sizes, own, raised)
        outputs = space.outcomes(_points(space, strata, struck, rng))
        for quantity, event in quantities:
            happens = event.happens(outputs, space.clean(), None)
            columns = np.concatenate([happens, happens.mean(1, keepdims=True)], axis=1)
            found = [WeightSums.of(weights * column) for column in columns.T]
            before = sums.get(quantity)
            sums[quantity] = (
                [a + b for a, b in zip(before, found, strict=True)] if before else found
            )
    alpha = 1 - confidence
    return [
        estimate
        for quantity, _ in quantities
        for estimate in _estimates(quantity, sums[quantity], alpha)
    ]


def _weights(
    struck: NDArray[np.int64], sizes: NDArray[np.int64], own: Floats, raised: Floats
) -> Floats:
    """(S,) how likely each sample is by the faults' own law, over how likely it was drawn."""
    more = struck @ (np.log(raised) - np.log(own))
    fewer = (sizes - struck) @ (np.log1p(-raised) - np.log1p(-own))
    weights: Floats = 1 / (_OWN + (1 - _OWN) * np.exp(np.minimum(more + fewer, 700.0)))
    return weights


def _points(
    space: FaultSpace,
    strata: Sequence[Stratum],
    struck: NDArray[np.int64],
    rng: np.random.Generator,
) -> Points:
    """Samples with this number (S, strata) of struck words in each stratum, whichever."""
    rows, columns = [], []
    for which, s in enumerate(strata):
        for row in np.flatnonzero(struck[:, which]):
            words = rng.choice(s.size, struck[row, which], replace=False, shuffle=False)
            rows.append(np.full(len(words), row))
            columns.append(s.coordinates(words))
    none = np.empty(0, dtype=np.int64)
    row, column = (np.concatenate([none, *parts]) for parts in (rows, columns))
    order = np.lexsort((column, row))
    return Points(len(struck), no_fault(space.N), row[order], column[order], np.ones(len(row)))


def _estimates(quantity: Quantity, sums: Sequence[WeightSums], alpha: float) -> Estimates:
    found = [one.summary(alpha) for one in sums]
    return estimates_of(
        "word-importance",
        quantity,
        "statistical",
        per_input=_interval(found[:-1]),
        pooled=_interval(found[-1:])[0],
        confidence=1 - alpha,
    )


def _interval(found: Sequence[RareEvent]) -> Interval:
    """Of several events, (n,)."""
    value, low, high = (
        np.array([getattr(event, end) for event in found]) for end in ("value", "low", "high")
    )
    errors = np.array([event.error for event in found])
    naive = np.array([event.naive_variance for event in found])
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(value > 0, naive / (errors * value) ** 2, np.nan)
    trusted = np.array([event.is_trusted for event in found])
    return Interval(value, low, high, worth, trusted)
