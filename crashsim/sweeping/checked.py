"""How far a predicted curve may be off: a few chips, in truth and by its surrogate.

A prediction is the exact law of a linear surrogate. Chips that are judged both ways, on the very
same examples, show what the surrogate gets wrong; as both share all other chance, few chips do.
Half of the examples are those nearest to another class, which change most; the others are drawn
from all the rest, and weigh more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from crashsim_theory import NORMAL
from numpy.typing import NDArray

from crashsim.analytic.first_order import double_precision
from crashsim.analytic.gains import Gains, kept_bytes
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.model.inputs import Inputs
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.task import outputs_of, pieces_of
from crashsim.sampling.intervals import Spread, half_width
from crashsim.space import FaultSpace
from crashsim.sweeping.margin_tails import sharing_gains
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.rates import at_rate
from crashsim.sweeping.task import Runs

CHIPS = 24  # that check a prediction
_EXAMPLES = 48  # on so many examples, about
_FEWEST = 8

Right = Callable[[FaultSpace, Any], NDArray[np.int64] | None]


@dataclass(frozen=True)
class Check:
    """What chips show of a prediction.

    Attributes:
        off: (R,) share of examples that lose their right class in truth, less those that gain it,
            beyond what the surrogate says, over chips.
        half: (R,) half-width of its interval.
        shared: (R,) half-width of a band over all rates.
        alpha: 1 - confidence.
        chips, examples: by how many.
        rows: forward passes of one example.
    """

    off: Floats
    half: Floats
    shared: Floats
    alpha: float
    chips: int
    examples: int
    rows: int


@dataclass(frozen=True, eq=False)
class _Picked:
    """Examples that check.

    Attributes:
        inputs: of m examples, the nearest first.
        right: (m,) their right classes.
        near: how many of them are the nearest of all.
        count: of all examples.
    """

    inputs: Inputs
    right: NDArray[np.int64]
    near: int
    count: int

    def mean(self, values: Floats) -> Floats:
        """The average over all examples of what is known (..., m) of these."""
        rest = len(self.right) - self.near
        total = values[..., : self.near].sum(-1)
        if rest:
            total = total + (self.count - self.near) * values[..., self.near :].mean(-1)
        found: Floats = total / self.count
        return found


def check_prediction(
    chips: NestedChips, examples: Labelled, right: Right, memory: int, alpha: float
) -> Check:
    """Judges chips of their own by inference and by the surrogate, at every rate.

    Args:
        chips: pilots; all of a single block.
        examples: of which some are picked.
        right: given a piece's space and targets, the right classes; None: those predicted.
        memory: bytes that gains may take.
        alpha: 1 - confidence of each interval.
    """
    fits = int(memory * chips.space.B / max(kept_bytes(chips.space, chips.space.K), 1))
    most = min(max(fits, _FEWEST), _EXAMPLES)
    picked = _picked(chips.space, examples, right, most, chips.seed)
    space = chips.space.at_examples(picked.inputs)
    points = chips.points(0)
    clean = predicted_class(space.clean()) == picked.right
    lost = _in_truth(space, points, picked, clean)
    said = clean.astype(float) - _by_surrogate(space, chips.rates, points, picked, memory)
    off = lost - said  # (R, S, m)
    of_chips, of_examples = picked.mean(off), off.mean(1)
    if not of_chips.any():  # then the next chip may be off by as much as any changed
        changed = max(float(np.abs(picked.mean(lost)).max()), 1 / picked.count)
        of_chips = np.concatenate([of_chips, np.full_like(of_chips[:1], changed)])
    struck = 1 - np.array(chips.without_fault)
    halves = [
        [
            _half(of_chips[i:], of_examples[i:], float(struck[i]), picked, error)
            for i in range(len(chips.rates))
        ]
        for error in (alpha, alpha / len(chips.rates))
    ]
    rows = Runs.of(points, _is_noisy(space)).count * len(picked.right)
    return Check(
        of_chips[: len(struck)].mean(1),
        np.array(halves[0]),
        np.array(halves[1]),
        alpha,
        chips.chips,
        len(picked.right),
        rows,
    )


def _half(
    of_chips: Floats, of_examples: Floats, struck: float, picked: _Picked, alpha: float
) -> float:
    """Half the width of a rate's interval: over chips, and over the examples that were drawn.

    A chip or an example that was not seen may be as far off as the farthest that was, at this rate
    or a larger one, of which all smaller ones' faults are some; but only where it is struck.

    Args:
        of_chips: (R, S) at the rate and those above it.
        of_examples: (R, m) the same of examples.
        struck: probability that a chip is struck at the rate.
        picked: the examples.
        alpha: 1 - confidence.
    """
    over_chips = _over(of_chips, struck, alpha)
    left = (picked.count - picked.near) / picked.count
    if not left:
        return over_chips
    return float(np.hypot(over_chips, left * _over(of_examples[:, picked.near :], struck, alpha)))


def _over(values: Floats, struck: float, alpha: float) -> float:
    spread = Spread.of(values[0])
    farthest = np.asarray(struck * np.abs(values).max())
    return float(half_width(replace(spread, largest=farthest), values.shape[1], alpha))


def _in_truth(
    space: FaultSpace, points: list[Points], picked: _Picked, clean: NDArray[np.bool_]
) -> Floats:
    """(R, S, m) 1 where the right class is lost, -1 where it is gained."""
    runs = Runs.of(points, _is_noisy(space))
    right = np.zeros((runs.count + 1, len(picked.right)))
    right[-1] = clean  # of chips without faults
    for first, each in runs.each:
        for start, stop, outputs in outputs_of(space, each):
            right[first + start : first + stop] = predicted_class(outputs) == picked.right
    return np.asarray(clean - right[runs.which])


def _by_surrogate(
    space: FaultSpace,
    rates: tuple[float, ...],
    points: list[Points],
    picked: _Picked,
    memory: int,
) -> Floats:
    """(R, S, m) whether the surrogate has the right class."""
    wide, found = double_precision(space), [np.zeros(0)] * len(rates)
    for taken, which in sharing_gains(rates, space):
        gains = Gains.of(at_rate(space, rates[taken]), "mean", memory)
        for i in which:
            mean = [p.fault.mean for p in at_rate(space, rates[i]).placements]
            there = wide.clean()
            if any(map(np.any, mean)):
                there = wide.slopes.outputs(wide.examples, wide.slopes.moved(mean))
            between = gains.sums.mean * (1 - rates[i] / rates[taken])
            outputs = there + gains.along(points[i]) + between
            found[i] = (predicted_class(outputs) == picked.right).astype(float)
    return np.stack(found)


def _is_noisy(space: FaultSpace) -> bool:
    return any(p.fault.law == NORMAL for p in space.placements)


def _picked(space: FaultSpace, examples: Labelled, right: Right, most: int, seed: int) -> _Picked:
    """Some of the examples: the nearest to another class, and as many of the others by chance."""
    margins, wanted = [], []
    for inputs, targets in examples.pieces(pieces_of(space)):
        part = space.at_examples(inputs)
        clean = part.clean()
        given = right(part, targets)
        classes = predicted_class(clean) if given is None else np.asarray(given, dtype=np.int64)
        own = np.take_along_axis(clean, classes[:, None], 1)
        others = np.where(np.arange(space.K) == classes[:, None], -np.inf, clean)
        margins.append(np.abs(own[:, 0] - others.max(1)))
        wanted.append(classes)
    order = np.argsort(np.concatenate(margins), kind="stable")
    count = len(order)
    near = count if count <= most else most // 2
    rest = generator(seed, Stream.CURVE_CHECK).permutation(order[near:])[: most - near]
    numbers = np.concatenate([order[:near], rest])
    return _Picked(
        examples.among(numbers, pieces_of(space)), np.concatenate(wanted)[numbers], near, count
    )
