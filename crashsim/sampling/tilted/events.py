"""Events that importance sampling aims at: an output that moves too far, a class that changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.analytic.first_order import Surrogate
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.metrics import predicted_class


@dataclass(frozen=True)
class Event:
    """A direction in which the output may move too far, for one input.

    Attributes:
        readout: (K,) coefficients c; the event is ``c . Delta >= threshold``.
        threshold: of it.
        gains: (N,) of c . Delta's linear surrogate; of many coordinates the surrogate () itself.
        weight: its share in the proposal, up to a factor.
        tilt: of the surrogate itself, that reaches the event; None: not known yet.
        shift: of c . Delta's linear surrogate without a fault, where its gains are listed.
    """

    readout: Floats
    threshold: float
    gains: Floats | FactoredSurrogate
    weight: float
    tilt: float | None = None
    shift: float = 0.0

    @property
    def dense(self) -> Floats:
        """The gains, of coordinates that are few enough to list them."""
        assert not isinstance(self.gains, FactoredSurrogate)
        return self.gains


def tail_events(one: Surrogate, output: int, k: int, epsilon: float) -> list[Event]:
    """Both tails of an output."""
    unit = np.zeros(k)
    unit[output] = 1.0
    # The rarer, the less the surrogate knows which of the two is likelier, and a share too large
    # costs little, one too small much: so shares as the square roots, within a factor of ten.
    upper = float(one.saddlepoint(epsilon, "upper")) ** 0.5
    lower = float(one.saddlepoint(epsilon, "lower")) ** 0.5
    floor = max(upper, lower, 1e-150) / 10
    shares = (max(upper, floor), max(lower, floor))
    if isinstance(one, FactoredSurrogate):
        return [
            Event(unit, epsilon, one, shares[0]),
            Event(-unit, epsilon, one.negative, shares[1]),
        ]
    shift = float(one.shift)
    return [
        Event(unit, epsilon, one.gains, shares[0], shift=shift),
        Event(-unit, epsilon, -one.gains, shares[1], shift=-shift),
    ]


def class_events(clean: Floats, margins: Surrogate, b: int, chances: Floats) -> list[Event]:
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
            shift = gap + float(margins.shift[b, i])
            events.append(Event(readout, reach, margins.gains[b, i], weight, shift=shift))
    return events
