"""The chips of a study's cases: each model, its examples and its faults are read but once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from crashsim.campaign.identity import digest
from crashsim.errors import CrashsimError
from crashsim.metrics import AskedMetrics
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.drawn import (
    DrawnChips,
    SingleChips,
    probability_of_none,
    rare_strikes,
)
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.chips.run import asked_of
from crashsim.sampling.chips.sums import ChipSums
from crashsim.sampling.chips.task import Chips
from crashsim.sampling.exact_strata import StrikeLaw
from crashsim.scoring.judging import read_given
from crashsim.scoring.planning.costs import cost_of_sample
from crashsim.scoring.planning.size import Size
from crashsim.space import FaultSpace
from crashsim.studies.cases import Case, Draw
from crashsim.studies.description import DataTable, ModelTable, Study
from crashsim.sweeping.rates import at_rate

PER_BLOCK = 64  # chips
FIRST = 256  # chips of a case before any is looked at, where widths decide how many there are
_LOOKED_AT = 32  # examples by which a model is traced


class Sources(Protocol):
    """Where a study's models, examples and faults come from."""

    def model(self, table: ModelTable, study: Study) -> Any:
        """The module, trained if that is asked for."""

    def examples(self, table: DataTable, model: Any) -> tuple[Any, Any]:
        """Inputs as the model takes them, and targets or None."""

    def faults(self, fault: str, sites: str | None) -> Any:
        """A fault as ``FaultSpace`` takes it."""


@dataclass(frozen=True)
class SharedChips:
    """Chips on which one or more cases are judged.

    Attributes:
        draw: which they are.
        cases: of their metrics, in the order of ``asked``.
        space: model and faults.
        examples: what the chips meet.
        asked: the metrics.
        most: chips, at most.
        cost: operations of a chip.
    """

    draw: Draw
    cases: tuple[Case, ...]
    space: FaultSpace
    examples: Labelled
    asked: AskedMetrics
    most: int
    cost: float

    @cached_property
    def none(self) -> float:
        """The probability that a chip has no fault."""
        return probability_of_none(self.space.placements)

    @cached_property
    def strikes(self) -> StrikeLaw | None:
        """The law of faults that are so rare that each single one is judged."""
        return rare_strikes(self.space, self.most)

    @cached_property
    def singles(self) -> Chips | None:
        """The chips with one fault, where they are judged one by one."""
        if self.strikes is None:
            return None
        return Chips(SingleChips(self.space, self.strikes, PER_BLOCK), self.examples, self.asked)

    @property
    def before(self) -> int:
        """The number of chips with a single fault that are judged."""
        return 0 if self.strikes is None else len(self.strikes.weights) - 1

    def chips(self, count: int) -> Chips:
        """So many chips, those with a single fault among them."""
        source = DrawnChips(
            self.space, self.draw.seed, count - self.before, PER_BLOCK, self.strikes
        )
        return Chips(source, self.examples, self.asked)

    def at_look(self, look: int, is_adaptive: bool) -> int:
        """How many chips there are at a look, from 1."""
        if not is_adaptive:
            return self.most
        wanted: int = self.before + FIRST * 2 ** (look - 1)
        return min(wanted, self.most)

    def operations(self, chips: int) -> float:
        """That so many chips take, as they are counted: those without a fault take none."""
        struck = 1.0 - self.none if self.strikes is None else 1.0
        return self.cost * struck * chips

    def found(self, sums: ChipSums, singles: ChipSums | None) -> FoundChips:
        """What follows from the sums over some of them."""
        chances = np.zeros(0) if self.strikes is None else self.strikes.weights[1:]
        return FoundChips(sums, self.asked, self.none, singles, chances)

    @cached_property
    def law(self) -> str:
        """A name of the chips' law: those of another model with the same name are the same."""
        return digest(
            [
                (type(p.fault).__name__, p.fault, p.start, p.stop, p.count)
                for p in self.space.placements
            ]
        )


def shared_chips(
    study: Study, draws: Mapping[Draw, Sequence[Case]], sources: Sources
) -> list[SharedChips]:
    """The chips of each draw, with what they have in common read once.

    Raises:
        CrashsimError: a model, data or faults that do not go together; says of which case.
    """
    reading = _Reading(study, sources)
    found = []
    for draw, cases in draws.items():
        try:
            found.append(reading.chips(draw, tuple(cases)))
        except CrashsimError as error:
            raise type(error)(f"case {draw.name!r}: {error}") from error
    return found


class _Reading:
    """What has been read of a study so far."""

    def __init__(self, study: Study, sources: Sources) -> None:
        self._study, self._sources = study, sources
        self._models = {table.name: table for table in study.models}
        self._data = {table.name: table for table in study.data}
        self._known: dict[Any, Any] = {}

    def chips(self, draw: Draw, cases: tuple[Case, ...]) -> SharedChips:
        base, examples = self._space(draw)
        space = base if draw.rate is None else self._at_rate(draw, base)
        names = tuple(case.metric for case in cases)
        key = ("asked", draw.model, draw.data, names)
        if key not in self._known:
            self._known[key] = asked_of(base, examples, names)
        cost = cost_of_sample(Size(space)) * examples.count / space.B
        most = self._study.study.chips
        return SharedChips(draw, cases, space, examples, self._known[key], most, cost)

    def _at_rate(self, draw: Draw, base: FaultSpace) -> FaultSpace:
        key = ("rate", draw.model, draw.data, draw.fault, draw.sites, draw.rate)
        if key not in self._known:
            assert draw.rate is not None
            self._known[key] = at_rate(base, draw.rate)
        space: FaultSpace = self._known[key]
        return space

    def _space(self, draw: Draw) -> tuple[FaultSpace, Labelled]:
        """With the fault's own rate, and the examples that its chips meet."""
        key = ("space", draw.model, draw.data, draw.fault, draw.sites)
        if key not in self._known:
            table, data = self._models[draw.model], self._data[draw.data]
            model = self._model(table)
            examples, first = self._examples(data, table, model)
            faults = self._sources.faults(draw.fault, draw.sites)
            space = FaultSpace(
                model,
                first,
                faults,
                readout=table.readout,
                batch_axis=data.batch_axis,
                steps_axis=table.steps_axis,
            )
            self._known[key] = space, examples
        found: tuple[FaultSpace, Labelled] = self._known[key]
        return found

    def _model(self, table: ModelTable) -> Any:
        key = ("model", table.name)
        if key not in self._known:
            self._known[key] = self._sources.model(table, self._study)
        return self._known[key]

    def _examples(self, data: DataTable, table: ModelTable, model: Any) -> tuple[Labelled, Any]:
        """All examples, and the first of them."""
        key = ("examples", data.name, table.name)
        if key not in self._known:
            inputs, targets = self._sources.examples(data, model)
            given = read_given(model, inputs, targets, data.batch_axis, _LOOKED_AT)
            self._known[key] = given.examples, given.inputs
        found: tuple[Labelled, Any] = self._known[key]
        return found
