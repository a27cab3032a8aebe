"""Rare events by importance sampling: tails down to 1e-9 and below in thousands of samples.

Faults are drawn more often where they hurt. Under the tilt t of a linear surrogate with gains g, a
crash at i has probability ``p e^{t g} / (1 - p + p e^{t g})`` (a Gaussian coordinate's mean moves
by ``t g s^2``, any other law is tilted by ``t g``), and each sample counts with the likelihood
ratio. The tilt is such that the network itself, at the tilted mean point, reaches the event.

There the surrogate's gains may be wrong (many faults strike together), so the network is made
linear once more, at the tilted mean point: the design point of reliability theory (Hasofer and
Lind 1974; Bucher, Structural Safety 5, 1988). On narrow networks this saves most of the samples.

Several events (both tails; every rival class), in small circuits a law that scatters a few faults
anywhere, and the untilted law are mixed into one proposal, and samples weighted by the ratio to the
mixture. So no
weight exceeds 1 / share of the untilted law, however wrong the surrogate is (defensive mixture:
Hesterberg, Technometrics 37, 1995; balance heuristic: Veach and Guibas 1995).

What no sample has hit, no interval knows of: where a few particular faults together fail in a way
that the surrogate does not foresee, the estimate can be too low. Small circuits (up to 20
coordinates) are better enumerated, and a certificate bounds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from crashsim_theory import TiltedCoordinates
from scipy.special import logsumexp

from crashsim.analytic.first_order import (
    Analysis,
    Surrogate,
    coordinates_of,
    margins_of,
    of_output,
    of_pair,
)
from crashsim.analytic.rounding import least_reaching
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.campaign.tasks import Task, fold
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.faults import check_drawable
from crashsim.metrics import predicted_class
from crashsim.noticing import notice
from crashsim.results.estimate import Estimate, Quantity
from crashsim.sampling.tilted.sparse_tilts import SparselyWeighted, SparseTilt, tilted
from crashsim.sampling.tilted.weights import DEFENSIVE, RareEvent, WeightSums
from crashsim.space import FaultSpace

SAMPLES = 4096  # at most, of each event
REL_WIDTH = 0.2  # relative half-width to stop at
_SURROGATE = 0.2  # share of the laws tilted by the surrogate itself
_MINOR = 0.02  # share of an event, among many, that is guided by the surrogate alone
_SCATTERED = (
    0.3  # share of a law that strikes about this number of coordinates, whichever they are,
)
_STRUCK = 2.5
_SMALL = 50  # among at most this number: of more, it would hardly ever strike the same few again
_SPARSE_GUIDES = 4  # of them, among many coordinates
_SPARSE_TILTS = ((1.0, 0.6), (1.4, 0.4))  # times the surrogate's, and their shares
_GUIDES = 16  # events with a part of the proposal
_BATCH = 512  # samples in a block
_BLOCKS = 2**32  # of an event, more than are ever drawn
FEWEST = 1024  # samples before it may stop;
_FEWEST_SCATTERED = 2048  # so that scattered ones find what there is
_GRID = 25
AIMING = 2 * (2 * (2 * _GRID + 1) + 3)  # passes at most, before two tails are sampled
_WEAKEST, _STRONGEST = 0.1, 60.0  # tilts times gains: e^60 strikes all that helps


@dataclass(frozen=True)
class Event:
    """A direction in which the output may move too far, for one input.

    Attributes:
        readout: (K,) coefficients c; the event is ``c . Delta >= threshold``.
        threshold: of it.
        gains: (N,) of c . Delta's linear surrogate; of many coordinates the surrogate () itself.
        weight: its share in the proposal, up to a factor.
        tilt: of the surrogate itself, that reaches the event; None: not known yet.
    """

    readout: Floats
    threshold: float
    gains: Floats | FactoredSurrogate
    weight: float
    tilt: float | None = None

    @property
    def dense(self) -> Floats:
        """The gains, of coordinates that are few enough to list them."""
        assert not isinstance(self.gains, FactoredSurrogate)
        return self.gains


def importance_sampling(
    space: FaultSpace,
    analysis: Analysis,
    *,
    epsilon: float | None,
    output: int,
    class_changes: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    rel_width: float = REL_WIDTH,
    passes: int | None = None,
) -> list[Estimate]:
    """``importance-sampling``: the tail of one output, and class changes, for every input.

    Args:
        analysis: holds the linear surrogate that guides the sampling.
        epsilon: of the tail; no tail without.
        output: whose tail.
        class_changes: also sample these.
        seed: the samples depend on it and the input alone.
        samples, rel_width: for each input, spend at most this number of samples and stop at this
            relative half-width.
        passes: of all inputs together at most, for each question; the inputs that are likelier to
            fail by the surrogate get more of them. None: as many as ``samples`` says.

    Warns:
        CrashsimWarning: an interval rests on few effective hits.
    """
    surrogate = analysis.surrogate
    if surrogate is None or not space.is_random:
        return []  # nothing guides, or nothing is random
    found: list[Estimate] = []
    tasks: list[tuple[Quantity, list[RareEvent]]] = []
    if epsilon is not None:
        reach = least_reaching(space, epsilon)
        rows = []
        chances = of_output(surrogate, output).saddlepoint(reach)
        each = _allotted(chances, samples, passes)
        for b in range(space.B):
            events = tail_events(of_pair(surrogate, b, output), output, space.K, reach)
            rows.append(
                sample_union(
                    space.at_input(b),
                    events,
                    seed,
                    Stream.IMPORTANCE,
                    b,
                    confidence,
                    each[b],
                    rel_width,
                )
            )
        tasks.append(("tail", rows))
    if space.K > 1 and class_changes:
        margins = margins_of(space, surrogate)
        rows = []
        changes = margins.saddlepoint(0.0, "upper")
        each = _allotted(changes.sum(1), samples, passes)
        for b in range(space.B):
            events = _class_events(space.clean()[b], margins, b, changes[b])
            rows.append(
                sample_union(
                    space.at_input(b),
                    events,
                    seed,
                    Stream.IMPORTANCE,
                    space.B + b,
                    confidence,
                    each[b],
                    rel_width,
                )
            )
        tasks.append(("class-change", rows))
    for quantity, rows in tasks:
        found += _estimates(quantity, rows, output, epsilon, confidence)
        # An input that hardly contributes to the average needs no warning.
        matters = 0.1 * float(np.mean([row.value for row in rows]))
        shaky = [b for b, row in enumerate(rows) if row.high > matters and not row.is_trusted]
        shaky = [b for b in shaky if rows[b].value > 0]
        if shaky:
            notice(
                f"importance-sampling {quantity}: inputs {shaky[:8]} rest on few effective "
                "samples, so their intervals may be too narrow; ask for more samples",
                stacklevel=3,
            )
    return found


def _allotted(chances: Floats, samples: int, passes: int | None) -> list[int]:
    """How many samples each input gets, with these probabilities by the surrogate."""
    if passes is None:
        return [samples] * len(chances)
    # The error of a probability goes with its root; a half is for what the surrogate misses.
    shares = np.sqrt(np.clip(chances, 1e-12, 1.0))
    shares = 0.5 * shares / shares.sum() + 0.5 / len(chances)
    return [int(n) for n in np.minimum(np.maximum(passes * shares, 2), samples)]


def sample_union(
    space: FaultSpace,
    events: list[Event],
    seed: int,
    stream: Stream = Stream.IMPORTANCE,
    index: int = 0,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    rel_width: float = REL_WIDTH,
) -> RareEvent:
    """P(some event happens) for a space with a single input.

    The sample doubles until its relative half-width is reached; look j spends
    ``alpha / (j (j + 1))`` of the error probability. The samples depend on the seed, the stream and
    the ``index`` in it alone. The interval is Student's on the logarithm's
    scale; without a hit, its upper end follows from the weights' bound.
    """
    # The likeliest events guide the sampling; all of them count.
    guides = sorted(events, key=lambda event: -event.weight)[:_GUIDES]
    check_drawable((place.fault for place in space.placements), "importance sampling")
    readouts = np.array([event.readout for event in events])
    thresholds = np.array([event.threshold for event in events])
    task: Task[WeightSums]
    if isinstance(events[0].gains, FactoredSurrogate):
        laws, shares = _sparse_proposal(guides)
        task = SparselyWeighted(
            space, readouts, thresholds, laws, shares, seed, stream, index, samples
        )
    else:
        law = TiltedCoordinates.of(coordinates_of(space))
        gains, shares = _proposal(space, law, guides)
        task = _Weighted(
            space=space,
            law=law,
            readouts=readouts,
            thresholds=thresholds,
            gains=gains,
            normalisers=law.log_mean_exp(gains),
            shares=shares,
            stream=stream,
            seed=seed,
            index=index,
            samples=samples,
        )
    fewest = _FEWEST_SCATTERED if space.N <= _SMALL else FEWEST
    look = 0
    for at in fold(task, range(-(-samples // _BATCH))):
        n = at.sums.n
        if n < min(samples, fewest * 2**look):
            continue
        look += 1
        found = at.sums.summary((1 - confidence) / (look * (look + 1)))
        reached = found.value > 0 and found.high - found.low <= 2 * rel_width * found.value
        if n >= samples or (reached and found.is_trusted):
            return found
    raise AssertionError("the last block holds the last sample")


@dataclass(frozen=True)
class _Weighted(Task[WeightSums]):
    """Samples of a mixture of tilted laws, weighted, in blocks of 512.

    Attributes:
        space: of a single input.
        law: the coordinates' own.
        readouts, thresholds: of the events (E, K), (E,): a sample counts where one happens.
        gains, normalisers, shares: of the mixture's parts: tilts (J, N), the logarithms of their
            means (J,), and how often each is drawn from (J,).
        seed, stream, index: where random numbers come from: of ``index`` and the block.
        samples: their number; the last block is cut.
    """

    space: FaultSpace
    law: TiltedCoordinates
    readouts: Floats
    thresholds: Floats
    gains: Floats
    normalisers: Floats
    shares: Floats
    seed: int
    stream: Stream
    index: int
    samples: int

    def run(self, block: int) -> WeightSums:
        stream = self.stream
        rng = generator(self.seed, stream, self.index * _BLOCKS + block)
        size = min(_BATCH, self.samples - block * _BATCH)
        chosen = rng.choice(len(self.shares), size=size, p=self.shares)
        e = self.law.draw(rng, self.gains[chosen])
        # The log of each component's density over that of the untilted law.
        ratios = e @ self.gains.T - self.normalisers
        log_weight = -logsumexp(ratios + np.log(self.shares), axis=1)
        delta = (self.space.outputs(_points(e)) - self.space.clean())[:, 0]
        hit = (delta @ self.readouts.T >= self.thresholds).any(1)
        return WeightSums.of(np.where(hit, np.exp(log_weight), 0.0))


def _sparse_proposal(guides: list[Event]) -> tuple[list[SparseTilt], Floats]:
    """The mixture for many coordinates: tilted by the surrogate alone, as it says and further."""
    weights = np.array([event.weight for event in guides])
    weights /= weights.sum()
    none = np.empty(0, np.int64)
    laws, shares = [SparseTilt.of(none, np.empty(0), np.empty(0))], [DEFENSIVE]
    kept = [i for i, weight in enumerate(weights) if i < _SPARSE_GUIDES and weight > _MINOR]
    for i in kept:
        event, one = guides[i], guides[i].gains
        assert isinstance(one, FactoredSurrogate)
        t = float(one.tilt(event.threshold)) if event.tilt is None else event.tilt
        for factor, share in _SPARSE_TILTS:
            laws.append(tilted(one, factor * max(t, 0.0)))
            shares.append((1 - DEFENSIVE) * share * weights[i] / weights[kept].sum())
    return laws, np.array(shares) / sum(shares)


def _proposal(
    space: FaultSpace, law: TiltedCoordinates, guides: list[Event]
) -> tuple[Floats, Floats]:
    """The mixture to draw from: what each part's coordinates are tilted by (J, N), its share."""
    weights = np.array([event.weight for event in guides])
    weights = weights / weights.sum()
    parts, shares = [np.zeros((1, space.N))], [np.array([DEFENSIVE])]
    if space.N <= _SMALL:
        parts.append(law.scattered(_STRUCK)[None])
        shares.append(np.array([_SCATTERED]))
    rest = 1 - sum(share.sum() for share in shares)
    for event, weight in zip(guides, weights * rest, strict=True):
        moved = _tilt(space, event) * event.dense
        parts.append(moved[None])
        # The surrogate may be wrong about the rarer of two tails; of many rivals, most never win.
        matters = len(guides) <= 2 or weight > _MINOR
        local = _at_design_point(space, law, event, moved) if matters else None
        if local is None:
            shares.append(np.array([weight]))
        else:
            parts.append(local[None])
            shares.append(weight * np.array([_SURROGATE, 1 - _SURROGATE]))
    return np.concatenate(parts), np.concatenate(shares)


def _at_design_point(
    space: FaultSpace, law: TiltedCoordinates, event: Event, tilted: Floats
) -> Floats | None:
    """Tilted gains (N,) of the network at the tilted mean point; None where it is flat there."""
    if not space.has_derivatives:
        return None
    ((_, gradient),) = space.gradients(law.mean(tilted), event.readout[None])
    gains: Floats = gradient[0, 0]
    if not np.isfinite(gains).all() or not gains.any():
        return None
    return _tilt(space, replace(event, gains=gains)) * gains


def tail_events(one: Surrogate, output: int, k: int, epsilon: float) -> list[Event]:
    """Both tails of an output."""
    unit = np.zeros(k)
    unit[output] = 1.0
    # The rarer, the less the surrogate knows which of the two is likelier, and a share too large
    # costs little, one too small much: so shares as the square roots, within a factor of ten.
    upper = float(one.saddlepoint(epsilon, "upper")) ** 0.5
    lower = float(one.saddlepoint(epsilon, "lower")) ** 0.5
    floor = max(upper, lower, 1e-150) / 10
    there, back = (
        each if isinstance(each, FactoredSurrogate) else each.gains for each in (one, one.negative)
    )
    return [
        Event(unit, epsilon, there, max(upper, floor)),
        Event(-unit, epsilon, back, max(lower, floor)),
    ]


def _class_events(clean: Floats, margins: Surrogate, b: int, chances: Floats) -> list[Event]:
    """Every rival overtaking the predicted class, with these chances by the surrogate.

    A tie goes to the first of the largest outputs (as argmax breaks it), so a rival behind the
    predicted class has to pass it, one before it has to reach it.
    """
    top = int(predicted_class(clean))
    rivals = [r for r in range(len(clean)) if r != top]
    floor = max(float(chances.max()), 1e-300) / 100
    events = []
    for i, rival in enumerate(rivals):
        readout = np.zeros(len(clean))
        readout[rival], readout[top] = 1.0, -1.0
        gap = float(clean[top] - clean[rival])
        reach = gap if rival < top else float(np.nextafter(gap, np.inf))
        weight = max(float(chances[i]), floor)
        if isinstance(margins, FactoredSurrogate):
            one, tilt = margins.part((b, i)), float(margins.tilts_to_zero[b, i])
            events.append(Event(readout, reach, one, weight, tilt))
        else:
            events.append(Event(readout, reach, margins.gains[b, i], weight))
    return events


def _tilt(space: FaultSpace, event: Event) -> float:
    """The t at which the network at the tilted mean point just reaches the event.

    The first of a geometric grid, then of a fine one before it; the largest useful t where the
    event is out of reach. Of a law with heavy tails it stays where E exp(t e) is finite.
    """
    law = TiltedCoordinates.of(coordinates_of(space))
    # How far a tilt moves a coordinate is a matter of the law's own scale.
    scale = float(np.abs(event.dense * _units(space)).max())
    if scale == 0:
        return 0.0

    def first_reached(grid: Floats) -> int | None:
        points = _points(np.stack([law.mean(t * event.dense) for t in grid]))
        delta = (space.outputs(points) - space.clean())[:, 0]
        reached = np.flatnonzero(delta @ event.readout >= event.threshold)
        return int(reached[0]) if len(reached) else None

    coarse = np.concatenate([[0.0], np.geomspace(_WEAKEST, _STRONGEST, _GRID) / scale])
    coarse = _inside(coarse, lambda t: bool(np.isfinite(law.mean(t * event.dense)).all()))
    at = first_reached(coarse)
    if at is None or at == 0:
        return float(coarse[-1 if at is None else 0])
    fine = np.linspace(coarse[at - 1], coarse[at], _GRID)
    finer = first_reached(fine)
    return float(fine[-1 if finer is None else finer])


def _inside(grid: Floats, is_inside: Callable[[float], bool]) -> Floats:
    """Rising numbers up to an edge; those beyond are replaced by ones that approach it."""
    kept = [t for t in grid.tolist() if is_inside(t)]
    if len(kept) == len(grid):
        return grid
    beyond = float(grid[len(kept)])
    for _ in range(len(grid) - len(kept)):
        middle = (kept[-1] + beyond) / 2
        if is_inside(middle):
            kept.append(middle)
        else:
            beyond = middle
    return np.array(kept)


def _units(space: FaultSpace) -> Floats:
    """(N,) in which coordinates of laws other than Bernoulli and normal are measured; else 1."""
    units = np.ones(space.N)
    for where, block in coordinates_of(space).others:
        units[where] = np.sqrt(block.variance)
    return units


def _points(e: Floats) -> Points:
    rows, columns = np.nonzero(e)
    return Points(len(e), np.zeros(e.shape[1]), rows, columns, e[rows, columns])


def _estimates(
    quantity: Quantity,
    rows: list[RareEvent],
    output: int,
    epsilon: float | None,
    confidence: float,
) -> list[Estimate]:
    value, low, high = (
        np.array([getattr(row, name) for row in rows]) for name in ("value", "low", "high")
    )
    note = f"asymptotic interval; {sum(row.samples for row in rows)} samples in all"
    level = epsilon if quantity == "tail" else None
    naive = np.array([row.naive_variance for row in rows])
    squares = np.array([(row.value * row.error) ** 2 if row.value else np.nan for row in rows])
    # Plain samples of all inputs at once would do as well at best if inputs were independent.
    pooled = naive.sum(keepdims=True), np.nansum(squares, keepdims=True)
    worth = [*_ratios(naive, squares), *_ratios(*pooled)]
    # Inputs are sampled independently: their errors add in squares.
    mean = float(value.mean())
    down, up = (float(np.sqrt(((end - value) ** 2).sum())) / len(rows) for end in (low, high))
    places: list[int | Literal["all"]] = [*range(len(rows)), "all"]
    lows, highs = [*low, max(mean - down, 0.0)], [*high, min(mean + up, 1.0)]
    return [
        Estimate(
            "importance-sampling",
            quantity,
            where,
            output if quantity == "tail" else "all",
            value=float(v),
            low=float(lo),
            high=float(hi),
            kind="statistical",
            confidence=confidence,
            level=level,
            note=note,
            worth=w,
        )
        for where, v, lo, hi, w in zip(places, [*value, mean], lows, highs, worth, strict=True)
    ]


def _ratios(naive: Floats, squares: Floats) -> list[float | None]:
    """Plain samples with these variances that would have these squared errors."""
    pairs = zip(naive.tolist(), squares.tolist(), strict=True)
    return [variance / square if square > 0 else None for variance, square in pairs]
