"""A plan of protection as data: what ``crashsim protect`` saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, cast

from typing_extensions import TypedDict

from crashsim.errors import FileError
from crashsim.results.json_reading import finite, read
from crashsim.results.schema import (
    FaultFacts,
    InputFacts,
    LevelFacts,
    ModelFacts,
    Number,
    RangeFacts,
    SiteFacts,
)

SCHEMA = 1


class ChosenFacts(TypedDict):
    """One scheme at one site: how many of its coordinates it protects, and what that costs.

    ``bits`` are those of words that are protected in all of the site's protected words together;
    ``overhead`` is the cost as a share of the network's own bits and operations.
    """

    scheme: str
    site: str
    bits: list[int]
    coordinates: int
    of: int
    cost: dict[str, float]
    overhead: Number


class FrontFacts(TypedDict):
    """A plan that no other one beats: what it costs, and what virtual chips say that it buys."""

    overhead: Number
    protected: Number  # share of the coordinates
    predicted: Number
    accepted: float | None  # predicted share of chips that reach the target
    schemes: list[str]
    chosen: bool


class VerifiedFacts(TypedDict):
    """The plan on chips that were judged in truth, on examples that did not choose it.

    ``value``, ``low`` and ``high`` are those of the metric's mean over chips, ``unprotected`` those
    without protection; ``accepted`` is the share of chips that reach the target. ``predicted`` is
    what virtual chips say of the mean on the same examples, ``agrees`` whether that lies inside.
    """

    value: Number
    low: Number
    high: Number
    unprotected: RangeFacts
    accepted: LevelFacts | None
    predicted: Number
    predicted_unprotected: Number
    agrees: bool
    chips: int
    examples: int
    rounds: int


@dataclass(frozen=True)
class PlanRecord:
    """A plan as data.

    Attributes:
        model, inputs: as of a score.
        faults, sites: what strikes, without protection.
        coordinates: their number.
        metric: its name.
        lower_is_better: whether less of it is better.
        clean: its value without faults.
        target: the value that is to be reached; None: the best for the budget was asked for.
        share: of chips that are to reach it; None: their mean is to.
        budget: the most overhead; None: no limit.
        chosen: what to protect, and how.
        overhead: what that costs, as a share of the network's own bits and operations.
        cost: bits, multiply-accumulates and latency.
        front: plans that no other beats, the cheapest first.
        verified: the chosen one, measured.
        reached: whether the target is reached: True where the interval says so, False where it
            denies it, None where it leaves that open, or nothing was asked for.
        told: what to know about it, in words.
        virtual_chips: number of chips that each plan was judged by.
        seed, confidence: as asked.
        warnings, versions: as of a score.
    """

    model: ModelFacts
    inputs: InputFacts
    faults: list[FaultFacts]
    sites: list[SiteFacts]
    coordinates: int
    metric: str
    lower_is_better: bool
    clean: Number
    target: float | None
    share: float | None
    budget: float | None
    chosen: list[ChosenFacts]
    overhead: Number
    cost: dict[str, float]
    front: list[FrontFacts]
    verified: VerifiedFacts
    reached: bool | None
    told: list[str]
    virtual_chips: int
    seed: int
    confidence: float
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; null for what is infinite or no number."""
        plain = {f.name: getattr(self, f.name) for f in fields(PlanRecord)}
        return cast(dict[str, Any], finite({"schema": SCHEMA, "record": "plan", **plain}))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote.

        Raises:
            FileError: not a plan, or one of another schema.
        """
        if not is_plan_record(plain) or plain.get("schema") != SCHEMA:
            raise FileError(
                f"plan: is no plan of schema {SCHEMA}; give a file that `crashsim protect --json` "
                "or `Plan.save` of this version wrote"
            )
        try:
            found: Self = read(cls, plain)
        except ValueError as error:
            raise FileError(f"plan: {error}; the file is damaged or was changed") from error
        return found


def is_plan_record(plain: Any) -> bool:
    """Whether data of a JSON file are those of a plan."""
    return isinstance(plain, Mapping) and plain.get("record") == "plan"
