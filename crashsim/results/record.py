"""Record: a score as data, which saves, loads and renders without the code that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self, cast

from crashsim.errors import FileError
from crashsim.results.agreement import Agreement
from crashsim.results.contradictions import Contradiction
from crashsim.results.estimate import Answer, Estimate
from crashsim.results.estimates import Estimates
from crashsim.results.json_reading import finite, read
from crashsim.results.listing import LeftOut, as_npz, listed
from crashsim.results.method_facts import MethodFacts, all_methods, quoted
from crashsim.results.schema import (
    ChipFacts,
    ChipsFacts,
    CoordinateFacts,
    Curves,
    FaultFacts,
    FormulaFacts,
    Histogram,
    InputFacts,
    ModelFacts,
    Number,
    SiteFacts,
    unfit,
)

SCHEMA = 3
LOSS = "loss"  # what files call the only output, where it is the loss of each example
# Files of schema 1 say nothing of their methods but the names; those of 2 list all estimates, and
# say nothing of chips.
_READABLE = (1, 2, SCHEMA)


@dataclass(frozen=True)
class Record:
    """All estimates of one analysis, with what they were computed from.

    Plain data throughout: ``to_dict`` and ``from_dict`` are inverse, so a report can be made from
    a saved score.

    Attributes:
        model: its class, number of parameters and, if known, where it came from; of a structured
            output, the name of the tensor that was analysed.
        inputs: their number, shape (of several tensors, by name) and, if known, where they came
            from.
        faults: for each placement, the fault's fields and its pattern.
        sites: for each placement, the site's name, kind and shape, its number of coordinates, and
            its share of the variance.
        coordinates: N.
        outputs: K.
        seed, epsilon, confidence: as asked.
        samples, stopped: of Monte Carlo, and why it stopped.
        estimates: every number.
        agreement: every method against Monte Carlo.
        top: the fault coordinates with the largest shares of the variance.
        covariance: by method, (K, K) of Delta across outputs, averaged over inputs (to 64 outputs).
        formulas: by method, what was derived, as text and LaTeX.
        curves, histogram: for the pictures of the report.
        hardware: what the spiking chip said; see ``crashsim.chip.spiking.ChipRun.facts``.
        delta, answers: the tail probability aimed at, and what it asks for.
        plan: how faults were injected, a line for each site and why.
        skipped: methods not computed, with the reason.
        warnings: what deserves attention.
        timings: seconds by method, and of what serves them all (the model, the plan, the curves).
        versions: of crashsim and the packages its numbers depend on.
        contradictions: pairs of methods whose numbers cannot both be true; each is told among the
            warnings, too.
        partial: it was interrupted: methods are missing, or Monte Carlo has fewer samples than
            were asked for; ``skipped`` and ``stopped`` say which.
        chips: metrics over chips, where there are targets or metrics were asked for.
        sample_operations: what one Monte Carlo sample costs, counted; None where it is not known.
        methods: what its methods are, those that were skipped too, in the order of the tables.
        named_outputs: the outputs that were asked for by number; empty where crashsim chose.
        left_out: of a score that was read from a file, the numbers of which the file has the
            largest and a summary (more than 20,000 in all). A score that was just computed has all.
    """

    model: ModelFacts
    inputs: InputFacts
    faults: list[FaultFacts]
    sites: list[SiteFacts]
    coordinates: int
    outputs: int
    seed: int
    epsilon: float | None
    confidence: float
    samples: int
    stopped: str | None
    estimates: Estimates
    agreement: list[Agreement]
    top: list[CoordinateFacts]
    covariance: dict[str, list[list[Number]]]
    formulas: dict[str, FormulaFacts]
    curves: Curves | None
    histogram: Histogram | None
    hardware: ChipFacts | None
    delta: float | None
    answers: list[Answer]
    plan: list[str]
    skipped: dict[str, str]
    warnings: list[str]
    timings: dict[str, Number]
    versions: dict[str, str]
    contradictions: list[Contradiction] = field(default_factory=list)
    partial: bool = False
    methods: list[MethodFacts] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    named_outputs: list[int] = field(default_factory=list)
    chips: ChipsFacts | None = None
    sample_operations: Number | None = None

    def find(
        self,
        method: str,
        quantity: str,
        input: int | str = "all",
        output: int | str = "all",
    ) -> Estimate | None:
        """The estimate with these names, or None; ``output="loss"`` where that was asked for."""
        if output == LOSS and self.of_loss:
            output = 0
        return self.estimates.find(method, quantity, input, output)

    @property
    def of_loss(self) -> bool:
        """Whether the only output is the loss of each example."""
        return "loss" in self.model

    def output_in_words(self, number: int) -> str:
        """``output 3``, or ``the loss``."""
        return "the loss" if self.of_loss else f"output {number}"

    def output_in_files(self, output: int | str) -> int | str:
        """A number, ``all``, or ``loss`` where that is the only output."""
        return LOSS if self.of_loss and output == 0 else output

    @cached_property
    def method_facts(self) -> dict[str, MethodFacts]:
        """Every method of the record by name, in the order of the tables."""
        return all_methods(self.methods, self.estimates)

    @cached_property
    def quoted(self) -> list[str]:
        """The methods whose number may be quoted alone, the most trustworthy first."""
        return quoted(self.method_facts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; what ``--json`` writes, but for the verdict.

        Of more than 20,000 estimates, each method's largest are listed one by one, and the others
        are told in ``left_out``: ``estimates_file`` has them all.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        some, left_out = listed(self.estimates)
        plain["estimates"] = [
            {**e.to_dict(), "output": self.output_in_files(e.output)} for e in some
        ]
        plain["left_out"] = [*self.left_out, *left_out]
        plain["agreement"] = [a.to_dict() for a in self.agreement]
        plain["contradictions"] = [c.to_dict() for c in self.contradictions]
        plain["answers"] = [a.to_dict() for a in self.answers]
        plain["methods"] = [m.to_dict() for m in self.methods]
        plain["curves"] = self.curves and asdict(self.curves)
        plain["histogram"] = self.histogram and asdict(self.histogram)
        return cast(dict[str, Any], finite({"schema": SCHEMA, **plain}))

    def estimates_file(self) -> bytes:
        """All numbers as an ``.npz`` file; see ``crashsim.results.listing.as_npz``."""
        return as_npz(self.estimates)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote.

        Raises:
            FileError: not a score, or one of another schema.
        """
        if not isinstance(plain, Mapping) or plain.get("schema") not in _READABLE:
            found = plain.get("schema") if isinstance(plain, Mapping) else type(plain).__name__
            raise FileError(
                f"score: schema {found!r} is none of {_READABLE}; "
                "give a file that `crashsim score --json` of this version wrote"
            )
        try:
            score: Self = read(cls, _numbered(plain))
            if told := unfit(score):
                raise ValueError(told)
        except ValueError as error:
            raise FileError(
                f"score: {error}; the file is damaged or was changed: write it again with "
                "`crashsim score --json`"
            ) from error
        return score


def _numbered(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data of a score with numbers for outputs, where the only one is called the loss."""
    model, estimates = plain.get("model"), plain.get("estimates")
    if not (isinstance(model, Mapping) and "loss" in model and isinstance(estimates, list)):
        return plain
    return {
        **plain,
        "estimates": [
            {**e, "output": 0} if isinstance(e, Mapping) and e.get("output") == LOSS else e
            for e in estimates
        ],
    }
