"""The output near the clean network, moved by a few words of very many.

A network of millions of weights has eight bits or more to each of them. Derivatives by the weights
themselves say which few matter most, and the bits of these alone are displaced.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Floats, Integers
from crashsim.faults import WordFault
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.slopes import Slopes, Values
from crashsim.model.inputs import Inputs
from crashsim.working import worked

MANY = 2**16  # bits, beyond which no point is made of all of them to look at a few


class FewWords:
    """F(e) for one example, at no fault and at a part of one.

    Args:
        faulty: F.
    """

    def __init__(self, faulty: FaultyModel) -> None:
        self._slopes, self._outputs = Slopes(faulty), faulty.K
        self._like = torch.empty(0, dtype=faulty.model.dtype, device=faulty.model.device)
        self._clean = self._slopes.moved([0.0] * len(self._slopes.values))

    def clean(self, example: Inputs) -> Floats:
        """(K,) the outputs without faults."""
        return np.asarray(self._slopes.outputs(example, self._clean)[0])

    def steepest(self, example: Inputs, count: int) -> tuple[Integers, Floats]:
        """Coordinates (n,), and how steeply the sum of the outputs goes with them, steepest first.

        Args:
            example: a single one.
            count: of each placement, so many values with the largest slopes have their bits looked
                at, and as many of those whose slopes times themselves are largest: what a bit moves
                a value by is the same for all values of an integer format, and goes with the value
                in floating point.

        Raises:
            RuntimeError: torch takes no derivatives of this model.
        """
        columns: list[Integers] = []
        sizes: list[Floats] = []
        found = self._slopes.at(example, self._clean, np.ones((1, self._outputs)))
        for v, slope in zip(self._slopes.values, found, strict=True):
            worked(0.0)
            steep = np.abs(slope[0, 0].astype(np.float64))
            chosen = _largest(steep, count)
            if v.by_value:
                value = v.parameter.abs().reshape(-1).double().cpu().numpy()
                chosen = np.union1d(chosen, _largest(steep * value, count))
            moves = np.abs(v.displacements_of(chosen))
            sizes.append((steep[chosen, None] * np.where(np.isfinite(moves), moves, 0.0)).ravel())
            bits = chosen[:, None] * v.bits + np.arange(v.bits)
            columns.append(v.placement.start + bits.ravel())
        size, column = np.concatenate(sizes), np.concatenate(columns)
        order = np.argsort(-size, kind="stable")
        return column[order], size[order]

    def flat(self, example: Inputs, row: Floats) -> set[int]:
        """The numbers of the placements in which every slope of a sum of outputs is 0.

        Args:
            example: a single one.
            row: (K,) the weights of the sum.
        """
        found = self._slopes.at(example, self._clean, row[None])
        return {i for i, slope in enumerate(found) if not slope.any()}

    def with_all_of(self, example: Inputs, number: int | None) -> Floats:
        """(K,) the outputs when every value of a placement is moved, or none at all."""
        at = list(self._clean)
        if number is not None:
            by_value = self._slopes.values[number].by_value
            at[number] = torch.zeros_like(at[number]) if by_value else torch.ones_like(at[number])
        return np.asarray(self._slopes.outputs(example, at)[0])

    def moved(self, example: Inputs, coordinate: int, change: float) -> Floats:
        """(K,) the outputs with one coordinate at ``change``."""
        at = list(self._clean)
        for i, v in enumerate(self._slopes.values):
            if v.placement.start <= coordinate < v.placement.stop:
                at[i] = self._with(v, at[i], coordinate - v.placement.start, change)
        return np.asarray(self._slopes.outputs(example, at)[0])

    def _with(self, v: Values, clean: Tensor, column: int, change: float) -> Tensor:
        if not v.by_value:
            e = torch.zeros(v.size).to(self._like)
            e[column] = change
            return e
        one = clean.detach().clone()  # in the layout of the model's own
        where = np.unravel_index(column // v.bits, tuple(one.shape))
        one[tuple(int(i) for i in where)] += change * float(v.moved_by(np.array([column]))[0])
        return one


def has_many_words(faulty: FaultyModel) -> bool:
    """Whether faults strike so many bits, or parameters, that a point of all of them costs more
    than a pass."""
    of_words = [p for p in faulty.placements if isinstance(p.fault, WordFault)]
    of_parameters = [p for p in faulty.placements if p.site.kind == "parameter"]
    return any(sum(p.size for p in struck) > MANY for struck in (of_words, of_parameters))


def _largest(sizes: Floats, count: int) -> NDArray[np.int64]:
    """The places of the largest, in order."""
    if len(sizes) <= count:
        return np.arange(len(sizes))
    return np.sort(np.argpartition(sizes, -count)[-count:])
