"""What each step of a score costs: operations and memory, counted before anything is run.

Operations become seconds by a named exchange rate, not by a clock: ``CORE``, of a core that does
ten billion operations a second; what a pass comes to in them, ``size.py`` says. So a plan, and what
a budget of seconds buys, is the same on every machine; a slower core takes longer, and computes the
same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crashsim.analytic import sketch
from crashsim.analytic.gains import KEPT, are_dense, kept_bytes
from crashsim.analytic.surrogates.rivals import MOST_DRAWN, RIVALS, margins_at_most
from crashsim.analytic.surrogates.surrogate_law import law_operations
from crashsim.analytic.weighing import weighed_bytes
from crashsim.arguments import is_number, shown
from crashsim.errors import ArgumentError
from crashsim.results.numbers import CORE, RATE_NAME
from crashsim.sampling.chips.drawn import probability_of_none
from crashsim.sampling.chips.run import DEFAULT_CHIPS
from crashsim.sampling.enumeration import outcomes_of
from crashsim.sampling.pilot import strikes_at_most
from crashsim.sampling.tilted.aiming import AIMING, MOST_ALONE
from crashsim.sampling.tilted.importance import SAMPLES as RARE_SAMPLES
from crashsim.sampling.words.strata import SAMPLES as STRIKES
from crashsim.scoring.judging import Judging
from crashsim.scoring.planning.size import (
    BACKWARDS,
    BUDGET,
    Size,
    is_sketched,
    no_surrogate,
    operations_of_margins,
    probes_of,
    singles_sampled,
)
from crashsim.scoring.variance_reduction import is_controlled

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([smh])\s*", re.ASCII)
_TAIL = 2000  # operations for each gain of an event: some forty steps to the right tilt
_CELLS = 3328  # of gains that are factored: as many are gathered to, once
_GATHERED = 40  # for each gain, to gather them
_COUNTED_GAIN, _ENTRIES = 200, 4000  # for each slope, to count its bits' gains: in so many entries
_RARE = BUDGET / 10  # operations of importance sampling among many coordinates, a question
_FEWEST_PASSES = 32  # of each input
_FEWEST_STRIKES = 256  # of single faults of words
_WEIGHED = 200  # for each value that faults move: where it is at the mean, what its bits weigh
_COUNTED = 40  # for each output of a sample: sums, counts, order
_DRAWN = 60  # for each fault of a sample, and for each coordinate that is drawn one by one
_GUIDED = 8  # for each coordinate of a rare sample and part of the law that it is drawn from
_PARTS = 98  # of that law, at most
_BOUND_PASSES = 20  # that b1 and b2 take: in double precision, forwards and back
_PROVED = 1e10  # for each bound: about a second
_KEPT_VALUES = 2**26  # of samples, at most
_IN_FLIGHT = 2**28  # bytes of activations, drawn faults and outputs


@dataclass(frozen=True)
class Cost:
    """Of a step.

    Attributes:
        operations: of floating-point numbers.
        memory: bytes that it needs at a time.
    """

    operations: float
    memory: float = 0.0

    @property
    def seconds(self) -> float:
        """On the core of the exchange rate."""
        return self.operations / CORE


def read_budget(budget: float | str | None) -> float | None:
    """A number of operations: as given, or of a time such as ``"90s"``, ``"2m"``, ``"1h"``.

    Raises:
        ArgumentError: it is neither.
    """
    if budget is None:
        return None
    if isinstance(budget, str) and (found := _BUDGET.fullmatch(budget)):
        operations = float(found[1]) * _UNITS[found[2]] * CORE
    elif not isinstance(budget, str) and is_number(budget):
        operations = float(budget)
    else:
        operations = 0.0
    if not 1e6 <= operations <= 1e21:
        raise ArgumentError(
            f"budget={shown(budget)}; give a time such as '90s', '2m' or '1h' (at {RATE_NAME}), or "
            "a number of operations from 1e6 to 1e21"
        )
    return operations


def cost_of_sample(size: Size) -> float:
    """Of one Monte Carlo sample: drawn, run on all inputs, and counted."""
    return size.operations + _struck(size) + _COUNTED * size.B * size.K


def cost_of_chips(size: Size, judging: Judging, chips: int | None) -> Cost:
    """To judge chips on all examples: those that are struck run, and virtual ones are products.

    Args:
        size: of the space.
        judging: what is asked of chips.
        chips: their number; None where a width decides: then of as many as are judged unasked.
    """
    space, examples = size.space, judging.examples.count
    struck = 1 - probability_of_none(space.placements)
    each = examples / size.B * size.operations * struck + _struck(size)
    count = _COUNTED * examples * space.K
    total = (chips or DEFAULT_CHIPS) * (each + count * struck)
    if judging.virtual:
        gathered = 2 * _struck(size) / _DRAWN * examples * space.K
        total += judging.virtual * (gathered + _struck(size) + count * struck)
        total += operations_of_margins(size) * examples / max(space.B, 1)
    return Cost(total, min(_IN_FLIGHT, 8.0 * examples * space.K * max(chips or 1, 1)))


def affordable_samples(size: Size, operations: float, fewest: int, most: int) -> int:
    """How many samples so many operations pay for, with the single faults that come before them."""
    passes = operations / cost_of_sample(size)
    low, high = fewest, int(min(max(fewest, passes), most))
    while low < high:
        middle = (low + high + 1) // 2
        if _strikes_before(size, middle) + middle <= passes:
            low = middle
        else:
            high = middle - 1
    return low


def _strikes_before(size: Size, samples: int) -> int:
    """How many single faults a control variate looks at before so many samples, at most."""
    space = size.space
    if are_dense(space) or no_surrogate(size) is not None or not is_controlled(size, samples):
        return 0
    return strikes_at_most(space, samples)


def _struck(size: Size) -> float:
    """To draw the faults of a sample."""
    return _DRAWN * sum(p.size * p.fault.change_probability for p in size.space.placements)


def cost_of_sampling(size: Size, samples: int) -> Cost:
    """Of a Monte Carlo run, and of the single faults that its control may be mended by, at most."""
    first = _strikes_before(size, samples)
    kept = min(samples * size.B * size.K, max(_KEPT_VALUES, 200 * size.B * size.K))
    return Cost((first + samples) * cost_of_sample(size), 4.0 * kept + _IN_FLIGHT)


def operations_of_tails(size: Size) -> float:
    """To find the tilt for every tail and every margin of the surrogate."""
    if are_dense(size.space):
        return 2.0 * _TAIL * size.gains
    return 2.0 * (_GATHERED * size.gains + _TAIL * _CELLS * size.B * size.K)


def passes_of_rare_events(size: Size) -> int | None:
    """How many passes of an input importance sampling spends; None for as many as it takes.

    Among many coordinates there are enough of them to look at the inputs that matter most.
    """
    if are_dense(size.space):
        return None
    return int(max(_FEWEST_PASSES * size.B, size.scale * _RARE / size.arithmetic_of_one))


def operations_of_rare_events(size: Size) -> float:
    """Of importance sampling: for each input, a tail and a change of its class."""
    if passes := passes_of_rare_events(size):
        return 2 * passes * (size.operations_of_one + _struck(size))
    parts = min(_PARTS, 6 * size.K + 2)
    each = size.operations_of_one + size.N * (_DRAWN + _GUIDED * parts)
    aimed = min(size.K + 1, _PARTS // 6) * AIMING / 2 * (size.operations_of_one + _DRAWN * size.N)
    alone = 2 * size.N * size.operations_of_one if size.N <= MOST_ALONE else 0.0
    return size.B * (2 * RARE_SAMPLES * each + aimed + alone)


def strikes_of_words(size: Size) -> int:
    """How many single faults of words are struck: fewer where a pass takes long."""
    affordable = size.scale * BUDGET / 2 / size.arithmetic
    return int(min(max(_FEWEST_STRIKES, affordable), STRIKES))


def _gradients(size: Size) -> Cost:
    """A pass and one backwards for each output, which takes as long as two.

    Where gains are written out, each takes twice as long, in double precision.
    """
    space = size.space
    if is_sketched(size):
        probes, values = probes_of(size), space.slopes.size
        kept = kept_bytes(space, probes)
        together = sketch.probes_together(values, size.memory, probes)
        passes = (-(-probes // together) + BACKWARDS * probes) * size.operations
        read = 10.0 * kept + _WEIGHED * values
        return Cost(passes + read, 4.0 * together * values + weighed_bytes(values))
    passes = (1 + 2 * size.K) * size.operations
    if are_dense(space):
        return Cost(2 * passes + 20.0 * size.gains, 20.0 * size.gains)
    kept = kept_bytes(space, size.K)
    read = 20.0 * size.B * size.K * space.slopes.size
    if kept > KEPT * size.memory:
        return Cost(passes + read, 2 * kept / size.B)  # made anew, an input at a time
    return Cost(passes + read, 1.5 * kept)


def _differences(size: Size) -> Cost:
    return Cost(2.0 * size.N * size.operations_of_change, 16.0 * size.gains)


def _singles(size: Size) -> Cost:
    """Of single faults: all, or those of a sample of the coordinates."""
    count = singles_sampled(size)
    return _differences(size) if count is None else _sampled_singles(size, count)


def _mean_point_singles(size: Size) -> Cost:
    """Beside the differences, where all single faults are looked at."""
    count = singles_sampled(size)
    return Cost(0.0) if count is None else _sampled_singles(size, count)


def _sampled_singles(size: Size, count: int) -> Cost:
    return Cost(2.0 * count * size.operations_of_change, 16.0 * count * size.B * size.K)


def _parameters(size: Size) -> float:
    return float(sum(tensor.numel() for tensor in size.space.tensors.values()))


def _bounds(count: int) -> Callable[[Size], Cost]:
    return lambda size: Cost(_PROVED * count * min(size.B, 4))


def _tails(size: Size) -> Cost:
    held = size.gains if are_dense(size.space) else 6 * _CELLS * size.B * size.K
    return Cost(operations_of_tails(size), 16.0 * held)


def _margins(size: Size) -> Cost:
    if are_dense(size.space):
        return Cost(4.0 * size.gains, 8.0 * size.gains)
    return Cost(4.0 * size.B * size.K**2)  # combinations of gains that are factored


def _nearest_margins(size: Size) -> Cost:
    held = kept_bytes(size.space, margins_at_most(size.space))
    kept = 1.5 * held if held <= KEPT * size.memory else 2 * held / size.B
    return Cost(operations_of_margins(size), kept)


def _rivals(size: Size) -> Cost:
    rows, values = RIVALS * size.B, size.space.slopes.size
    laws = law_operations(min(size.N, _ENTRIES), rows)
    drawn = _DRAWN * size.N if size.N <= MOST_DRAWN else 0.0
    return Cost(laws + rows * (_COUNTED_GAIN * values + drawn), 64.0 * values)


def _moments(size: Size) -> Cost:
    return Cost(8.0 * size.gains) if are_dense(size.space) else Cost(4.0 * size.B * size.K)


def _rare_events(size: Size) -> Cost:
    values = size.N if are_dense(size.space) else 2**17
    return Cost(operations_of_rare_events(size), 512.0 * 8 * values * 4)


# Of crashsim's own methods and of what they share, beside what is counted in their table.
_COSTS: Mapping[str, Callable[[Size], Cost]] = {
    "exact": lambda size: Cost(
        outcomes_of(size.space) * size.operations,
        8.0 * outcomes_of(size.space) * size.B * size.K,
    ),
    "wide": lambda size: Cost(2 * size.operations, 16 * _parameters(size)),
    "layer_bounds": lambda size: Cost(
        _BOUND_PASSES * size.operations_of_change + 40 * _parameters(size)
    ),
    "gradients": _gradients,
    "taylor": _gradients,
    "differences": _differences,
    "single": _singles,
    "mean-point-single": _mean_point_singles,
    "margins": _margins,
    "nearest_margins": _nearest_margins,
    "nearest-rivals": _rivals,
    "chebyshev": _moments,
    "chernoff": _tails,
    "saddlepoint": _tails,
    "proof": lambda size: Cost(100 * _parameters(size), 64 * _parameters(size)),
    "certificates": _bounds(2),
    "remainder": _bounds(1),
    "linear-exact": _bounds(1),
    "certified-sampling": _bounds(1),
    "importance-sampling": _rare_events,
}


def cost_of(name: str, size: Size, counted: Callable[[Size], float] | None = None) -> Cost:
    """Of a method, or of a result that several share.

    Args:
        name: of it.
        size: of the space.
        counted: what the method itself says of its operations.
    """
    known = _COSTS.get(name)
    found = known(size) if known is not None else Cost(0.0)
    return found if counted is None else Cost(float(counted(size)), found.memory)


def words_of_memory(memory: float) -> str:
    """A number of bytes in the unit that suits it."""
    return f"{memory / 2**30:.2g} GiB" if memory >= 2**29 else f"{memory / 2**20:.0f} MiB"
