"""The oracle: exact answers for small circuits, by summing over every pattern of faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from crashsim.analytic import double_precision
from crashsim.arguments import number
from crashsim.errors import ArgumentError
from crashsim.estimate import Estimate, Values, estimates_of
from crashsim.inputs import ModelInputs
from crashsim.placing import Faults
from crashsim.points import Floats, Points
from crashsim.space import FaultSpace

MAX_COORDINATES = 20
_SLOWER = 6  # coordinates fewer where every outcome takes a forward pass of its own
_MAX_VALUES = 2**28  # numbers held at once: 2 GiB


@dataclass(frozen=True)
class ExactDistribution:
    """The law of Delta: every outcome with its probability.

    Attributes:
        clean: (B, K), F(0).
        deltas: (2^N, B, K), Delta for each fault pattern; pattern j crashes the coordinates
            that are set bits of j.
        probabilities: (2^N,).
    """

    clean: Floats
    deltas: Floats
    probabilities: Floats

    def _expect(self, values: NDArray[Any]) -> Floats:
        """Expectation of (2^N, ...) values, by outcome."""
        expected: Floats = np.tensordot(self.probabilities, values, 1)
        return expected

    @property
    def mean(self) -> Floats:
        """E Delta, (B, K)."""
        return self._expect(self.deltas)

    @property
    def covariance(self) -> Floats:
        """Cov Delta across outputs, (B, K, K)."""
        centred = self.deltas - self.mean
        products: Floats = np.einsum("s,sbk,sbl->bkl", self.probabilities, centred, centred)
        return products

    @property
    def variance(self) -> Floats:
        """Var Delta, (B, K)."""
        centred = self.deltas - self.mean
        return self._expect(centred**2)

    def tail(self, epsilon: float) -> Floats:
        """P(|Delta| >= epsilon), (B, K)."""
        number("epsilon", epsilon, "a number >= 0 in the units of the outputs", least=0)
        return self._expect(np.asarray(np.abs(self.deltas) >= epsilon))

    def any_tail(self, epsilon: float) -> Floats:
        """P(some output moves by epsilon or more), (B,)."""
        number("epsilon", epsilon, "a number >= 0 in the units of the outputs", least=0)
        return self._expect(np.any(np.abs(self.deltas) >= epsilon, axis=2))

    @property
    def class_change(self) -> Floats:
        """P(the predicted class, the first largest output, changes), (B,)."""
        classes = (self.clean + self.deltas).argmax(2)
        return self._expect(classes != self.clean.argmax(1))

    def estimates(self, epsilon: float | None = None) -> list[Estimate]:
        """All of it as estimates of kind ``exact``."""
        mean, variance = self.mean, self.variance
        found = estimates_of(
            "exact", "mean", "exact", per_input=Values(mean), pooled=Values(mean.mean(0))
        )
        found += estimates_of(
            "exact",
            "variance",
            "exact",
            per_input=Values(variance),
            pooled=Values(variance.mean(0)),
            total=Values(variance.mean(0).sum()),
        )
        if epsilon is not None:
            tail = self.tail(epsilon)
            found += estimates_of(
                "exact",
                "tail",
                "exact",
                per_input=Values(tail),
                pooled=Values(tail.mean(0)),
                total=Values(self.any_tail(epsilon).mean()),
                level=epsilon,
            )
        if self.clean.shape[1] > 1:
            change = self.class_change
            found += estimates_of(
                "exact",
                "class-change",
                "exact",
                per_input=Values(change),
                pooled=Values(change.mean()),
            )
        return found


def enumerate_exact(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults,
    sites: str = "hidden",
    *,
    readout: str | int | None = None,
) -> ExactDistribution:
    """The exact law of Delta by evaluating all 2^N fault patterns in double precision.

    Args:
        model: any module that ``FaultSpace`` accepts.
        inputs: (B, ...), or several, as ``FaultSpace`` takes them.
        faults: faults whose coordinates are Bernoulli (all but the Gaussian ones).
        sites, readout: see ``FaultSpace``.

    Raises:
        ArgumentError: more than 20 coordinates, or a law with a continuum of outcomes.
    """
    return enumerate_space(FaultSpace(model, inputs, faults, sites, readout=readout))


def can_enumerate(space: FaultSpace, limit: int = MAX_COORDINATES) -> bool:
    """Whether the space has few enough outcomes to sum over them all."""
    if space.runs_alone:
        limit -= _SLOWER
    return (
        limit >= space.N
        and all(p.fault.is_bernoulli for p in space.placements)
        and space.B * space.K <= _MAX_VALUES >> space.N
    )


def enumerate_space(space: FaultSpace) -> ExactDistribution:
    """``enumerate_exact`` for a FaultSpace; the same conditions and errors."""
    continuous = [p for p in space.placements if not p.fault.is_bernoulli]
    if continuous:
        fault = continuous[0].fault
        raise ArgumentError(
            f"faults: {fault} has a continuum of outcomes (its law is {fault.law.name}); "
            "enumeration needs faults that strike or do not"
        )
    if not can_enumerate(space):
        most = MAX_COORDINATES - (_SLOWER if space.runs_alone else 0)
        raise ArgumentError(
            f"sites: {space.N} fault coordinates on {space.B} inputs with {space.K} outputs give "
            f"2^{space.N} patterns, too many to enumerate; at most {most} coordinates "
            "(choose fewer sites or inputs)"
        )
    space = double_precision(space)
    patterns = (np.arange(2**space.N)[:, None] >> np.arange(space.N)) & 1
    rows, columns = np.nonzero(patterns)
    points = Points(len(patterns), np.zeros(space.N), rows, columns, np.ones(len(rows)))
    p = space.mean_point  # E e = p for a Bernoulli coordinate
    probabilities = np.prod(np.where(patterns == 1, p, 1 - p), axis=1)
    return ExactDistribution(space.clean(), space.outputs(points) - space.clean(), probabilities)
