"""The margins of examples, and how steeply they go with what faults displace.

An example is right while the output of its class is above those of its nearest rivals: margins, of
which each falls, to first order, by the sum of the displacements of struck values times slopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crashsim.analytic.gains import Gains
from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.errors import NotApplicableError
from crashsim.faults import AdditiveNoise, Fault, WordFault
from crashsim.faults.words.guarded import largest_possible
from crashsim.metrics import predicted_class
from crashsim.model.inputs import Inputs
from crashsim.space import FaultSpace

RIVALS = 3  # classes next to an example's own
_TOGETHER = 16  # examples of which slopes are made at a time
_FAR = 6.0  # standard deviations of a margin, beyond which faults do not reach it
_HALF = 0.5  # of a margin, that a single fault may take and still be far from deciding

Slopes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Margins:
    """The margins of the examples that faults can reach, with their slopes.

    Attributes:
        space: the unprotected faults.
        clean: (E, R) margins without faults, of the examples within reach.
        slopes: of each placement, (values, E R) of the margins by what faults displace.
        steady: number of examples out of reach that are right.
        count: number of all examples.
        clips: whether weights that are read as impossible numbers become 0.
    """

    space: FaultSpace
    clean: Floats
    slopes: tuple[Slopes, ...]
    steady: int
    count: int
    clips: bool = False

    def moves(self, number: int) -> Floats:
        """(words, bits) by how much each coordinate of a placement alone changes its word."""
        p = self.space.placements[number]
        assert isinstance(p.fault, WordFault)
        return word_moves(p.fault, self.space.tensors[p.site.module], self.clips)

    @property
    def right(self) -> float:
        """The share of examples that are right without faults."""
        return (self.steady + float((self.clean > 0).all(1).sum())) / self.count


def margins_of(
    space: FaultSpace,
    inputs: Inputs,
    targets: NDArray[np.int64],
    memory: int,
    clips: bool = False,
) -> Margins:
    """Of labelled examples, a few at a time.

    Args:
        space: of the faults, on any of these examples.
        inputs: examples.
        targets: the class that is right for each.
        memory: bytes that slopes may take.
        clips: as of ``Margins``.

    Raises:
        NotApplicableError: the outputs have no derivative, there is one class alone, or the slopes
            of the examples within reach do not fit.
    """
    if space.K < 2:
        raise NotApplicableError("protect: the model has one output; it needs classes")
    helper = _by_value(space)
    sizes = [_squares(p, helper, clips) for p in space.placements]
    clean, kept, steady, held = [], [], 0, 0
    for start in range(0, len(inputs), _TOGETHER):
        part = inputs.part(start, min(start + _TOGETHER, len(inputs)))
        there = helper.at_examples(part)
        at, rows = _rivals(there.clean(), targets[start : start + len(part)])
        gains = Gains.of(there, "zero", 2**40, rows)
        assert gains.kept is not None
        near = _within_reach(at, gains.kept, sizes)
        steady += int(((at > 0).all(1) & ~near).sum())
        clean.append(at[near])
        kept.append([np.ascontiguousarray(k[:, near]) for k in gains.kept])
        held += sum(k.nbytes for k in kept[-1])
        if 2 * held > memory:
            raise NotApplicableError(
                f"protect: the slopes of {sum(map(len, clean))} examples within reach of faults "
                f"take {held / 2**30:.1f} GiB; give fewer examples, or memory="
            )
    slopes = tuple(
        np.concatenate([k[i] for k in kept], 1).reshape(len(kept[0][i]), -1)
        for i in range(len(space.placements))
    )
    return Margins(space, np.concatenate(clean), slopes, steady, len(inputs), clips)


def _by_value(space: FaultSpace) -> FaultSpace:
    """The same sites with faults that displace each value by itself, in the same order."""
    faults: dict[str, Fault] = {}
    for p in space.placements:
        if p.site.kind == "parameter":
            faults[p.site.name] = AdditiveNoise(std=1.0)
        elif isinstance(p.fault, WordFault):
            raise NotApplicableError(
                f"protect: stored bits of neurons ({p.site.name!r}) change with each example; give "
                "faults of weights, or crashes of neurons"
            )
        else:
            faults[p.site.name] = p.fault
    one: Any = space.examples.part(0, 1)
    found = FaultSpace(space.model, one, faults, readout=space.readout.name or None)
    names = [p.site.name for p in found.placements]
    if names != [p.site.name for p in space.placements]:
        raise NotApplicableError("protect: several faults strike one site; give one fault for each")
    if not found.has_derivatives:
        raise NotApplicableError(f"protect: {found.why_no_derivatives}")
    return found


def _squares(p: Placement, helper: FaultSpace, clips: bool) -> tuple[Floats, Floats]:
    """(values,) the variance of what faults displace each value by, and the most that one does."""
    chance = np.asarray(p.fault.change_probabilities, dtype=np.float64)
    if not isinstance(p.fault, WordFault):
        variance = np.broadcast_to(chance * (1 - chance), p.size)
        return variance, np.ones(p.size)
    moves = word_moves(p.fault, helper.tensors[p.site.module], clips)
    chance = np.broadcast_to(chance, moves.size).reshape(moves.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        second = np.nan_to_num(moves**2, nan=np.inf)
        return (chance * second).sum(1), np.sqrt(second).max(1)


def word_moves(fault: WordFault, value: torch.Tensor, clips: bool = False) -> Floats:
    """(words, bits) by how much each coordinate alone changes its word's value."""
    value = value.detach()
    moves = fault.displacement(value).double().cpu().numpy().reshape(value.numel(), -1)
    if not clips:
        return np.asarray(moves)
    own = value.reshape(-1, 1).double().cpu().numpy()
    with np.errstate(invalid="ignore"):
        possible = np.abs(own + moves) < float(largest_possible(value))
    return np.where(possible, moves, -own)


def _rivals(clean: Floats, targets: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(b, R) margins to the nearest rivals, and the combinations (b, R, K) of outputs they are."""
    b, k = clean.shape
    own = clean[np.arange(b), targets]
    others = clean.copy()
    others[np.arange(b), targets] = -np.inf
    near = np.argsort(-others, axis=1, kind="stable")[:, : min(RIVALS, k - 1)]
    rows = np.zeros((b, near.shape[1], k))
    np.put_along_axis(rows, near[..., None], -1.0, axis=2)
    rows[np.arange(b), :, targets] += 1.0
    return own[:, None] - np.take_along_axis(clean, near, 1), rows


def _within_reach(
    margins: Floats, kept: Sequence[Slopes], sizes: Sequence[tuple[Floats, Floats]]
) -> NDArray[np.bool_]:
    """(b,) of which examples faults may change whether they are right."""
    variance, most = np.zeros_like(margins), np.zeros_like(margins)
    for slope, (second, largest) in zip(kept, sizes, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            variance += np.nan_to_num(np.einsum("n,nbr->br", second, slope**2), nan=np.inf)
            each = np.abs(slope).max(initial=0.0, axis=0, where=(largest == np.inf)[:, None, None])
            finite = np.where(np.isfinite(largest), largest, 0.0).astype(np.float32)
            top = np.abs(slope * finite[:, None, None]).max(0, initial=0.0)
            most = np.maximum(most, np.where(each > 0, np.inf, top))
    reached = (np.abs(margins) < _FAR * np.sqrt(variance)) | (_HALF * np.abs(margins) < most)
    right = (margins > 0).all(1)
    # Who is wrong is right again once all margins are above 0; who is right falls by any of them.
    found: NDArray[np.bool_] = np.where(right, reached.any(1), (reached | (margins > 0)).all(1))
    return found


def right_classes(space: FaultSpace, targets: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """(B,) the class that is right for each input of a space: its target, or what it is without
    faults."""
    return predicted_class(space.clean()) if targets is None else targets
