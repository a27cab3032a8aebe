"""How many of many examples lose or gain their right class, at every rate, without sampling.

Most examples can hardly change, and which can is told by how far their margins are from turning
over. The laws of a few pilots' margins say what such a distance is worth at each rate: a rough risk
of every example. Those of more than a little risk are looked at with laws of their own, the others
now and then, weighted (``examples_looked_at``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.task import pieces_of
from crashsim.space import FaultSpace
from crashsim.sweeping.examples_looked_at import LookedAt
from crashsim.sweeping.margin_tails import EACH, Margins, MarginTails, Question

_SECONDS = 25.0  # of a core, about, that all margins may take
_OF_LAW, _OF_GAINS = 3e-3, 1.6e-8  # seconds of a margin: for each rate, for each coordinate
_PILOTS = 16  # examples whose laws tell the others' risks
_RIVALS = 9  # of an example, at most
_LEADERS = 3  # classes that one which is not predicted must overtake, of those in the lead
_MATTERS = 0.1  # share of an example's risk below which a rival is told by the pilots' laws
_TOGETHER = 2**26  # gains of the examples that are looked at together
_SHARED = 3, 64  # examples a rate at which what rivals share is drawn: of many, of few coordinates

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Changes:
    """What becomes of all examples.

    Attributes:
        moved: (rates,) how many lose their right class, less those that gain it.
        error: (rates,) its standard error, by which examples were looked at.
        clean: how many are right without faults.
        looked_at: the number of examples with laws of their own.
    """

    moved: Floats
    error: Floats
    clean: int
    looked_at: int


@dataclass(frozen=True, eq=False)
class _Examples:
    """All examples without faults.

    Attributes:
        top: (B,) the class of each.
        wanted: (B,) the right one.
        near: (B, k) the rivals that are nearest: of the wanted class where it is predicted, else
            the classes in the lead.
        behind: (B, k) how far these are behind, or in the lead.
    """

    top: NDArray[np.int64]
    wanted: NDArray[np.int64]
    near: NDArray[np.int64]
    behind: Floats

    @property
    def is_right(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.top == self.wanted
        return found

    @classmethod
    def of(
        cls, space: FaultSpace, examples: Labelled, check: Callable[[FaultSpace, object], object]
    ) -> _Examples:
        """Runs all of them, some at a time.

        Args:
            check: given a piece's space and targets, returns its right classes, or None for those
                that are predicted.
        """
        parts: list[tuple[NDArray[np.int64], ...]] = []
        far: list[Floats] = []
        for inputs, targets in examples.pieces(pieces_of(space)):
            part = space.at_examples(inputs)
            clean = part.clean()
            top = predicted_class(clean)
            given = check(part, targets)
            wanted = top if given is None else np.asarray(given, dtype=np.int64)
            rows = np.arange(part.B)
            behind = np.abs(clean[rows, wanted][:, np.newaxis] - clean)
            # Of a class that is not predicted, those in the lead: the first of them decides.
            is_wrong = (wanted != top)[:, np.newaxis]
            order = np.where(is_wrong, -clean, behind)
            order[rows, wanted] = np.inf
            near = np.argsort(order, axis=1, kind="stable")[:, : min(_RIVALS, space.K - 1)]
            parts.append((top, wanted, near))
            far.append(np.take_along_axis(behind, near, 1))
        top, wanted, near = (np.concatenate(each) for each in zip(*parts, strict=True))
        return cls(top, wanted, near, np.concatenate(far))


@dataclass
class _Shared:
    """What rivals share, of a rate: drawn for some examples, applied to all.

    Attributes:
        seen: the doubtful part of the chances so far, weighted.
        drawn, held: of those drawn for: the doubtful part, and what of it holds.
    """

    seen: float = 0.0
    drawn: float = 0.0
    held: float = 0.0

    def chance_to_draw(self, weight: float, share_done: float, wanted: int) -> float:
        """With which an example is drawn for, so that about so many of all are."""
        self.seen += weight
        return min(1.0, wanted * weight * share_done / self.seen) if weight > 0 else 0.0


@dataclass
class ClassChanges:
    """Examples that change their class, over the rates of a curve.

    Attributes:
        space: the model and its faults.
        rates: the least first.
        examples: with their targets.
        seed: of which examples are looked at, and of what rivals share.
        memory: bytes that gains may take, about.
        progress: is told of the examples that are looked at.
    """

    space: FaultSpace
    rates: tuple[float, ...]
    examples: Labelled
    seed: int
    memory: int
    progress: Progress
    tails: MarginTails = field(init=False)
    _left_out: Floats | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tails = MarginTails(self.space, self.rates, self.memory)

    def found(self, check: Callable[[FaultSpace, object], object]) -> Changes:
        """Looks at the examples."""
        every = _Examples.of(self.space, self.examples, check)
        right = every.is_right
        rough, rivals, looked = self._chosen(every)
        questions = [
            Question(int(every.wanted[b]), every.near[b, rivals[b]], bool(right[b]))
            for b in looked.which.tolist()
        ]
        found = self._chances(looked, questions)
        if self._left_out is not None:  # rivals that the pilots' laws tell, as independent ones
            found += (1 - found) * self._left_out[:, looked.which]
        signs = np.where(right, 1.0, -1.0)
        moved, error = looked.total(rough * signs, found * signs[looked.which])
        return Changes(moved, error, int(right.sum()), len(looked.which))

    def _chosen(self, every: _Examples) -> tuple[Floats, NDArray[np.bool_], LookedAt]:
        """Each example's rough risk (rates, B), its rivals that matter (B, k), who is looked at."""
        count, near = every.behind.shape
        each = len(self.rates) * _OF_LAW + self.tails.passes * self.space.N * _OF_GAINS
        budget = max(_SECONDS / each, 1.0)
        if count * near <= budget:
            rough = np.zeros((len(self.rates), count))
            return rough, np.ones((count, near), dtype=np.bool_), LookedAt.all_of(count)
        far = self._risks(every)
        lost = 1 - np.prod(1 - np.clip(far, 0.0, 1.0), axis=2)
        rough = np.where(every.is_right, lost, far[:, :, 0])
        # At the rate at which an example counts most of all.
        totals = rough.sum(1, keepdims=True)
        at = np.divide(rough, totals, out=np.zeros_like(rough), where=totals > 0).argmax(0)
        then = far[at, np.arange(count)]
        matters = then >= _MATTERS * then.max(1, keepdims=True)
        matters[~every.is_right] = np.arange(near) < _LEADERS
        matters[:, 0] = True
        self._left_out = 1 - np.prod(
            1 - np.where(matters | ~every.is_right[:, np.newaxis], 0.0, np.clip(far, 0.0, 1.0)),
            axis=2,
        )
        costs = matters.sum(1).astype(np.float64)
        rng = generator(self.seed, Stream.CLASS_CHANGES)
        return rough, matters, LookedAt.by_risk(rough, costs, budget, rng)

    def _risks(self, every: _Examples) -> Floats:
        """(rates, B, k) how likely a margin turns over that is so far away, by some pilots'."""
        nearest = np.argsort(every.behind[:, 0], kind="stable")
        spread = np.linspace(0, len(nearest) - 1, _PILOTS + 2)[1:-1].round().astype(np.int64)
        pilots = np.sort(nearest[spread])
        questions = [Question(int(every.top[b]), self._second(every, b), True) for b in pilots]
        total = np.zeros((len(self.rates), *every.behind.shape))
        for margins in self._margins(pilots, questions):
            for i in range(len(self.rates)):
                total[i] += margins.beyond(i, every.behind)
        return total / len(pilots)

    @staticmethod
    def _second(every: _Examples, b: int) -> NDArray[np.int64]:
        """The nearest rival of the predicted class, or the right class where that is another."""
        if every.top[b] != every.wanted[b]:
            return every.wanted[b : b + 1]
        return every.near[b, :1]

    def _chances(self, looked: LookedAt, questions: list[Question]) -> Floats:
        """(rates, n) P(the class is lost, or gained), of those looked at."""
        count = len(questions)
        sure, doubtful = np.zeros((2, len(self.rates), count))
        shared = {
            (is_loss, i): _Shared() for is_loss in (True, False) for i in range(len(self.rates))
        }
        weights = 1 / looked.chances[looked.which]
        wanted = _SHARED[self.space.N <= EACH]
        order = np.argsort([len(q.rivals) for q in questions], kind="stable")
        numbers, in_order = looked.which[order], [questions[n] for n in order]
        for done, (n, margins) in enumerate(
            zip(order.tolist(), self._margins(numbers, in_order), strict=True), 1
        ):
            question = questions[n]
            rng = generator(self.seed, Stream.CLASS_CHANGES, 1 + int(looked.which[n]))
            for i in range(len(self.rates)):
                tails = np.clip(margins.tails(i), 0.0, 1.0)
                if question.is_loss:
                    sure[i, n], doubtful[i, n] = tails.max(), tails.sum() - tails.max()
                else:
                    doubtful[i, n] = tails.min() if len(tails) > 1 else 0.0
                    sure[i, n] = tails.min() - doubtful[i, n]
                part = shared[question.is_loss, i]
                weight = float(weights[n] * doubtful[i, n])
                chance = part.chance_to_draw(weight, done / count, wanted)
                if chance > 0 and rng.random() < chance:
                    holds = margins.chance(i, tails, rng) - sure[i, n]
                    part.drawn += weight / chance
                    part.held += float(weights[n]) * holds / chance
            self.progress("prediction", done, count)
        losses = np.array([q.is_loss for q in questions])
        for (is_loss, i), part in shared.items():
            share = part.held / part.drawn if part.drawn > 0 else 0.5
            here = losses == is_loss
            sure[i, here] += min(max(share, 0.0), 1.0) * doubtful[i, here]
        return np.minimum(sure, 1.0)

    def _margins(self, numbers: NDArray[np.int64], questions: list[Question]) -> Iterator[Margins]:
        """The margins of some examples, in this order, of which neighbours ask alike."""
        inputs = self.examples.among(numbers, pieces_of(self.space))
        start = 0
        while start < len(questions):
            rivals = len(questions[start].rivals)
            most = max(1, _TOGETHER // (rivals * self.space.slopes.size * self.tails.passes))
            stop = start
            while (
                stop < min(len(questions), start + most) and len(questions[stop].rivals) == rivals
            ):
                stop += 1
            yield from self.tails.of(inputs.part(start, stop), questions[start:stop])
            start = stop
