"""A metric of faulty chips against the rate of faults, as data: what ``crashsim sweep`` saves."""

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

SCHEMA = 2
_READABLE = (1, SCHEMA)  # files of schema 1 say nothing of a pilot


class PointFacts(TypedDict):
    """A metric at one rate.

    ``value`` is its mean over chips, given the examples, with its own interval (``low``, ``high``)
    and the ends of a band that holds at all rates of the curve at once. Where nothing was measured
    (``kind`` is ``estimate``), ``value`` is what theory predicts, without interval.

    ``population`` is of chips and examples, ``percentiles`` and ``accepted`` (the share of chips
    that reach ``level``) are over chips. ``values`` and ``counts`` are those of the ``struck``
    chips; all others, a share ``without_fault`` of all, are as the clean network.
    """

    rate: Number
    kind: str
    value: Number
    low: Number
    high: Number
    band_low: Number
    band_high: Number
    predicted: float | None
    change: RangeFacts | None
    population: RangeFacts | None
    percentiles: list[LevelFacts]
    accepted: LevelFacts | None
    struck: int
    without_fault: Number
    not_finite: int
    values: list[Number]
    counts: list[int]


class TolerableFacts(TypedDict):
    """The largest rate at which ``target`` is reached; see ``crashsim.sweeping.tolerable``.

    By the mean over chips, or by a ``share`` of them. ``high`` is None beyond the curve's rates.
    """

    target: Number
    share: float | None
    rate: Number
    low: Number
    high: float | None
    confidence: Number


class PilotFacts(TypedDict):
    """What adaptive rates were chosen by: other chips than the curve's (0: a prediction)."""

    chips: int
    rates: list[Number]
    rows: int


@dataclass(frozen=True)
class CurveRecord:
    """A curve as data.

    Attributes:
        model, inputs: as of a score; ``inputs`` counts all examples.
        faults, sites: at the largest rate.
        coordinates: N.
        parameter: what the rate is: ``p``, or ``std``.
        metric: its name.
        lower_is_better: whether less of it is better.
        least, most: what it lies between; None without a bound.
        clean: without faults: the value at rate 0.
        seed, confidence, chips: as asked; ``chips`` is the number that was judged.
        rows: forward passes of one example.
        points: by rate, the least first.
        tolerated: the largest rates at which the target is reached, if there is one.
        prediction: what the predicted values are, or why there are none.
        warnings: what deserves attention.
        versions: of packages.
        partial: it was interrupted, so that chips are missing.
        name: of the curve among others in a figure.
        pilot: what the rates were chosen by; None: they were asked for.
    """

    model: ModelFacts
    inputs: InputFacts
    faults: list[FaultFacts]
    sites: list[SiteFacts]
    coordinates: int
    parameter: str
    metric: str
    lower_is_better: bool
    least: float | None
    most: float | None
    clean: Number
    seed: int
    confidence: float
    chips: int
    rows: int
    points: list[PointFacts]
    tolerated: list[TolerableFacts] = field(default_factory=list)
    prediction: str = ""
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    partial: bool = False
    name: str = ""
    pilot: PilotFacts | None = None

    @property
    def is_measured(self) -> bool:
        """Whether chips were judged, not only theory asked."""
        return self.chips > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; null for what is infinite or no number."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return cast(dict[str, Any], finite({"schema": SCHEMA, "record": "curve", **plain}))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote.

        Raises:
            FileError: not a curve, or one of another schema.
        """
        remedy = "give a file that `crashsim sweep --json` or `Curve.save` of this version wrote"
        if not is_curve_record(plain) or plain.get("schema") not in _READABLE:
            raise FileError(f"curve: is no curve of schema {SCHEMA} or less; {remedy}")
        try:
            found: Self = read(cls, plain)
            found._check()
        except ValueError as error:
            raise FileError(f"curve: {error}; the file is damaged or was changed") from error
        return found

    def _check(self) -> None:
        """Raises ValueError for parts that do not fit together."""
        rates = [point["rate"] for point in self.points]
        if not rates or rates != sorted(set(rates)):
            raise ValueError("points: their rates do not rise")
        for i, point in enumerate(self.points):
            if len(point["values"]) != len(point["counts"]):
                raise ValueError(f"points[{i}]: values and counts differ in number")
            if sum(point["counts"]) != point["struck"] or min(point["counts"], default=0) < 0:
                raise ValueError(f"points[{i}]: counts do not add up to struck")


def curves_of(plain: Mapping[str, Any]) -> list[CurveRecord]:
    """All curves of a file: the first holds the others.

    Raises:
        FileError: one of them is no curve.
    """
    others = plain.get("others", [])
    if not isinstance(others, list):
        raise FileError("curve: others is no list; the file is damaged or was changed")
    return [CurveRecord.from_dict(each) for each in (plain, *others)]


def is_curve_record(plain: Any) -> bool:
    """Whether data of a JSON file are those of a curve."""
    return isinstance(plain, Mapping) and plain.get("record") == "curve"
