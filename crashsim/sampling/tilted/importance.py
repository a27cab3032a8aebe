"""Rare events by importance sampling: tails down to 1e-9 and below in thousands of samples.

Faults are drawn more often where they hurt. Under the tilt t of a linear surrogate with gains g, a
crash at i has probability ``p e^{t g} / (1 - p + p e^{t g})`` (a Gaussian coordinate's mean moves
by ``t g s^2``, any other law is tilted by ``t g``), and each sample counts with the likelihood
ratio. The tilt is such that the network itself, at the tilted mean point, reaches the event.

There the surrogate's gains may be wrong (many faults strike together), so the network is made
linear once more, at the tilted mean point: the design point of reliability theory (Hasofer and
Lind 1974; Bucher, Structural Safety 5, 1988). On narrow networks this saves most of the samples.
Where a few faults decide, that point misleads, so the surrogate's own tilts stand beside it, and
those by what each fault does alone (``aiming``).

All these, for several events (both tails; every rival class), in circuits up to 1,024 coordinates a
law that scatters faults anywhere, and the untilted law are mixed into one proposal, and samples
weighted by the ratio to the mixture. So no weight exceeds 1 / share of the untilted law, however
wrong the surrogate is (defensive mixture: Hesterberg, Technometrics 37, 1995; balance heuristic:
Veach and Guibas 1995), nor Chernoff's bound over a share where it is right.

What no sample has hit, no interval knows of: where a few particular faults together fail in a way
that neither the surrogate nor each of them alone foresees, the estimate can be too low. Small
circuits (up to 20 coordinates) are better enumerated, and a certificate bounds the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from crashsim_theory import TiltedCoordinates
from scipy.special import logsumexp

from crashsim.analytic.first_order import (
    Analysis,
    coordinates_of,
    margins_of,
    of_output,
    of_pair,
)
from crashsim.analytic.rounding import least_reaching
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.campaign.tasks import Task, fold
from crashsim.coordinates.streams import Stream, generator
from crashsim.faults import check_drawable
from crashsim.noticing import notice
from crashsim.results.estimate import Estimate, Quantity
from crashsim.sampling.tilted.aiming import SMALL, points_of, proposal, sparse_proposal
from crashsim.sampling.tilted.events import Event, class_events, tail_events
from crashsim.sampling.tilted.sparse_tilts import SparselyWeighted
from crashsim.sampling.tilted.weights import RareEvent, WeightSums, unseen
from crashsim.space import FaultSpace

SAMPLES = 4096  # at most, of each event
REL_WIDTH = 0.2  # relative half-width to stop at
_GUIDES = 16  # events with a part of the proposal
_BATCH = 512  # samples in a block
_BLOCKS = 2**32  # of an event, more than are ever drawn
FEWEST = 1024  # samples before it may stop;
_FEWEST_SCATTERED = 2048  # so that scattered ones find what there is


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
            events = class_events(space.clean()[b], margins, b, changes[b])
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
                "samples, so their intervals may be too narrow; compare them with another "
                "method: the number of samples of a score does not change theirs",
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
    the ``index`` in it alone. The interval is Student's on the logarithm's scale, with
    half as many degrees of freedom as there are effective hits; without a hit, its upper end
    follows from the weights' bound.
    """
    # The likeliest events guide the sampling; all of them count.
    guides = sorted(events, key=lambda event: -event.weight)[:_GUIDES]
    check_drawable((place.fault for place in space.placements), "importance sampling")
    readouts = np.array([event.readout for event in events])
    thresholds = np.array([event.threshold for event in events])
    task: Task[WeightSums]
    if isinstance(events[0].gains, FactoredSurrogate):
        laws, shares = sparse_proposal(guides)
        task = SparselyWeighted(
            space, readouts, thresholds, laws, shares, seed, stream, index, samples
        )
    else:
        law = TiltedCoordinates.of(coordinates_of(space))
        gains, shares = proposal(space, law, guides)
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
    fewest = _FEWEST_SCATTERED if space.N <= SMALL else FEWEST
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
        delta = (self.space.outputs(points_of(e)) - self.space.clean())[:, 0]
        hit = (delta @ self.readouts.T >= self.thresholds).any(1)
        return WeightSums.of(np.where(hit, np.exp(log_weight), 0.0))


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
    unmet = max(unseen(row.samples, 1 - confidence) for row in rows)
    note = (
        f"asymptotic interval; {sum(row.samples for row in rows)} samples in all; a way to fail "
        f"that no sample met has a probability of at most {unmet:.2g}"
    )
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
