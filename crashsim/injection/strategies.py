"""How samples are computed: behind the faults alone, whole, with stacked weights, or plainly.

Strategies that take the model apart, or map it, are compared with ``FaultyModel`` before use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points, no_fault
from crashsim.coordinates.streams import Stream, generator
from crashsim.faults import WordFault
from crashsim.injection.batches import (
    Run,
    Started,
    Strategy,
    rows_together,
    scalars_at_once,
    scalars_of_weights,
)
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.program import Program
from crashsim.injection.site_changes import SCATTERED, Changes, is_elementwise, is_rare, split
from crashsim.injection.weights.costs import (
    Work,
    cost_of_adding,
    cost_of_patching,
    cost_of_stacking,
)
from crashsim.injection.weights.patched import PatchedWeights
from crashsim.injection.weights.stacked import (
    StackedWeights,
    is_worth_stacking,
    number_of_struck,
    samples_together,
)
from crashsim.injection.whole_model import many_samples, patched_samples, plain_samples
from crashsim.model.checks import rounding_slack
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.inputs import Inputs

_LARGE = 2**23  # values of a pass of all inputs
_FEW_STRUCK = 2  # coordinates of a sample, whose faults are followed
_WORTH_LEAVING = 0.25  # of a pass, that lies before the first fault
_CHECKED, _FEWEST_CHECKED = 1024, 64  # faults per site with which a strategy is checked
_CHECKED_SCALARS = 2**27  # numbers in flight of these, about: each may move all of a layer's plane


class Strategies:
    """Chooses how samples are computed by this thread.

    The choice follows from the model's structure, the faults' probabilities and sizes, never from
    timings, so it is the same on every machine.

    Args:
        faulty: the model and its faults; its examples serve for checks.
        scalars: numbers in flight for a sample of one input.
    """

    def __init__(self, faulty: FaultyModel, scalars: int) -> None:
        self._faulty, self._scalars = faulty, scalars
        sites, alone = faulty.model.sites, faulty.model.runs_alone
        self._at_once = scalars if alone else min(scalars, scalars_at_once(sites))
        self._struck = scalars if alone else min(scalars, scalars_at_once(sites, struck=True))
        self._with_weights = self._struck + scalars_of_weights(
            faulty.model.sites, faulty.placements
        )
        self._tensors = faulty.model.tensors
        # The reason, where there can be none.
        self._program: Program | str | None = None
        self._stacked: StackedWeights | str | None = None
        self._patched: PatchedWeights | None = None

    @property
    def are_stale(self) -> bool:
        """Whether they were made of a twin that was given up meanwhile."""
        return self._tensors is not self._faulty.model.tensors

    @cached_property
    def _is_large(self) -> bool:
        """Whether a pass of all inputs fills its calls by itself, as one of a large model does."""
        faulty = self._faulty
        values = len(faulty.examples) * self._scalars
        return values > _LARGE and not faulty.model.runs_alone

    @cached_property
    def _runs_whole(self) -> bool:
        """Whether samples with many faults run through the whole of a large model: nearly all of
        it lies behind the first of them, so that it is not worth while to take it apart."""
        return self._is_large and self._share_before < _WORTH_LEAVING

    @property
    def _share_before(self) -> float:
        """The share of a pass's values that are computed before the first struck one."""
        faulty = self._faulty
        values = [site for site in faulty.model.sites if site.kind in ("activation", "module")]
        names = {name for p in faulty.placements for name in _places_of(p)}
        before = 0
        for site in values:
            if site.module in names:
                return before / max(sum(each.size for each in values), 1)
            before += site.size
        return 0.0

    def plan(self) -> list[str]:
        """How samples are computed at each site, and why: one line each."""
        if self._runs_whole:
            what = "patched" if self._faulty.strikes_weights else "masked"
            return [
                f"{p.site.name} ({p.fault.name}): {what}, one sample at a time: so many values "
                "fill a pass by themselves, through the whole model"
                for p in self._faulty.placements
            ]
        program = self.program()
        lines = []
        for p in self._faulty.placements:
            if isinstance(program, Program) and self._is_worth_taking_apart(program, None):
                how = program.explain(p)
            elif self._faulty.strikes_weights:
                how = self._explain_weights(p)
            else:
                rare = is_rare(p, SCATTERED) and is_elementwise(p)
                how = "struck one by one" if rare else "masked"
                if self._faulty.keeps_order:
                    how += f", whole model for every sample: {program}"
                else:
                    how = f"masked, one sample at a time: the model reorders its batch; {program}"
            lines.append(f"{p.site.name} ({p.fault.name}): {how}")
        return lines

    def _explain_weights(self, placement: Placement) -> str:
        """How samples are computed where faults of parameters cannot be added to layers."""
        program, stacked = self.program(), self.stacked(None)
        why = program if isinstance(program, str) else program.why_not_added(None)
        why = why or "so many inputs fill a pass by themselves"
        is_weight = placement.site.kind == "parameter"
        if isinstance(stacked, StackedWeights):
            what = "each sample's own weights stacked" if is_weight else "masked"
            return f"{what}, many samples in one pass (torch.vmap), not added to outputs: {why}"
        what = "patched" if is_weight else "masked"
        return f"{what}, one sample at a time: {why}; {stacked}"

    def program(self) -> Program | str:
        """The model taken apart at its faults, checked; or why it has to run as a whole."""
        if self._program is None:
            try:
                self._program = self._checked_program()
            except UntraceableError as reason:
                self._program = str(reason)
        return self._program

    def _checked_program(self) -> Program:
        faulty, model = self._faulty, self._faulty.model
        if model.writes_parameters:
            raise UntraceableError("its forward pass writes to its own parameters")
        example = faulty.examples.part(0, 1)
        with torch.no_grad():
            program = Program(
                model.original, model.tensors, example, faulty.placements, model.readout
            )
            self._check(
                "traced by torch.fx",
                lambda inputs, points: self._behind_faults(
                    inputs, program, self.changes_of(points)
                ),
            )
        return program

    def stacked(self, changes: Mapping[Placement, Changes] | None) -> StackedWeights | str:
        """The model with stacked parameters, checked; or why that is not to be.

        Args:
            changes: of the points at hand; None for those that Monte Carlo samples.
        """
        if not self._is_worth_stacking(changes):
            return "that costs less for so many weights or inputs"
        if self._faulty.model.runs_alone:
            return "its layers round by the largest number of their batch"
        if self._stacked is None:
            try:
                stacked = StackedWeights(self._faulty, self._scalars)
                with torch.no_grad():
                    self._check(
                        "mapped",
                        lambda inputs, points: self._with_stacked_weights(
                            inputs, stacked, points, self.changes_of(points)
                        ),
                    )
                self._stacked = stacked
            except UntraceableError as reason:
                self._stacked = f"torch.vmap cannot run it ({reason})"
        return self._stacked

    def _check(self, how: str, start: Callable[[Inputs, Points], Started]) -> None:
        """Compares a strategy with the plain pass on three points of many faults.

        Raises:
            UntraceableError: it fails, or gives something else.
        """
        points = self._many_faults()
        inputs = self._faulty.examples.part(0, 2)
        try:
            wanted = torch.from_numpy(self._faulty.outputs(inputs, points)).reshape(-1)
            with start(inputs, points) as (run, _):
                found = run(0, points.count).reshape(-1).double().cpu()
        except Exception as error:  # whatever the model's own code does with such values
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            words = reason.partition(". ")[0]
            raise UntraceableError(f"it fails under many faults ({words})") from error
        # By the largest output of each point: those of words can be of any size.
        wanted, found = wanted.view(points.count, -1), found.view(points.count, -1)
        finite = torch.isfinite(wanted)
        size = torch.where(finite, wanted, 0.0).abs().amax(1, keepdim=True)
        off = torch.where(finite, (wanted - found).abs(), 0.0)
        tolerance = rounding_slack(self._faulty.model.dtype) * size
        if not torch.equal(finite, torch.isfinite(found)) or (off > tolerance).any():
            raise UntraceableError(f"{how}, it gives other outputs than the model itself")

    def _many_faults(self) -> Points:
        """Three points with many faults at every site."""
        rng = generator(0, Stream.SHORT_CUTS)
        size = min(_CHECKED, max(_FEWEST_CHECKED, _CHECKED_SCALARS // self._scalars))
        rows, columns, values = [], [], []
        for row in range(3):
            for number, p in enumerate(self._faulty.placements):
                # A fault of one coordinate may silence all others: it strikes one point in three.
                count = p.size // 3 or int((row + number) % 3 == 0)
                chosen: Integers = np.sort(rng.choice(p.size, min(count, size), replace=False))
                if isinstance(p.fault, WordFault):
                    chosen = _without_wild(p.fault, chosen)
                rows.append(np.full(len(chosen), row))
                columns.append(p.start + chosen)
                values.append(np.full(len(chosen), p.fault.typical_change))
        return Points(
            3,
            no_fault(self._faulty.N),
            np.concatenate(rows),
            np.concatenate(columns),
            np.concatenate(values),
        )

    def choose(self, points: Points) -> Strategy:
        """How to compute these points, for some inputs at a time."""
        faulty = self._faulty
        if points.count == 1 and (self._runs_whole or not self._is_large):
            return self._whole(points)
        changes = self.changes_of(points)
        if self._runs_whole and sum(c.mean_number for c in changes.values()) > _FEW_STRUCK:
            return self._whole(points)
        program = self.program()
        if isinstance(program, Program) and self._is_worth_taking_apart(program, changes):
            scalars = self._with_weights
            return Strategy(lambda some: self._behind_faults(some, program, changes), scalars)
        if not faulty.strikes_weights and faulty.keeps_order:
            return Strategy(lambda some: many_samples(faulty, some, changes), self._struck)
        stacked = self.stacked(changes) if faulty.strikes_weights else None
        if isinstance(stacked, StackedWeights):
            return Strategy(
                lambda some: self._with_stacked_weights(some, stacked, points, changes),
                self._scalars,
            )
        return self._whole(points)

    def _whole(self, points: Points) -> Strategy:
        """Nothing is taken for granted, and as little shared."""
        faulty = self._faulty
        if not faulty.strikes_weights:
            return Strategy(lambda some: plain_samples(faulty, some, points), self._scalars)
        weights = self._patched_at(points.base)
        weights.take(points)
        return Strategy(lambda some: patched_samples(faulty, some, points, weights), self._at_once)

    def _patched_at(self, base: Floats) -> PatchedWeights:
        """The parameters, set up to be patched; those of the last points where they serve."""
        if self._patched is None or not self._patched.serves(base):
            self._patched = None  # not two at a time
            self._patched = PatchedWeights(self._faulty, base)
        return self._patched

    def _is_worth_taking_apart(
        self, program: Program, changes: Mapping[Placement, Changes] | None
    ) -> bool:
        """Whether running what lies behind the faults alone costs less than patched weights do.

        Args:
            program: that would run.
            changes: of the points at hand; None for those that Monte Carlo samples.
        """
        if not self._faulty.strikes_weights:
            return True
        if not program.can_add_weights(changes):
            return False
        struck, inputs = program.struck_weights(changes), len(self._faulty.examples)
        together = rows_together(self._faulty.examples, self._with_weights)
        added = cost_of_adding(program.work(), struck, inputs, together)
        return added <= self._cost_of_patching(changes)

    def _cost_of_patching(self, changes: Mapping[Placement, Changes] | None) -> float:
        together = rows_together(self._faulty.examples, self._at_once)
        struck = number_of_struck(self._faulty.placements, changes)
        return cost_of_patching(self._whole_pass, struck, len(self._faulty.examples), together)

    @cached_property
    def _whole_pass(self) -> Work:
        return Work.of_pass(self._faulty)

    def _is_worth_stacking(self, changes: Mapping[Placement, Changes] | None) -> bool:
        """Whether many samples' weights beside each other cost less than patched ones."""
        placements = self._faulty.placements
        if not is_worth_stacking(placements, changes):
            return False
        inputs = self._faulty.examples
        weights = sum(p.site.size for p in placements if p.site.kind == "parameter")
        together = samples_together(weights, self._scalars, len(inputs))
        stacked = cost_of_stacking(self._whole_pass, weights, len(inputs), together)
        return stacked <= self._cost_of_patching(changes)

    def has_changed(self) -> bool:
        """Whether a layer that the program runs as a whole keeps what it should not.

        Then the model is not taken apart from now on.
        """
        if isinstance(self._program, Program) and (reason := self._program.why_wrong()):
            self._program = reason
            return True
        return False

    @contextmanager
    def _behind_faults(
        self, inputs: Inputs, program: Program, changes: Mapping[Placement, Changes]
    ) -> Iterator[tuple[Run, int]]:
        """Only what lies behind the faults is run for every sample."""
        with self._faulty.model.layer_by_layer():
            reference = program.reference(inputs, changes)

        def run(start: int, stop: int) -> Tensor:
            part = {p: change.part(start, stop) for p, change in changes.items()}
            return program.run(reference, part, stop - start)

        yield run, sys.maxsize

    @contextmanager
    def _with_stacked_weights(
        self,
        inputs: Inputs,
        stacked: StackedWeights,
        points: Points,
        changes: Mapping[Placement, Changes],
    ) -> Iterator[tuple[Run, int]]:
        """The whole model is mapped over the samples' parameters."""

        def run(start: int, stop: int) -> Tensor:
            part = {p: change.part(start, stop) for p, change in changes.items()}
            return stacked.run(inputs, points.part(start, stop), part)

        yield run, stacked.most(inputs)

    def changes_of(self, points: Points) -> dict[Placement, Changes]:
        """What points change at each placement."""
        model = self._faulty.model
        found = split(points, self._faulty.placements, model.device, model.dtype)
        return {change.placement: change for change in found}


def _places_of(placement: Placement) -> set[str]:
    """The modules at whose values a placement's faults show first; none where it is not known."""
    if placement.site.kind == "parameter":
        return {placement.site.module.rpartition(".")[0]}
    return {site.module for site in placement.sites}


def _without_wild(fault: WordFault, coordinates: Integers) -> Integers:
    """Some coordinates without bits that make numbers immense, which would hide all others; one
    of these is left."""
    is_mild = np.isin(coordinates % len(fault.masks), fault.mild)
    return coordinates[is_mild] if is_mild.any() else coordinates[:1]
