"""Derivatives by the values that faults displace: one number a weight, whatever bits it has.

A fault of a stored word has a coordinate for each bit, but all of them move the same value: the
derivative by coordinate (i, b) is dF/dw_i times the displacement of bit b. So where a placement is
the only one at its parameter, the derivative by the value is taken, and a coordinate's is had by a
multiplication. At all other placements it is the derivative by the coordinate itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.placement import Placement
from crashsim.faults.words.word_fault import BitSteps, WordTable
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.site_changes import steps_of
from crashsim.model.inputs import Inputs
from crashsim.working import worked

Slope = NDArray[np.float32]
Point = Sequence[float | Floats]  # for each placement one number for all coordinates, or (size,)


@dataclass(frozen=True)
class Values:
    """The values that a placement's coordinates move.

    Attributes:
        placement: of the fault.
        bits: coordinates of each value; 1 too where slopes are by coordinate.
        size: the number of values.
        by_value: whether slopes are by value, and not by coordinate.
    """

    placement: Placement
    bits: int
    size: int
    by_value: bool
    _faulty: FaultyModel

    @property
    def parameter(self) -> Tensor:
        """The values, where slopes are by value."""
        return self._faulty.model.tensors[self.placement.site.module].detach()

    def displacements(self, part: slice = slice(None)) -> Floats:
        """(n, bits) what each coordinate of some values moves them by; ones where slopes are by
        coordinate. Of all values at once it takes eight bytes for each bit."""
        if not self.by_value:
            return np.ones((len(range(*part.indices(self.size))), 1))
        steps = self._steps
        if isinstance(steps, BitSteps):
            return np.asarray(steps.of_values(part).double().cpu().numpy())
        return np.asarray(steps.view(self.size, self.bits)[part].double().cpu().numpy())

    def listed(self, part: slice = slice(None)) -> tuple[Integers, Floats, Floats] | None:
        """The words (n,) of some values, their steps (n,), and what the coordinates of every word
        move it by, in steps, (words, bits); None where words are many, or are none."""
        if not self.by_value or not isinstance(self._steps, BitSteps):
            return None
        found = self._steps.listed(part)
        if found is None:
            return None
        words, steps, changes = (tensor.cpu().numpy() for tensor in found)
        return words, steps.astype(np.float64), changes

    def moved_by(self, columns: Integers) -> Floats:
        """(n,) the displacements of some coordinates, counted from the placement's first."""
        if not self.by_value:
            return np.ones(len(columns))
        index = torch.from_numpy(np.asarray(columns, np.int64)).to(self.parameter.device)
        moved: Floats = self._steps.index_select(0, index).double().cpu().numpy()
        return moved

    def displacements_of(self, values: Integers) -> Floats:
        """(n, bits) what the coordinates of some values move them by."""
        columns = np.asarray(values, dtype=np.int64)[:, None] * self.bits + np.arange(self.bits)
        return self.moved_by(columns.ravel()).reshape(columns.shape)

    @cached_property
    def _steps(self) -> Tensor | BitSteps:
        steps = steps_of(self.placement, self.parameter)
        if isinstance(steps, WordTable):
            return self.placement.fault.displacement(self.parameter).reshape(-1)
        return steps


def values_of(faulty: FaultyModel) -> list[Values]:
    """What the coordinates of each placement move, in order."""
    names = [p.site.module for p in faulty.placements if p.site.kind == "parameter"]
    found = []
    for p in faulty.placements:
        bits = p.size // p.units
        is_alone = p.site.kind == "parameter" and names.count(p.site.module) == 1
        if is_alone and p.size == bits * p.units:
            found.append(Values(p, bits, p.units, True, faulty))
        else:
            found.append(Values(p, 1, p.size, False, faulty))
    return found


class Slopes:
    """Derivatives of F by values.

    Args:
        faulty: F.

    Attributes:
        values: what the coordinates of each placement move, in order.
    """

    def __init__(self, faulty: FaultyModel) -> None:
        self._faulty, self.values = faulty, values_of(faulty)
        self._by_value = [v for v in self.values if v.by_value]
        self._by_coordinate = [v for v in self.values if not v.by_value]

    @property
    def shares_passes(self) -> bool:
        """Whether one backward pass serves several inputs."""
        return not self._faulty.strikes_weights and self._faulty.keeps_order

    @property
    def size(self) -> int:
        """The number of values that slopes are by."""
        return sum(v.size for v in self.values)

    def moved(self, point: Point) -> list[Tensor]:
        """The values of each placement at a point, or its coordinates where slopes are by those."""
        model = self._faulty.model
        found = []
        for v, own in zip(self.values, point, strict=True):
            worked(0.0)
            if v.by_value:
                found.append(_moved(v, own))
            else:
                e = torch.tensor(own, dtype=model.dtype, device=model.device)
                found.append(e.expand(v.placement.size))
        return found

    def at(self, inputs: Inputs, moved: Sequence[Tensor], readouts: Floats) -> list[Slope]:
        """Of combinations of outputs, for b inputs (one, unless they share passes).

        Args:
            inputs: the examples.
            moved: the point, as ``moved`` returns it.
            readouts: the combinations, (R, K); or of each input its own, (b, R, K).

        Returns:
            for each placement, (b, R, size) in single precision.
        """
        shape = (len(inputs), readouts.shape[-2])
        found: list[Slope] = [np.zeros((*shape, v.size), np.float32) for v in self.values]
        for row, slopes in enumerate(self.each(inputs, moved, readouts)):
            for into, slope in zip(found, slopes, strict=True):
                if slope is not None:
                    into[:, row] = slope
        return found

    def each(
        self, inputs: Inputs, moved: Sequence[Tensor], readouts: Floats
    ) -> Iterator[list[Slope | None]]:
        """The same of one combination after the other, which is not kept.

        Yields:
            for each placement, (b, size); None where all slopes are 0.
        """
        faulty = self._faulty
        shape = (len(inputs), readouts.shape[-2])
        with faulty.model.at_work(), torch.enable_grad():
            leaves, e = self._leaves(moved, len(inputs))
            for leaf in leaves:
                leaf.requires_grad_()
            if self._by_coordinate:
                # Each input has coordinates of its own: one backward pass serves all inputs.
                e.requires_grad_()
            out = self._outputs(inputs, leaves, e)[0]
            worked(len(inputs))
            rows = torch.from_numpy(readouts).to(out).expand(*shape, -1)
        for weights in rows.unbind(1):
            with faulty.model.at_work(), torch.enable_grad():
                found = self._row(out, weights, leaves, e)
            worked(2 * len(inputs))
            yield found

    def _row(
        self, out: Tensor, weights: Tensor, leaves: Sequence[Tensor], e: Tensor
    ) -> list[Slope | None]:
        """The slopes of one combination; arguments as of ``_gradients``."""
        by_value, by_coordinate = _gradients(out, weights, leaves, e)
        each, found = iter(by_value), list[Slope | None]()
        for v in self.values:
            slope = None
            if v.by_value:
                own = next(each)
                slope = None if own is None else own.reshape(1, -1)
            elif by_coordinate is not None:
                slope = by_coordinate[0, :, v.placement.start : v.placement.stop]
            found.append(None if slope is None else slope.float().cpu().numpy())
        return found

    def _leaves(self, moved: Sequence[Tensor], batch: int) -> tuple[list[Tensor], Tensor]:
        """The values that slopes are by, of their own, and coordinates (1, b, N or 1)."""
        model = self._faulty.model
        leaves = [
            one.detach().view(one.shape)
            for v, one in zip(self.values, moved, strict=True)
            if v.by_value
        ]
        if not self._by_coordinate:
            return leaves, torch.zeros(1, batch, 1, dtype=model.dtype, device=model.device)
        zero = torch.zeros((), dtype=model.dtype, device=model.device)
        at = [
            zero.expand(v.placement.size) if v.by_value else one
            for v, one in zip(self.values, moved, strict=True)
        ]
        return leaves, torch.cat(at).repeat(1, batch, 1)

    def _outputs(self, inputs: Inputs, leaves: Sequence[Tensor], e: Tensor) -> Tensor:
        """(1, b, K) with these values."""
        faulty = self._faulty
        tensors = dict(faulty.model.tensors)
        if any(v.placement.site.kind == "parameter" for v in self._by_coordinate):
            tensors |= faulty.perturbed_weights(e[0, 0])
        tensors |= {
            v.placement.site.module: leaf for v, leaf in zip(self._by_value, leaves, strict=True)
        }
        return faulty.run(inputs, e, tensors)

    def outputs(self, inputs: Inputs, moved: Sequence[Tensor]) -> Floats:
        """F at a point, as ``moved`` returns it: (b, K)."""
        with self._faulty.model.at_work(), torch.no_grad():
            leaves, e = self._leaves(moved, len(inputs))
            out: Floats = self._outputs(inputs, leaves, e)[0].double().cpu().numpy()
        worked(0.0)
        return out

    @cached_property
    def has_forward_derivatives(self) -> bool:
        """Whether torch takes derivatives of this model forwards: of some kernels (of attention,
        of recurrent layers) it takes them backwards alone."""
        none = [np.zeros(v.size) for v in self.values]
        try:
            self.along(self._faulty.examples.part(0, 1), self.moved([0.0] * len(none)), none)
        except RuntimeError:  # NotImplementedError is one
            return False
        return True

    def along(
        self, inputs: Inputs, moved: Sequence[Tensor], directions: Sequence[Floats]
    ) -> Floats:
        """The derivative along a direction of the values, by forward-mode differentiation.

        Args:
            inputs: b examples.
            moved: the point, as ``moved`` returns it.
            directions: for each placement, (size,) by how much each value moves.

        Returns:
            (b, K): at the cost of a few passes, and no gains are kept.
        """
        with self._faulty.model.at_work(), torch.no_grad(), forward_ad.dual_level():
            leaves, e = self._leaves(moved, len(inputs))
            of_e = torch.zeros_like(e)
            each, duals = iter(leaves), []
            for v, direction in zip(self.values, directions, strict=True):
                step = torch.from_numpy(direction).to(e)
                if v.by_value:
                    leaf = next(each)
                    duals.append(forward_ad.make_dual(leaf, step.reshape(leaf.shape)))
                else:
                    of_e[..., v.placement.start : v.placement.stop] = step
            if self._by_coordinate:
                e = forward_ad.make_dual(e, of_e)
            out = self._outputs(inputs, duals, e)
            tangent = forward_ad.unpack_dual(out).tangent
            slope = torch.zeros_like(out) if tangent is None else tangent
            found: Floats = slope[0].double().cpu().numpy()
        return found


def _moved(values: Values, e: float | Floats) -> Tensor:
    """The values with their coordinates at e, one number or (size * bits,)."""
    value, place = values.parameter, values.placement
    with torch.no_grad():
        if not np.any(e):
            return value
        at = torch.tensor(e, dtype=value.dtype, device=value.device).expand(place.size)
        return place.fault.perturb(value, at, place.site.shape)


def _gradients(
    outputs: Tensor, weights: Tensor, leaves: Sequence[Tensor], e: Tensor
) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """The derivatives of a sum of outputs by the values, and by coordinates; None if it has none.

    Args:
        outputs, weights: (b, K) the outputs, and what each counts in the sum.
    """
    if not outputs.requires_grad:
        return [None] * len(leaves), None
    wanted = [*leaves, e] if e.requires_grad else list(leaves)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        (outputs * weights).sum(), wanted, retain_graph=True, allow_unused=True
    )
    return (found[:-1], found[-1]) if e.requires_grad else (found, None)
