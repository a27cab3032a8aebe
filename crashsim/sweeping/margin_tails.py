"""How often margins between classes turn over, at every rate of a curve, from gains taken once.

The gains of a margin are counted in entries once (``crashsim_theory.sums``); at another rate the
entries keep their gains, and the law costs one Fourier transform. Where the margins are without the
faults' spread, at the mean point, is computed at every rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from crashsim_theory import NORMAL, Contributions, GainChunk, chance_of_all, chance_of_any
from crashsim_theory.sums.profile import Profile, profiles_of_chunks
from crashsim_theory.sums.tails import tails
from crashsim_theory.sums.word_steps import WordSteps, profile_of_words, word_steps
from numpy.typing import NDArray

from crashsim.analytic.first_order import double_precision
from crashsim.analytic.gains import Gains, InputSlopes
from crashsim.analytic.rounding import resolution_of
from crashsim.arrays import Floats
from crashsim.injection.slopes import Values
from crashsim.model.inputs import Inputs
from crashsim.space import FaultSpace
from crashsim.sweeping.rates import at_rate

EACH = 2**14  # coordinates up to which gains are taken at every rate, and entries stay alone
_COMMON = 0.02  # rates above it: no fault decides alone, and a law on fewer points does
_POINTS = 2**14, 2**11  # of the lattice for rare and for common faults
_SMALL = 1.2e-2  # rates up to which the mean point is near enough to that of other rates
_TAKEN = 4e-3  # rate up to which these take their gains
_NEAR = 3.5  # ratio of larger rates that share their gains
_FEWEST, _DRAWS, _MOST = 24, 128, 1024  # draws of faults; the most, of few coordinates
_STRUCK = 2**18  # coordinates in all of them, of many


@dataclass(frozen=True, eq=False)
class Question:
    """Whether a class is lost to any of some rivals, or gained over all of them.

    Attributes:
        wanted: the class.
        rivals: (R,) others.
        is_loss: whether any of them overtaking it matters; else its overtaking all of them.
    """

    wanted: int
    rivals: NDArray[np.int64]
    is_loss: bool

    def readouts(self, classes: int) -> Floats:
        """(R, K) the margins whose being positive matters, as combinations of outputs."""
        found = np.zeros((len(self.rivals), classes))
        found[np.arange(len(self.rivals)), self.rivals] = 1.0
        found[:, self.wanted] = -1.0
        return found if self.is_loss else -found

    def ties(self, room: float) -> Floats:
        """(R,) what decides ties: of equal outputs the first is the class."""
        found = np.where(self.rivals < self.wanted, room, -room)
        return found if self.is_loss else -found


@dataclass(frozen=True, eq=False)
class _Anchor:
    """The rates that share the gains of one of them.

    Attributes:
        space: with the faults at that rate.
        rate: it.
        which: the numbers of the rates.
    """

    space: FaultSpace
    rate: float
    which: list[int]

    @cached_property
    def striking(self) -> list[int]:
        """The numbers of the placements whose faults strike or do not."""
        return [i for i, v in enumerate(self._values) if v.placement.fault.law != NORMAL]

    @property
    def _values(self) -> list[Values]:
        return self.space.slopes.values

    @cached_property
    def displacements(self) -> list[Floats]:
        """Of each such placement's values, (size, bits)."""
        return [self._values[i].displacements() for i in self.striking]

    @cached_property
    def rates(self) -> list[Floats]:
        """Of each such placement, () or of the displacements' shape."""
        found = []
        for i, d in zip(self.striking, self.displacements, strict=True):
            p = np.asarray(self._values[i].placement.fault.rate, dtype=np.float64)
            found.append(p if p.ndim == 0 else p.reshape(d.shape))
        return found

    @cached_property
    def steps(self) -> list[WordSteps] | None:
        """How bits move values, where entries may be counted by value."""
        if sum(d.size for d in self.displacements) <= EACH:
            return None
        return word_steps(self.displacements, self.rates)

    @cached_property
    def noise(self) -> list[tuple[int, Floats]]:
        """The numbers of the other placements, and their values' variances (size,)."""
        found = []
        for i, v in enumerate(self._values):
            if i not in self.striking:
                variance = np.asarray(v.placement.fault.variance)
                d = v.displacements()
                spread = variance if variance.ndim == 0 else variance.reshape(d.shape)
                found.append((i, (spread * d * d).sum(1)))
        return found

    def margins(self, slopes: InputSlopes) -> _Counted:
        """An example's margins, from each placement's slopes (size, R)."""
        rows = slopes[0].shape[1]
        of_rows = [np.ascontiguousarray(slope.T) for slope in slopes]
        covariance = np.zeros((rows, rows))
        for i, second in self.noise:
            wide = of_rows[i].astype(np.float64)
            covariance += (wide * second) @ wide.T
        struck = [of_rows[i] for i in self.striking]
        counted = _Counted(self, struck, [], covariance)
        if self.steps is not None:
            found = [
                profile_of_words(self.steps, [s[r] for s in struck], 0.0, covariance[r, r])
                for r in range(rows)
            ]
        else:
            found = profiles_of_chunks(counted.chunks(1.0), np.zeros(rows), np.diag(covariance))
        return replace(counted, profiles=found)


@dataclass(frozen=True, eq=False)
class _Counted:
    """Gains of an example's margins at an anchor.

    Attributes:
        anchor: of which rates.
        slopes: (R, size) of each placement whose faults strike.
        profiles: of each margin, without shift.
        covariance: (R, R) that noise adds.
    """

    anchor: _Anchor
    slopes: list[NDArray[np.float32]]
    profiles: list[Profile]
    covariance: Floats

    def chunks(self, share: float) -> list[GainChunk]:
        """All gains, with rates of such a share of the anchor's."""
        each = zip(self.slopes, self.anchor.displacements, self.anchor.rates, strict=True)
        return [GainChunk(slope, d, np.minimum(p * share, 1.0)) for slope, d, p in each]

    def at(self, share: float, level: Floats) -> list[Profile]:
        """The profiles at a share of the anchor's rates.

        Args:
            level: (R,) of the margins at the mean point.
        """
        found = []
        for one, where in zip(self.profiles, level.tolist(), strict=True):
            p = np.minimum(one.p * share, 1.0)
            mean = float((one.counts * p) @ one.gains)
            noise = one.normal_variance * share**2
            found.append(replace(one, p=p, shift=where - mean, normal_variance=noise))
        return found


@dataclass(frozen=True, eq=False)
class Margins:
    """The margins of one example at every rate.

    Attributes:
        question: what is asked of them.
        clean: (R,) without faults.
        levels: (rates, R) at the mean points.
        ties: (R,) what is to be added to them.
        rates: of the curve.
        counted: their gains, at one rate of several each.
    """

    question: Question
    clean: Floats
    levels: Floats
    ties: Floats
    rates: tuple[float, ...]
    counted: list[_Counted]

    def _at(self, i: int) -> tuple[_Counted, float]:
        found = next(one for one in self.counted if i in one.anchor.which)
        return found, self.rates[i] / found.anchor.rate

    def _profiles(self, i: int) -> list[Profile]:
        found, share = self._at(i)
        return found.at(share, self.levels[i] + self.ties)

    def tails(self, i: int) -> Floats:
        """(R,) P(the margin is not negative) at a rate."""
        zero = np.asarray(0.0)
        return np.array(
            [float(tails(p, zero, "upper", _points(p), far=0.0)) for p in self._profiles(i)]
        )

    def beyond(self, i: int, distances: Floats) -> Floats:
        """(...) P(the first margin rises by so much) at a rate."""
        found, share = self._at(i)
        one = found.at(share, self.levels[i] - self.clean)[0]
        least = tails(one, np.asarray(distances), "upper", _points(one), far=0.0)
        return np.where(least > 1e-12, least, 0.0)

    def chance(self, i: int, of_margins: Floats, rng: np.random.Generator) -> float:
        """P(what is asked) at a rate, given the margins' tails: draws what they share."""
        found, share = self._at(i)
        chunks, profiles = found.chunks(share), self._profiles(i)
        shift = np.array([p.shift for p in profiles])
        noise = found.covariance * share**2 if found.covariance.any() else None
        given = Contributions(chunks, shift, noise)
        draws = _MOST
        if sum(chunk.size for chunk in chunks) > EACH:
            struck = float(profiles[0].counts @ profiles[0].p)
            draws = int(np.clip(_STRUCK / max(struck, 1.0), _FEWEST, _DRAWS))
        chance = chance_of_any if self.question.is_loss else chance_of_all
        return chance(profiles, of_margins, given, rng, draws)


def _points(profile: Profile) -> int:
    return _POINTS[bool(np.max(profile.p, initial=0.0) > _COMMON)]


class MarginTails:
    """The margins of examples at the rates of a curve.

    Args:
        space: the model and its faults: Bernoulli or normal, and independent.
        rates: the least first.
        memory: bytes that gains may take, about.
    """

    def __init__(self, space: FaultSpace, rates: Sequence[float], memory: int) -> None:
        self.rates, self._memory = tuple(rates), memory
        self._wide = double_precision(space)
        spaces = [at_rate(space, rate) for rate in rates]
        means = [[p.fault.mean for p in one.placements] for one in spaces]
        self._moved = [
            self._wide.slopes.moved(mean) if any(map(np.any, mean)) else None for mean in means
        ]
        self._resolution = resolution_of(self._wide)
        self._anchors = []
        for taken, numbers in sharing_gains(self.rates, space):
            self._anchors.append(_Anchor(spaces[taken], rates[taken], numbers))

    @property
    def passes(self) -> int:
        """How often each margin's gains are taken."""
        return len(self._anchors)

    def of(self, inputs: Inputs, questions: Sequence[Question]) -> Iterator[Margins]:
        """The margins of some examples, of as many rivals each."""
        outputs = self._outputs(inputs)
        readouts = np.stack([q.readouts(outputs.shape[2]) for q in questions])
        levels = np.einsum("abk,brk->abr", outputs, readouts)
        room = 4 * self._resolution * np.abs(outputs[0]).max(1)
        counted: list[list[_Counted]] = [[] for _ in questions]
        for anchor in self._anchors:
            part = anchor.space.at_examples(inputs)
            gains = Gains.of(part, "mean", self._memory, readouts)
            for b, slopes in gains.each():
                counted[b].append(anchor.margins(slopes))
        for b, question in enumerate(questions):
            yield Margins(
                question,
                levels[0, b],
                levels[1:, b],
                question.ties(float(room[b])),
                self.rates,
                counted[b],
            )

    def _outputs(self, inputs: Inputs) -> Floats:
        """(1 + rates, b, K) without faults, and at the mean point of each rate."""
        wide = self._wide.at_examples(inputs)
        slopes, found = self._wide.slopes, [wide.clean()]
        for moved in self._moved:
            found.append(found[0] if moved is None else slopes.outputs(wide.examples, moved))
        return np.stack(found)


def sharing_gains(rates: Sequence[float], space: FaultSpace) -> list[tuple[int, list[int]]]:
    """Which rates share the gains of one of them: the number of that one, and of them all."""
    if space.N <= EACH:
        return [(i, [i]) for i in range(len(rates))]
    found: list[list[int]] = []
    for i, rate in enumerate(rates):
        if found and (rate <= _SMALL or rate <= _NEAR * rates[found[-1][0]]):
            found[-1].append(i)
        else:
            found.append([i])
    return [(max((i for i in s if rates[i] <= _TAKEN), default=s[-1]), s) for s in found]
