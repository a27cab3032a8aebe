"""The mixture of laws that importance sampling draws from: every way to fail that is foreseen.

For each event the faults' law is tilted by several linear surrogates, because none is always right:

- so far that the network itself, at the tilted mean point, reaches the event; and once more around
  that point (the design point), by its slopes there;
- so far that the surrogate does, and most of the way (the rungs of a ladder): where few faults
  decide, the network at a mean point of many small ones says little;
- the same by what each fault does alone, where faults are few enough to try them all.

Beside these a law that scatters faults anywhere, more of them than there are, and the faults' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from crashsim_theory import LinearSurrogate, TiltedCoordinates

from crashsim.analytic.first_order import coordinates_of
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.sampling.tilted.events import Event
from crashsim.sampling.tilted.sparse_tilts import SparseTilt, tilted
from crashsim.sampling.tilted.weights import DEFENSIVE
from crashsim.space import FaultSpace

MOST_ALONE = 1024  # faults that are tried one at a time
SMALL = 50  # coordinates among which scattered faults soon strike the same few again
_SURROGATE = 0.1  # share of the law tilted by the surrogate to the network's own event,
_LADDER = 0.3  # of the rungs together; the rest is around the design point
_LEVELS = (0.7, 1.0)  # of the rungs, from the mean to the event
_MINOR = 0.02  # share of an event, among many, that is guided by the surrogate alone
_ALIKE = 0.02  # gains that differ by less, of the largest, guide alike
_SCATTERED, _SCATTERED_AMONG_MANY = 0.3, 0.05  # shares of the law that scatters faults:
_STRUCK, _MORE = 2.5, 2.0  # so many, and this many times as many as there are
_SPARSE_GUIDES = 4  # of them, among many coordinates
_SPARSE_TILTS = ((1.0, 0.6), (1.4, 0.4))  # times the surrogate's, and their shares
_GRID = 25
AIMING = 2 * (2 * (2 * _GRID + 1) + 3)  # passes at most, before two tails are sampled
_WEAKEST, _STRONGEST = 0.1, 60.0  # tilts times gains: e^60 strikes all that helps


def sparse_proposal(guides: list[Event]) -> tuple[list[SparseTilt], Floats]:
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


def proposal(
    space: FaultSpace, law: TiltedCoordinates, guides: list[Event]
) -> tuple[Floats, Floats]:
    """The mixture to draw from: what each part's coordinates are tilted by (J, N), its share."""
    weights = np.array([event.weight for event in guides])
    weights = weights / weights.sum()
    parts, shares = [np.zeros((1, space.N))], [np.array([DEFENSIVE])]
    if space.N <= MOST_ALONE:
        few = space.N <= SMALL
        parts.append(law.scattered(max(_STRUCK, _MORE * float(law.p.sum())))[None])
        shares.append(np.array([_SCATTERED if few else _SCATTERED_AMONG_MANY]))
    rest = 1 - sum(share.sum() for share in shares)
    alone = _alone(space, law, guides)
    for i, event in enumerate(guides):
        # The surrogate may be wrong about the rarer of two tails; of many rivals, most never win.
        matters = len(guides) <= 2 or weights[i] * rest > _MINOR
        moved = _tilt(space, event) * event.dense
        aimed = [moved]
        local = _at_design_point(space, law, event, moved) if matters else None
        if local is not None:
            aimed.append(local)
        ladder = _ladder(space, event)
        if alone is not None and matters and not _is_alike(alone[i].dense, event.dense):
            ladder += _ladder(space, alone[i])
        parts.append(np.array([*aimed, *ladder]))
        shares.append(weights[i] * rest * _split(len(aimed), len(ladder)))
    return np.concatenate(parts), np.concatenate(shares)


def _split(aimed: int, rungs: int) -> Floats:
    """Shares of an event's laws: one or two aimed at it by the network, then the rungs."""
    of_rungs = _LADDER if rungs else 0.0
    first = np.array([_SURROGATE, 1 - of_rungs - _SURROGATE]) if aimed == 2 else [1 - of_rungs]
    return np.concatenate([first, np.full(rungs, of_rungs / max(rungs, 1))])


def _is_alike(some: Floats, others: Floats) -> bool:
    return bool(np.abs(some - others).max() <= _ALIKE * np.abs(others).max())


def _ladder(space: FaultSpace, event: Event) -> list[Floats]:
    """Tilted gains (N,) under which the surrogate's own mean is at the event, and on the way to it.

    Where the surrogate is at the event, their weights are at most Chernoff's bound over their
    shares: so all that the surrogate foresees is found, whatever the network does at tilted means.
    """
    one = LinearSurrogate(event.shift, event.dense, coordinates_of(space))
    mean, largest = float(one.mean), float(np.abs(event.dense * _units(space)).max())
    if not event.threshold > mean or largest == 0:
        return []
    rungs = []
    for level in _LEVELS:
        t = float(one.tilt(mean + level * (event.threshold - mean)))
        strongest = _inside(np.array([0.0, _STRONGEST / largest]), _has_mean(space, event))[-1]
        if t > 0:
            rungs.append(min(t, float(strongest)) * event.dense)
    return rungs


def _alone(space: FaultSpace, law: TiltedCoordinates, guides: list[Event]) -> list[Event] | None:
    """The events with what each fault does alone as gains, in place of slopes.

    These are right where slopes are not: at the kinks of a maximum, in a saturated unit. None
    where coordinates are too many to change one at a time, or do more than strike or not.
    """
    if space.N > MOST_ALONE or not law.is_bernoulli.all():
        return None
    m, readouts = space.mean_point, np.array([event.readout for event in guides])
    ((at,),) = space.outcomes(Points.at(m))
    if not np.isfinite(at).all():
        return None
    changes = np.zeros((len(guides), space.N))
    for columns, outputs in space.single_outcomes(m, np.ones(space.N)):
        # One that makes outputs infinite shows itself when it is drawn.
        finite = np.isfinite(outputs).all(axis=(1, 2), keepdims=True)
        apart = np.where(finite, outputs, at)[:, 0] - at
        changes[:, columns] = readouts @ apart.T / (1 - m[columns])
    base = readouts @ (at - space.clean()[0]) - changes @ m
    return [
        replace(event, gains=gains, shift=float(shift))
        for event, gains, shift in zip(guides, changes, base, strict=True)
    ]


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
        points = points_of(law.mean(grid[:, np.newaxis] * event.dense))
        delta = (space.outputs(points) - space.clean())[:, 0]
        reached = np.flatnonzero(delta @ event.readout >= event.threshold)
        return int(reached[0]) if len(reached) else None

    coarse = np.concatenate([[0.0], np.geomspace(_WEAKEST, _STRONGEST, _GRID) / scale])
    if not np.isfinite(law.mean(coarse[:, np.newaxis] * event.dense)).all():
        coarse = _inside(coarse, _has_mean(space, event))
    at = first_reached(coarse)
    if at is None or at == 0:
        return float(coarse[-1 if at is None else 0])
    fine = np.linspace(coarse[at - 1], coarse[at], _GRID)
    finer = first_reached(fine)
    return float(fine[-1 if finer is None else finer])


def _has_mean(space: FaultSpace, event: Event) -> Callable[[float], bool]:
    """Whether the law tilted by t times the event's gains has a mean."""
    law = TiltedCoordinates.of(coordinates_of(space))
    return lambda t: bool(np.isfinite(law.mean(t * event.dense)).all())


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


def points_of(e: Floats) -> Points:
    """Coordinates (S, N) as points of few changes."""
    rows, columns = np.nonzero(e)
    return Points(len(e), np.zeros(e.shape[1]), rows, columns, e[rows, columns])
