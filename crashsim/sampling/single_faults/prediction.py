"""Which single faults may change which answers, as the gradient predicts: strata of alike pairs.

A pair is a fault and an example. Its predicted effect z is the largest, over the example's nearest
rivals, of the change that the fault makes to a margin by the gradient, over the margin. Where that
gradient is far below the usual one at its site, little is said by it: a neuron that is silent here
may be woken. Such pairs go by t, what the fault would do with a gradient of usual size; so do large
faults that the gradient takes for harmless. Octaves of z, and of t, make the strata, and each
of the two a chain (``strata``) as long as effects are below 1. What is predicted decides where is
looked: no value rests on it, and of intervals only what ``strata`` assumes of chains.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.faults import WordFault
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.slopes import Slopes, Values
from crashsim.metrics import predicted_class
from crashsim.sampling.single_faults.strata import FALL
from crashsim.space import FaultSpace

RIVALS = 3  # of each example, whose margins are looked at
EDGES = 2.0 ** np.array([-14, -12, -10, -8, -6, *range(-5, 4)])  # of the octaves
SHARE = 0.5  # of the memory that gains may take here
_OCTAVES = len(EDGES) + 1
NO_EFFECT = 0  # the stratum of faults that leave the value what it is
UNKNOWN = 1 + 2 * _OCTAVES  # the stratum of faults of which nothing is predicted
COUNT = UNKNOWN + 1  # strata: these two, by z, and by t
_CHAIN = int(np.searchsorted(EDGES, 1.0))  # the octave up to 1, at which chains end
_UPPER = np.log2(np.append(EDGES, np.inf))  # ends of the octaves
_USUAL = 0.25  # of the usual gradient, below which a gradient says little
_LARGE, _HARMLESS = 0.5, 0.125  # effect from which, and share of it, a fault goes by t
_TOGETHER = 16  # examples of a pass
_LEAST = 1e-9  # margin, of the largest output: ties have none

Codes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The strata of all pairs, made anew wherever they are read.

    Attributes:
        space: the model, its examples and faults.
        values: of each placement, what its faults move; None where nothing is predicted.
        slopes: of each placement, (2, size, B): the largest and the smallest slope of a margin by
            each of these values, over the margin.
        why_none: why nothing is predicted, where nothing is.
    """

    space: FaultSpace
    values: tuple[Values | None, ...]
    slopes: tuple[NDArray[np.float32], ...]
    why_none: str = ""

    @classmethod
    def of(cls, space: FaultSpace, memory: int) -> Prediction:
        """By gradients, where there are any and they fit the memory, in bytes."""
        nothing = (None,) * len(space.placements)
        if why := _why_none(space):
            return cls(space, nothing, (), why)
        chosen, start = [], 0
        for p in space.placements:
            if _is_predicted(p):
                chosen.append(replace(p, start=start, stop=start + p.size, count=None))
                start += p.size
        slopes = Slopes(FaultyModel(space.faulty_model.model, space.examples, chosen))
        if 8 * space.B * slopes.size > SHARE * memory:
            why = f"gradients of {space.B} examples do not fit in {memory:,} bytes (memory=)"
            return cls(space, nothing, (), why)
        try:
            found = iter(_ends(space, slopes))
        except RuntimeError as error:  # torch's, of models that it does not differentiate
            return cls(space, nothing, (), f"the model has no derivatives ({error})")
        of_all = [next(found) if _is_predicted(p) else _NONE for p in space.placements]
        each = iter(slopes.values)
        values = tuple(next(each) if _is_predicted(p) else None for p in space.placements)
        return cls(space, values, tuple(of_all))

    @property
    def is_any(self) -> bool:
        """Whether anything is predicted."""
        return not self.why_none

    def codes(self, number: int, example: int) -> Codes:
        """(size,) the stratum of each fault of a placement, on one example."""
        if self.values[number] is None:
            return self._unpredicted(number)
        z, t, is_sure, same = self._effects(number, example)
        if not t.any():  # no slope anywhere: the model hides its own, as where it rounds
            return self._unpredicted(number)
        found = 1 + np.digitize(np.where(is_sure, z, t), EDGES) + _OCTAVES * ~is_sure
        found[np.isnan(t)] = UNKNOWN
        found[same] = NO_EFFECT
        return found.astype(np.uint8)

    def _unpredicted(self, number: int) -> Codes:
        """One stratum, and that of what changes nothing."""
        p = self.space.placements[number]
        found = np.full(p.size, UNKNOWN, dtype=np.uint8)
        v = self.space.slopes.values[number]
        if v.by_value:
            found[v.displacements().ravel() == 0] = NO_EFFECT
        return found

    def _effects(
        self, number: int, example: int
    ) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]:
        """z and t of each fault of a placement, whether z is to be trusted, and whether the fault
        leaves the value what it is."""
        v = self.values[number]
        assert v is not None
        up, down = self.slopes[number][:, :, example, None]
        size = np.maximum(np.abs(up), np.abs(down))
        usual = float(np.sqrt(np.mean(size**2.0)))
        moved = v.displacements()
        with np.errstate(over="ignore", invalid="ignore"):
            z, t = np.maximum(moved * up, moved * down), np.abs(moved) * usual
            effect = np.abs(moved) * size
        lost = ~np.isfinite(moved)
        z, t = (np.where(lost, np.inf, each) for each in (z, t))
        is_sure = (size >= _USUAL * usual) & ~((effect >= _LARGE) & (z < _HARMLESS * effect))
        same = (moved == 0) & v.by_value
        return np.maximum(z, 0.0).ravel(), t.ravel(), (is_sure | lost).ravel(), same.ravel()

    def harm(self, number: int, example: int) -> Floats:
        """(size,) how likely each fault of a placement is to change an answer, about."""
        if self.values[number] is None:
            return np.zeros(self.space.placements[number].size)
        z = np.minimum(self._effects(number, example)[0], 1e6) ** 4
        found: Floats = z / (1 + z)
        return found


def expected(codes: NDArray[np.int64]) -> Floats:
    """(n,) how likely a hit is in some strata, before any was drawn: about z^4 / (1 + z^4); of
    those that go by t, a tenth of t^2 / (1 + t^2)."""
    by_t, octave = np.divmod(np.asarray(codes) - 1, _OCTAVES)  # of what is not known: low t
    middle = np.concatenate([[EDGES[0] / 2], EDGES * np.sqrt(2)])[octave]
    z, t = middle**4, middle**2
    found = np.where(by_t == 1, 0.1 * t / (1 + t), z / (1 + z))
    found = np.where(np.asarray(codes) == UNKNOWN, 0.05, np.clip(found, 1e-6, 0.98))
    return np.where(np.asarray(codes) == NO_EFFECT, 0.0, found)


def chains(
    codes: NDArray[np.int64], signs: NDArray[np.int64], broken: Collection[int]
) -> tuple[NDArray[np.int64], Floats]:
    """(n,) of strata in order, the next stronger one of a chain (-1 without), and what part of its
    chance of a hit, or of 1, is the most that can be (1 of strata without a chain).

    Args:
        codes: (n,).
        signs: (n,) strata of another sign are no part of the chain.
        broken: codes whose place in a chain is not trusted.
    """
    stronger, falls = np.full(len(codes), -1, dtype=np.int64), np.ones(len(codes))
    by_t, octave = np.divmod(codes - 1, _OCTAVES)
    for i in np.flatnonzero((codes != NO_EFFECT) & (octave < _CHAIN)).tolist():
        if int(codes[i]) in broken or codes[i] == UNKNOWN:
            continue
        top = 0.0
        above = slice(i + 1, i + 2)
        is_same = (by_t[above] == by_t[i]) & (signs[above] == signs[i])
        if (is_same & (octave[above] <= _CHAIN)).any():
            stronger[i], top = i + 1, _UPPER[octave[i + 1]]
        falls[i] = FALL ** (top - _UPPER[octave[i]])
    return stronger, falls


def weaker(code: int) -> set[int]:
    """A stratum of a chain and all weaker ones."""
    first = code - (code - 1) % _OCTAVES
    return set(range(first, code + 1))


_NONE = np.empty((2, 0, 0), dtype=np.float32)


def _why_none(space: FaultSpace) -> str:
    """Why nothing is predicted; empty where something is."""
    if not any(map(_is_predicted, space.placements)):
        return "there are no derivatives by bits of neurons' outputs, nor by what spikes depend on"
    return "" if space.has_derivatives or space.strikes_words else space.why_no_derivatives


def _is_predicted(p: Placement) -> bool:
    """Whether a gradient says anything of the faults: a word's bits move the weight that it is."""
    if any(site.acts_on_spikes for site in p.sites):
        return False
    if isinstance(p.fault, WordFault) and not p.fault.adds_up:
        return p.site.kind == "parameter" and p.size == p.units * len(p.fault.masks)
    return True


def _ends(space: FaultSpace, slopes: Slopes) -> list[NDArray[np.float32]]:
    """Of each placement, (2, size, B): the largest and smallest slopes of margins, over these."""
    readouts, margins = _margins(space)
    found = [np.zeros((2, v.size, space.B), np.float32) for v in slopes.values]
    clean = slopes.moved([0.0] * len(slopes.values))
    together = _TOGETHER if slopes.shares_passes else 1
    for low in range(0, space.B, together):
        part = slice(low, min(low + together, space.B))
        some = slopes.at(space.examples.part(part.start, part.stop), clean, readouts[part])
        for into, slope in zip(found, some, strict=True):
            scaled = slope / margins[part, :, None].astype(np.float32)
            into[0, :, part], into[1, :, part] = scaled.max(1).T, scaled.min(1).T
    return found


def _margins(space: FaultSpace) -> tuple[Floats, Floats]:
    """(B, R, K) combinations of outputs, and (B, R) what has to be lost for a change of answer."""
    clean = space.clean()
    rows = np.arange(space.B)
    scale = np.maximum(np.abs(clean).max(), 1e-30)
    if space.K == 1:  # no classes: the size of the change, as against that of the outputs
        readouts = np.concatenate([np.ones((space.B, 1, 1)), -np.ones((space.B, 1, 1))], axis=1)
        return readouts, np.full((space.B, 2), np.sqrt(np.mean(clean**2)) or 1.0)
    top = predicted_class(clean)
    behind = clean[rows, top][:, None] - clean
    behind[rows, top] = np.inf
    rivals = np.argsort(behind, axis=1, kind="stable")[:, : min(RIVALS, space.K - 1)]
    readouts = np.zeros((*rivals.shape, space.K))
    np.put_along_axis(readouts, rivals[..., None], 1.0, axis=-1)
    readouts[rows, :, top] = -1.0
    return readouts, np.maximum(behind[rows[:, None], rivals], _LEAST * scale)
