"""The ways to compute samples: through the model taken apart, as a whole, with each sample's
parameters stacked, or one at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.injection.graph import NotTraceable
from crashsim.injection.inplace import returns_new
from crashsim.injection.patched_weights import PatchedWeights
from crashsim.injection.program import Program
from crashsim.injection.site_changes import (
    RARE_WEIGHTS,
    SCATTERED,
    Changes,
    is_elementwise,
    is_rare,
    split,
    strike,
    strike_all,
)
from crashsim.injection.stacked_weights import StackedWeights, is_worth_stacking
from crashsim.model.checks import rounding_slack
from crashsim.model.inputs import Inputs
from crashsim.model.sites import Action, Site, perturbing
from crashsim.model.untraced import unseen as untraced

if TYPE_CHECKING:
    from crashsim.space import FaultSpace

SHORT_CUTS = True  # False: every sample runs through the whole model (for tests of the rest)
_CHECKED = 1024  # faults per site with which the short cuts are checked

# Outputs (S b, ...) of points from one number to another; and how many at most at a time.
_Run = Callable[[int, int], Tensor]
_Way = AbstractContextManager[tuple[_Run, int]]


class Ways:
    """Chooses how the samples of a space are computed.

    The choice follows from the model's structure, the faults' probabilities and sizes, never from
    timings, so it is the same on every machine.

    Args:
        space: whose model, faults and types count; its inputs serve as examples.
    """

    def __init__(self, space: FaultSpace) -> None:
        self._space = space
        # The reason, where there can be none.
        self._program: Program | str | None = None
        self._stacked: StackedWeights | str | None = None

    def plan(self) -> list[str]:
        """How samples are computed at each site, and why: one line each."""
        program = self.program()
        lines = []
        for p in self._space.placements:
            if isinstance(program, Program) and (
                not self._space._has_parameters or program.can_add_weights(None)
            ):
                how = program.explain(p)
            elif self._space._has_parameters:
                how = self._explain_weights(p)
            else:
                rare = is_rare(p, SCATTERED) and is_elementwise(p)
                how = "struck one by one" if rare else "masked"
                if self._space.keeps_order:
                    how += f", whole model for every sample: {program}"
                else:
                    how = f"masked, one sample at a time: the model reorders its batch; {program}"
            lines.append(f"{p.site.name} ({p.fault.name}): {how}")
        return lines

    def _explain_weights(self, placement: Placement) -> str:
        """How samples are computed where faults of parameters cannot be added to layers."""
        program, stacked = self.program(), self.stacked(None)
        why = program if isinstance(program, str) else program.why_not_added()
        is_weight = placement.site.kind == "parameter"
        if isinstance(stacked, StackedWeights):
            what = "each sample's own weights stacked" if is_weight else "masked"
            return f"{what}, many samples in one pass (torch.vmap), not added to outputs: {why}"
        what = "patched" if is_weight else "masked"
        return f"{what}, one sample at a time: {why}; {stacked}"

    def program(self) -> Program | str:
        """The model taken apart at its faults, checked; or why it has to run as a whole."""
        if self._program is None:
            self._program = untraced(self._space.model)  # and the check might not notice
        if self._program is None:
            space = self._space
            try:
                if space._owned:
                    raise NotTraceable("its forward pass writes to its own parameters")
                example = space.examples.part(0, 1)
                with torch.no_grad():
                    program = Program(
                        space.model, space.tensors, example, space.placements, space.readout
                    )
                    self._check(
                        "traced by torch.fx",
                        lambda inputs, points: self._short(inputs, program, self.split(points)),
                    )
                self._program = program
            except NotTraceable as reason:
                self._program = str(reason)
        return self._program

    def stacked(self, changes: Mapping[Placement, Changes] | None) -> StackedWeights | str:
        """The model with stacked parameters, checked; or why that is not to be.

        Args:
            changes: of the points at hand; None for those that Monte Carlo samples.
        """
        space = self._space
        if not is_worth_stacking(space.placements, changes):
            return "few of its many weights change"
        if space.runs_alone:
            return "its layers round by the largest number of their batch"
        if self._stacked is None:
            try:
                stacked = StackedWeights(space)
                with torch.no_grad():
                    self._check(
                        "mapped",
                        lambda inputs, points: self._stack(
                            inputs, stacked, points, self.split(points)
                        ),
                    )
                self._stacked = stacked
            except NotTraceable as reason:
                self._stacked = f"torch.vmap cannot run it ({reason})"
        return self._stacked

    def _check(self, how: str, way: Callable[[Inputs, Points], _Way]) -> None:
        """Compares a way with the plain one on three points of many faults.

        Raises:
            NotTraceable: it fails, or gives something else.
        """
        rng = generator(0, Stream.SHORT_CUTS)
        size = min(_CHECKED, self._space.N)
        rows, columns, values = [], [], []
        for row in range(3):
            for number, p in enumerate(self._space.placements):
                # A fault of one coordinate may silence all others: it strikes one point in three.
                count = p.size // 3 or int((row + number) % 3 == 0)
                chosen = np.sort(rng.choice(p.size, min(count, size), replace=False))
                rows.append(np.full(len(chosen), row))
                columns.append(p.start + chosen)
                values.append(np.full(len(chosen), p.fault.typical_change))
        points = Points(
            3,
            np.zeros(self._space.N),
            np.concatenate(rows),
            np.concatenate(columns),
            np.concatenate(values),
        )
        inputs = self._space.examples.part(0, 2)
        try:
            with self._generic(inputs, points) as (run, _):
                wanted = torch.cat([run(i, i + 1).reshape(-1) for i in range(3)]).double()
            with way(inputs, points) as (run, _):
                found = run(0, 3).reshape(-1).double()
        except Exception as error:  # whatever the model's own code does with such values
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            told = reason.partition(". ")[0]
            raise NotTraceable(f"it fails under many faults ({told})") from error
        finite = torch.isfinite(wanted)
        tolerance = rounding_slack(self._space.dtype) * wanted[finite].abs().max(0)[0]
        if (
            not torch.equal(finite, torch.isfinite(found))
            or ((wanted - found)[finite].abs() > tolerance).any()
        ):
            raise NotTraceable(f"{how}, it gives other outputs than the model itself")

    def choose(self, points: Points) -> Callable[[Inputs], _Way]:
        """How to compute these points, for some inputs at a time."""
        if not SHORT_CUTS or points.count == 1:
            return lambda inputs: self._generic(inputs, points)
        program = self.program()
        changes = self.split(points)
        if isinstance(program, Program) and (
            not self._space._has_parameters or program.can_add_weights(changes)
        ):
            return lambda inputs: self._short(inputs, program, changes)
        if not self._space._has_parameters and self._space.keeps_order:
            return lambda inputs: self._whole(inputs, changes)
        stacked = self.stacked(changes) if self._space._has_parameters else None
        if isinstance(stacked, StackedWeights):
            return lambda inputs: self._stack(inputs, stacked, points, changes)
        return lambda inputs: self._generic(inputs, points)

    def has_changed(self) -> bool:
        """Whether a layer that the program runs as a whole keeps what it should not.

        Then the model is not taken apart from now on.
        """
        if isinstance(self._program, Program) and (reason := self._program.why_wrong()):
            self._program = reason
            return True
        return False

    @contextmanager
    def _short(
        self, inputs: Inputs, program: Program, changes: Mapping[Placement, Changes]
    ) -> Iterator[tuple[_Run, int]]:
        """Only what lies behind the faults is run for every sample."""
        with self._space._unfused():
            reference = program.reference(inputs, changes)

        def run(start: int, stop: int) -> Tensor:
            part = {p: change.part(start, stop) for p, change in changes.items()}
            return program.run(reference, part, stop - start)

        yield run, sys.maxsize

    @contextmanager
    def _whole(
        self, inputs: Inputs, changes: Mapping[Placement, Changes]
    ) -> Iterator[tuple[_Run, int]]:
        """The whole model is run for every sample; neurons alone are struck."""
        model = self._space._twin.module
        part: dict[Site, list[Changes]] = {}
        count = 1

        def act(site: Site) -> Action:
            owned = site.function is None and returns_new(model.get_submodule(site.module))

            def strike_examples(value: Tensor) -> Tensor:
                site.by_example(value, count * len(inputs))
                return strike(value, site, part[site], count, owned)

            return strike_examples

        sites = dict.fromkeys(p.site for p in changes)

        def run(start: int, stop: int) -> Tensor:
            nonlocal count
            count = stop - start
            for site in sites:
                part[site] = [c.part(start, stop) for p, c in changes.items() if p.site == site]
            struck = {}
            for site in sites:
                if site.kind == "input":
                    index = inputs.site_names.index(site.module)
                    struck[index] = strike_all(inputs.tensors[index], site, part[site], count)
            return self._space._call(inputs.repeat_but(count, struck))

        actions = {site: act(site) for site in sites if site.kind != "input"}
        with perturbing(model, actions):
            yield run, sys.maxsize

    @contextmanager
    def _stack(
        self,
        inputs: Inputs,
        stacked: StackedWeights,
        points: Points,
        changes: Mapping[Placement, Changes],
    ) -> Iterator[tuple[_Run, int]]:
        """The whole model is mapped over the samples' parameters."""

        def run(start: int, stop: int) -> Tensor:
            part = {p: change.part(start, stop) for p, change in changes.items()}
            e = self._coordinates(points.part(start, stop), stacked.reads_all)
            return stacked.run(inputs, e, part)

        yield run, stacked.most(inputs)

    @contextmanager
    def _generic(self, inputs: Inputs, points: Points) -> Iterator[tuple[_Run, int]]:
        """Nothing is taken for granted; weights are patched, one sample at a time."""
        space = self._space
        weights = PatchedWeights(space, points.base) if space._has_parameters else None

        def run(start: int, stop: int) -> Tensor:
            part = points.part(start, stop)
            e = self._coordinates(part)[:, None]
            out = space._run(inputs, e, weights.apply(part) if weights else space.tensors)
            if weights:
                weights.restore()
            return out

        yield run, 1 if weights or not space.keeps_order else sys.maxsize

    def split(self, points: Points) -> dict[Placement, Changes]:
        """What points change at each placement."""
        found = split(points, self._space.placements, self._space.device, self._space.dtype)
        return {change.placement: change for change in found}

    def _coordinates(self, points: Points, of_parameters: bool = False) -> Tensor:
        """(S, N) coordinates; (S, 1) where all are of parameters and those are not asked for."""
        space = self._space
        if not of_parameters and all(p.site.kind == "parameter" for p in space.placements):
            return torch.zeros(points.count, 1, device=space.device, dtype=space.dtype)
        return torch.from_numpy(points.dense()).to(space.device, space.dtype)


def scalars_of_weights(placements: list[Placement], sites: list[Site]) -> int:
    """Numbers in flight for each input where struck weights are added to the layers' outputs."""
    outputs = {site.module: site for site in sites if site.kind == "module"}
    total = 0.0
    for p in placements:
        layer = outputs.get(p.site.module.rpartition(".")[0])
        if p.site.kind == "parameter" and layer is not None and is_rare(p, RARE_WEIGHTS):
            # Each struck weight acts once for every position of the layer's output.
            total += p.size * p.fault.change_probability * layer.size / p.site.shape[0]
    return int(4 * total)
