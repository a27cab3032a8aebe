"""The cases of a study, by stable names, and which of them are judged on the same chips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from crashsim.studies.description import Study


@dataclass(frozen=True)
class Draw:
    """Chips that several cases share: all that decides them and what they meet.

    Attributes:
        model, data: names in the study.
        fault: as the command line takes it.
        sites: where it strikes; None where the fault says so itself, or leaves it open.
        rate: of the fault, in the place of its own; None: its own.
        seed: of the chips.
    """

    model: str
    data: str
    fault: str
    sites: str | None
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """What it is called; the same in every study that has it."""
        where = "" if self.sites is None else f" at {self.sites}"
        rate = "" if self.rate is None else f" | {self.rate:.12g}"
        return f"{self.model} | {self.data} | {self.fault}{where}{rate} | seed {self.seed}"


@dataclass(frozen=True)
class Case:
    """A number that the study asks for: a metric of chips."""

    draw: Draw
    metric: str

    @property
    def name(self) -> str:
        """What it is called; the same in every study that has it."""
        return f"{self.draw.name} | {self.metric}"


def cases_of(study: Study) -> list[Case]:
    """Every combination of each grid, in the order of the file, each once."""
    found: dict[Case, None] = {}
    for grid in study.grid:
        models = grid.models or [model.name for model in study.models]
        data = grid.data or [entry.name for entry in study.data]
        sites: list[str | None] = list(grid.sites) if grid.sites else [None]
        rates: list[float | None] = list(grid.rates) if grid.rates else [None]
        draws = product(models, data, grid.fault, sites, rates, grid.seeds)
        for draw, metric in product(draws, grid.metric):
            found[Case(Draw(*draw), metric)] = None
    return list(found)


def shared(cases: Iterable[Case]) -> dict[Draw, list[Case]]:
    """The cases by the chips that they share, in order."""
    found: dict[Draw, list[Case]] = {}
    for case in cases:
        found.setdefault(case.draw, []).append(case)
    return found
