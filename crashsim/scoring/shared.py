"""What several methods of a score need: made once, when first needed, and timed on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from crashsim.analytic import first_order, proofs
from crashsim.analytic.first_order import Analysis, Surrogate
from crashsim.analytic.gains import are_dense
from crashsim.analytic.layer_bounds import layer_bounds
from crashsim.analytic.sketch import sketched_mean_point_taylor
from crashsim.analytic.surrogates import rivals
from crashsim.coordinates.placement import strikes_singly
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.results.estimate import Quantity
from crashsim.results.estimates import Estimates
from crashsim.scoring.planning.costs import Cost, cost_of
from crashsim.scoring.planning.size import (
    GRADIENT_VALUES,
    UNDER_GUARDS,
    Size,
    is_sketched,
    no_gradients,
    no_margins,
    no_surrogate,
    probes_of,
    singles_sampled,
    too_many_differences,
    too_many_singles,
)
from crashsim.scoring.request import Progress, Request
from crashsim.scoring.timing import timing

if TYPE_CHECKING:  # it loads with sympy, where there is something to prove
    from crashsim_theory import Certificate
from crashsim.space import FaultSpace
from crashsim.working import Steps, listening

_CERTIFIED = 4  # inputs that get a certificate: each bound takes about a second
_RIVALS = 1024  # classes up to which a certificate bounds what each of them does
NO_EPSILON = "give epsilon: it bounds P(|Delta| >= epsilon)"
NO_SURROGATE = "needs a linear surrogate of Delta, and none is to be had"


class Shared:
    """The shared results of one score.

    Args:
        space: in the model's own precision.
        asked: what the score is asked for.
        methods: names of those that will run.
        timings: to which the seconds of each result are added.
        progress: is told of each result that takes a while.
        size: what these cost.
    """

    def __init__(
        self,
        space: FaultSpace,
        asked: Request,
        methods: frozenset[str],
        timings: dict[str, float],
        progress: Progress,
        size: Size,
    ) -> None:
        self._size = size
        self.space, self.asked, self.methods = space, asked, methods
        self._timings, self._progress = timings, progress
        self._made: dict[str, Any] = {}
        self._reasons: dict[str, str] = {}  # why one is not to be had

    @cached_property
    def of_named(self) -> Shared | None:
        """The shared results of the named outputs alone, where all are too many; else None."""
        size = self._size.of_named
        if size is None:
            return None
        asked = replace(self.asked, outputs=tuple(range(size.K)))
        return Shared(size.space, asked, self.methods, self._timings, self._progress, size)

    def take(self, name: str) -> Any:
        """The result of this name, made now if it is not there.

        Raises:
            NotApplicableError: it is not to be had; says why.
        """
        if name in self._reasons:
            raise NotApplicableError(self._reasons[name])
        if name not in self._made:
            need = NEEDS[name]
            try:
                self._made[name] = self._timed(need) if need.label else need.make(self)
            except NotApplicableError as error:
                self._reasons[name] = str(error)
                raise
        return self._made[name]

    def _timed(self, need: Need) -> Any:
        told = steps_of(need.label, cost_of(need.name, self._size), self._size, self._progress)
        told.begin()
        with timing(self._timings, need.label), listening(told.work):
            made = need.make(self)
        told.end()
        return made

    def offer(self, name: str) -> None:
        """Makes the result of this name if it can be had."""
        with suppress(NotApplicableError):
            self.take(name)

    def made(self, name: str) -> Any:
        """The result of this name if it was made, else None."""
        return self._made.get(name)

    @property
    def singles_are_sampled(self) -> bool:
        """Whether single faults are those of a sample of the coordinates, of too many."""
        return singles_sampled(Size(self.space, self.asked.memory)) is not None

    @property
    def linearised(self) -> Analysis:
        """The linearisation at hand: its surrogate, shares and covariance; empty if none is.

        The differences' where all coordinates are two-valued or the gradients give no surrogate.
        """
        gradients, differences = self.made("gradients"), self.made("differences")
        if differences is not None and (
            gradients is None or gradients.surrogate is None or _are_two_valued(self.space)
        ):
            return cast(Analysis, differences)
        return gradients or Analysis()


def steps_of(label: str, cost: Cost, size: Size, progress: Progress) -> Steps:
    """A stage's progress, in hundredths of what it costs."""
    rows = cost.operations / size.operations_of_one
    total = int(min(100, max(1, rows)))
    return Steps(lambda done, all_: progress(label, done, all_), total, rows / total)


@dataclass(frozen=True)
class Given:
    """What a method is given.

    Attributes:
        space: the model, its inputs and faults, in the model's own precision.
        asked: epsilon, seed, confidence and so on.
        size: what a forward pass costs.
        progress: call it with the steps done and their number.

    What a method ``needs`` is an attribute of the same name, shared with others: read it alone.
    """

    space: FaultSpace
    asked: Request
    size: Size
    progress: Callable[[int, int], None]
    _method: str = field(repr=False)
    _needs: tuple[str, ...] = field(repr=False)
    _shared: Shared = field(repr=False)

    @property
    def wide(self) -> FaultSpace:
        """The space in double precision."""
        return cast(FaultSpace, self._take("wide"))

    @property
    def layer_bounds(self) -> Estimates:
        """The paper's bounds b1 and b2, computed together."""
        return cast(Estimates, self._take("layer_bounds"))

    @property
    def gradients(self) -> Analysis:
        """First order at the mean point, from gradients: estimates, formula, surrogate."""
        return cast(Analysis, self._take("gradients"))

    @property
    def differences(self) -> Analysis:
        """First order at the mean point, from single-coordinate differences."""
        return cast(Analysis, self._take("differences"))

    @property
    def all_singles(self) -> Analysis | None:
        """The differences; None where all coordinates are too many to take one at a time."""
        return cast(Analysis | None, self._take("all_singles"))

    @property
    def linear(self) -> Analysis:
        """The linearisation with the best surrogate; to have it, need ``surrogate``."""
        return cast(Analysis, self._take("surrogate"))

    @property
    def surrogate(self) -> Surrogate:
        """The linear surrogate of Delta, (B, K), of N coordinates."""
        found = self.linear.surrogate
        assert found is not None
        return found

    @property
    def margins(self) -> Surrogate | None:
        """The surrogate's margins of rivals over the predicted class, (B, K - 1); None if K = 1."""
        return cast(Surrogate | None, self._take("margins"))

    @property
    def nearest_margins(self) -> rivals.NearestMargins:
        """The margins of each input's nearest rivals over the predicted class, (B, rivals)."""
        return cast(rivals.NearestMargins, self._take("nearest_margins"))

    @property
    def leading_output(self) -> int:
        """The output that varies most by the surrogate; 0 without one."""
        return cast(int, self._take("leading_output"))

    @property
    def outputs(self) -> tuple[int, ...]:
        """The outputs that were named; else the leading one."""
        return self.asked.outputs or (self.leading_output,)

    @property
    def proof(self) -> proofs.Provable:
        """The network as the theory package sees it, for proofs."""
        return cast(proofs.Provable, self._take("proof"))

    @property
    def certificates(self) -> Mapping[int, Mapping[tuple[Quantity, int], Certificate]]:
        """By output, certificates by quantity and input, of the first few inputs.

        Those of class changes are among the first output's.
        """
        return cast(
            "Mapping[int, Mapping[tuple[Quantity, int], Certificate]]", self._take("certificates")
        )

    @property
    def linear_at_hand(self) -> Surrogate | None:
        """The surrogate, if some method of this score needs it; for those that only ``use`` it."""
        return self._shared.linearised.surrogate

    def _take(self, name: str) -> Any:
        if name not in self._needs:
            raise ArgumentError(
                f"methods: {self._method} takes {name!r}, which is not among its "
                f"needs={self._needs}; add it"
            )
        return self._shared.take(name)


def _wide(shared: Shared) -> FaultSpace:
    return first_order.double_precision(shared.space)


def _layer_bounds(shared: Shared) -> Estimates:
    return layer_bounds(shared.take("wide"))


def _gradients(shared: Shared) -> Analysis:
    found, space, asked = Analysis(), shared.space, shared.asked
    size = Size(space, asked.memory)
    if is_sketched(size):
        sketched_mean_point_taylor(
            space,
            found,
            memory=asked.memory,
            seed=asked.seed,
            confidence=asked.confidence,
            probes=probes_of(size),
            named=asked.outputs or (),
        )
        return found
    # Gains of many coordinates are made in the model's own precision.
    at = shared.take("wide") if are_dense(space) else space
    first_order.mean_point_taylor(at, found, asked.memory)
    return found


def _differences(shared: Shared) -> Analysis:
    if any(p.fault.is_guarded for p in shared.space.placements):
        raise NotApplicableError(UNDER_GUARDS)
    found = Analysis()
    first_order.mean_point_single(shared.take("wide"), found)
    return found


def _all_singles(shared: Shared) -> Analysis | None:
    return None if shared.singles_are_sampled else cast(Analysis, shared.take("differences"))


def _surrogate(shared: Shared) -> Analysis:
    """From the differences where these are computed anyway, else from the gradients.

    Where there are no gradients, the differences are computed for the surrogate alone.
    """
    order = ["gradients", "differences"]
    if (
        "mean-point-single" in shared.methods
        and _are_two_valued(shared.space)
        and not shared.singles_are_sampled
    ):
        order.reverse()
    size = Size(shared.space, shared.asked.memory)
    if is_sketched(size) and 4 * size.gains > GRADIENT_VALUES:
        raise NotApplicableError(no_surrogate(size) or NO_SURROGATE)
    reason = ""
    for name in order:
        try:
            found: Analysis = shared.take(name)
        except NotApplicableError as error:
            reason = f": {error}"
            continue
        if found.surrogate is not None:
            return found
    raise NotApplicableError(NO_SURROGATE + reason)


def _are_two_valued(space: FaultSpace) -> bool:
    return all(p.fault.is_two_valued for p in space.placements)


def _margins(shared: Shared) -> Surrogate | None:
    surrogate = shared.take("surrogate").surrogate
    wide = shared.take("wide")
    return first_order.margins_of(wide, surrogate) if wide.has_classes else None


def _nearest_margins(shared: Shared) -> rivals.NearestMargins:
    if shared.space.K == 1:
        raise NotApplicableError(no_class(shared.space))
    return rivals.nearest_margins(shared.space)


def no_class(space: FaultSpace) -> str:
    """Why the predicted class of a space with one output cannot change."""
    if space.loss is not None:
        return "the loss is asked for, which has no class; leave outputs='loss' out to have it"
    return "the model has a single output, so no class to change"


def _leading_output(shared: Shared) -> int:
    if shared.asked.outputs:
        return shared.asked.outputs[0]
    try:
        return int(np.argmax(shared.take("surrogate").surrogate.variance.mean(0)))
    except NotApplicableError:
        return 0


def _proof(shared: Shared) -> proofs.Provable:
    return proofs.provable(shared.space)


def _certificates(
    shared: Shared,
) -> Mapping[int, Mapping[tuple[Quantity, int], Certificate]]:
    space, epsilon = shared.space, shared.asked.epsilon
    proof = shared.take("proof")
    classes = space.has_classes and space.K <= _RIVALS
    if epsilon is None and not classes:
        raise NotApplicableError(NO_EPSILON)
    inputs = range(min(space.B, _CERTIFIED))
    first: int = shared.take("leading_output")
    found = {first: proofs.certify(space, proof, epsilon, first, inputs, classes=classes)}
    for output in shared.asked.outputs or () if epsilon is not None else ():
        if output != first:
            found[output] = {
                ("tail", b): proofs.certify_tail(proof, b, cast(float, epsilon), output)
                for b in inputs
            }
    return found


def _no_layer_bounds(size: Size) -> str | None:
    try:
        _ = size.space.inputs
    except NotApplicableError as error:
        return str(error)
    for p in size.space.placements:
        if not strikes_singly(p):
            return f"defined for crashes of neurons and weights, not for {p.fault.name}"
    return None


@dataclass(frozen=True)
class Need:
    """A shared result.

    Attributes:
        name: as ``Method.needs`` and the attributes of ``Given`` say it.
        label: as timings and progress say it; empty: it takes no time of its own.
        make: makes it.
        refuses: why no method that needs it is computed without being named, or None.
    """

    name: str
    label: str
    make: Callable[[Shared], Any]
    refuses: Callable[[Size], str | None] | None = None


NEEDS: Mapping[str, Need] = {
    need.name: need
    for need in (
        Need("wide", "double precision", _wide),
        Need("layer_bounds", "layer bounds", _layer_bounds, _no_layer_bounds),
        Need("gradients", "gradients", _gradients, no_gradients),
        Need("differences", "differences", _differences, too_many_differences),
        Need("all_singles", "", _all_singles, too_many_singles),
        Need("surrogate", "", _surrogate, no_surrogate),
        Need("margins", "", _margins, no_surrogate),
        Need("nearest_margins", "margins of the nearest rivals", _nearest_margins, no_margins),
        Need("leading_output", "", _leading_output),
        Need("proof", "layers for proofs", _proof),
        Need("certificates", "certificates", _certificates),
    )
}
