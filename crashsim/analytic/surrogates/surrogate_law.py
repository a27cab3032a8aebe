"""The exact law of a linear surrogate of Delta: tails and class changes without further passes.

``crashsim_theory.SurrogateLaw`` finds it by FFT for any number of coordinates. A class changes when
the margin of some rival reaches 0: the chances of all rivals are added, and what several share is
taken off by a thousand draws of the surrogates' faults (of no pass of the network).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from crashsim_theory import (
    Contributions,
    LinearSurrogate,
    SurrogateLaw,
    TheoryError,
    chance_of_any,
    chunk_of,
)
from numpy.typing import NDArray

from crashsim.analytic.first_order import Surrogate, coordinates_of, margins_of
from crashsim.analytic.rounding import least_reaching, resolution_of
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import NotApplicableError
from crashsim.metrics import predicted_class
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace

Name = Literal["surrogate-law", "single-law"]
# Of the law of one surrogate and of its tail, which may take a tilt and a law of its own for every
# coordinate that the tilt makes likely, up to some number: counted in multiplications of a matrix
# product, of which a core does 1e10 a second.
_OPERATIONS_OF_ROW = 1e7
_OPERATIONS_OF_TILTED, _MOST_TILTED = 1.3e4, 10_000
_OPERATIONS_OF_GAIN = 800.0


def law_estimates(
    name: Name,
    space: FaultSpace,
    surrogate: Surrogate,
    margins: Surrogate | None,
    epsilon: float | None,
    seed: int,
    note: str,
    progress: Callable[[int, int], None] | None = None,
) -> Estimates:
    """P(|Delta| >= epsilon) and P(class changes), of linear surrogates' exact law.

    Args:
        name: of the method.
        space: of the faults.
        surrogate: (B, K) of Delta.
        margins: (B, K - 1) of the rivals over the predicted class, None without classes.
        epsilon: of the tails; None: no tails.
        seed: of what several rivals share.
        note: what the surrogate is.
        progress: is called with the questions of inputs that are done, and their number.

    Raises:
        NotApplicableError: a law of coordinates that is not known by its outcomes.
    """
    found = Estimates()
    tell = _teller(progress, space.B * ((epsilon is not None) + (margins is not None)))
    try:
        if epsilon is not None:
            values = _tails(surrogate, least_reaching(space, epsilon), tell)
            found += deterministic(name, "tail", "estimate", values, level=epsilon, note=note)
        if margins is not None:
            changes = _class_changes(space, margins, seed, tell)
            found += deterministic(name, "class-change", "estimate", changes, note=note)
    except TheoryError as error:
        raise NotApplicableError(str(error)) from error
    return found


def why_no_single_changes(space: FaultSpace) -> str | None:
    """Why the changes of single faults say nothing of sums of them; None where they do."""
    if not all(p.fault.is_binary for p in space.placements):
        return "for faults that strike or do not"
    if space.strikes_words:
        return (
            "bits of words that do not add up change outputs by up to 1e38, which no lattice holds "
            "beside small changes; word-strata serves there"
        )
    return None


def single_changes(space: FaultSpace) -> LinearSurrogate:
    """The sum of what every fault changes alone on the clean network, (B, K).

    Exact to first order in the probability of a fault. A network of spikes, whose output jumps, is
    served better so than by an expansion about the mean.

    Raises:
        NotApplicableError: faults that do not strike or not, or that depend on each other.
    """
    if reason := why_no_single_changes(space):
        raise NotApplicableError(reason)
    coordinates = coordinates_of(space)
    gains = np.zeros((space.B, space.K, space.N))
    clean = space.clean()
    for columns, outputs in space.single_changes(np.zeros(space.N), np.ones(space.N)):
        gains[:, :, columns] = np.moveaxis(outputs - clean, 0, -1)
    return LinearSurrogate(np.zeros((space.B, space.K)), gains, coordinates)


def single_margins(space: FaultSpace, surrogate: LinearSurrogate) -> Surrogate | None:
    """The margins of such sums, None without classes."""
    return margins_of(space, surrogate) if space.has_classes else None


def law_operations(coordinates: int, rows: float) -> float:
    """Operations of the laws of some surrogates with so many coordinates each, about."""
    tilted = _OPERATIONS_OF_TILTED * min(coordinates, _MOST_TILTED)
    return rows * (_OPERATIONS_OF_ROW + tilted + _OPERATIONS_OF_GAIN * coordinates)


def _teller(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """What to call whenever one more is done."""
    done = itertools.count(1)

    def tell() -> None:
        if progress is not None:
            progress(next(done), total)

    return tell


def _tails(surrogate: Surrogate, epsilon: float, tell: Callable[[], None]) -> Floats:
    """P(|L| >= epsilon) of every surrogate (...)."""
    values = np.zeros(surrogate.shift.size)
    for chosen, law, _ in laws_by_input(surrogate, surrogate.shift):
        values[chosen] = law.tail(epsilon)
        tell()
    return values.reshape(surrogate.shape)


def _class_changes(
    space: FaultSpace, margins: Surrogate, seed: int, tell: Callable[[], None]
) -> Floats:
    """P(some rival overtakes the predicted class) of every input, (B,)."""
    changes = np.zeros(space.B)
    rivals = space.K - 1
    for chosen, law, contributions in laws_by_input(margins, with_ties(space, margins.shift)):
        b = int(chosen[0]) // rivals
        tails = law.tail(0.0, "upper")
        if contributions is None:
            changes[b] = min(float(tails.sum()), 1.0)
        else:
            rng = generator(seed, Stream.RIVALS, b)
            changes[b] = chance_of_any(law.profiles, tails, contributions, rng)
        tell()
    return changes


def with_ties(space: FaultSpace, shift: Floats, classes: NDArray[Any] | None = None) -> Floats:
    """The margins' shift (B, K - 1), moved by what decides ties.

    Of equal outputs the first is predicted, so a later rival must overtake by more than rounding.

    Args:
        space: whose outputs they are.
        shift: of the rivals over a class.
        classes: (B,) that class; None: the one that is predicted.
    """
    clean = space.clean()
    over = predicted_class(clean) if classes is None else classes
    room = 4 * resolution_of(space) * np.abs(clean).max(1, keepdims=True)
    comes_first = np.arange(space.K - 1) < over[:, np.newaxis]
    moved: Floats = shift + np.where(comes_first, room, -room)
    return moved


def laws_by_input(
    surrogate: Surrogate, shift: Floats
) -> Iterator[tuple[NDArray[np.int64], SurrogateLaw, Contributions | None]]:
    """Each input's surrogates: their numbers in flat order, their law and what they are made of.

    Args:
        surrogate: (B, R).
        shift: (B, R) in place of theirs.
    """
    if isinstance(surrogate, FactoredSurrogate):
        flat, normal = shift.reshape(-1), surrogate.normal_variance.reshape(-1)
        for chosen, chunks in surrogate.chunks():
            law = SurrogateLaw.of_chunks(chunks, flat[chosen], normal[chosen])
            noisy = bool(normal[chosen].any())  # many normal coordinates are not drawn
            yield chosen, law, None if noisy else Contributions(chunks, flat[chosen])
        return
    rows = np.arange(shift.size).reshape(shift.shape)
    for b, chosen in enumerate(rows):
        one = LinearSurrogate(shift[b], surrogate.gains[b], surrogate.coordinates)
        given = None  # nor are coordinates of other laws
        if not one.coordinates.others:
            given = Contributions([chunk_of(one)], one.shift, _normal_covariance(one))
        yield chosen, SurrogateLaw.of(one), given


def _normal_covariance(one: LinearSurrogate) -> Floats | None:
    """(R, R) covariance that normal coordinates add to R surrogates."""
    if not one.coordinates.is_normal.any():
        return None
    weighted = one.gains[:, one.coordinates.is_normal] * one.coordinates.std
    covariance: Floats = weighted @ weighted.T
    return covariance
