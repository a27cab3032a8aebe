"""Ways to harden a network, compared at equal cost, as data: what ``crashsim harden`` saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, cast

from typing_extensions import TypedDict

from crashsim.errors import FileError
from crashsim.results.json_reading import finite, read
from crashsim.results.schema import FaultFacts, LevelFacts, ModelFacts, Number, RangeFacts

SCHEMA = 1

Answer = Literal["yes", "no", "open"]


class TrainingFacts(TypedDict):
    """What a training took.

    ``operations`` are floating-point ones, of forward and backward passes and of what a way adds;
    None where they cannot be counted. ``effort`` is how many times as long as usual it trained.
    """

    passes: int
    examples: int
    operations: float | None
    effort: Number


class WayFacts(TypedDict):
    """One way, judged on the examples that choices are made on.

    ``clean`` and ``mean`` are of the metric without faults and over chips, ``accepted`` the share
    of chips that reach the target; their intervals hold for all ways at once. ``accuracy`` is that
    without faults, where there are classes. ``macs`` are multiply-accumulates of an example and
    ``bits`` what is stored, protection included. ``reaches`` the target: ``open`` where the
    interval does not tell. A way that could not be taken says why in ``refused``.
    """

    name: str
    training: TrainingFacts | None
    macs: float | None
    bits: Number
    clean: float | None
    accuracy: float | None
    mean: RangeFacts | None
    accepted: LevelFacts | None
    reaches: Answer
    refused: str


class VerifiedFacts(TypedDict):
    """A way on examples and chips that no decision has seen.

    ``mean`` is given the examples; ``population`` is of all examples like these, too.
    """

    name: str
    examples: int
    clean: Number
    mean: RangeFacts
    population: RangeFacts | None
    accepted: LevelFacts | None
    confidence: Number
    reaches: Answer


@dataclass(frozen=True)
class HardeningRecord:
    """A comparison of ways as data.

    Attributes:
        model: the network.
        faults: that were asked about.
        metric: its name.
        lower_is_better: whether less of it is better.
        target: the worst value that is accepted; None: the best way was asked for.
        share: of chips that are to reach the target; None: their mean is.
        accuracy_loss: accuracy without faults that a way may give up.
        equal: what all ways have in common: the ``steps`` of training or its ``operations``.
        examples: that ways were compared on.
        chips: faulty chips, on which each way was judged.
        seed, confidence: as asked.
        ways: in the order of the menu.
        chosen: name of the way that was chosen; None: none could be.
        reached: whether the target was met where no decision had looked.
        verified: the looks at the way that was chosen, and at those before it that failed.
        warnings: what deserves attention.
        versions: of packages.
        partial: it was interrupted, so that ways are missing.
    """

    model: ModelFacts
    faults: list[FaultFacts]
    metric: str
    lower_is_better: bool
    target: float | None
    share: float | None
    accuracy_loss: Number
    equal: Literal["steps", "operations"]
    examples: int
    chips: int
    seed: int
    confidence: float
    ways: list[WayFacts]
    chosen: str | None
    reached: bool
    verified: list[VerifiedFacts] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; null for what is infinite or no number."""
        from crashsim.results.hardening.words import statement

        plain = {f.name: getattr(self, f.name) for f in fields(HardeningRecord)}
        told = {"schema": SCHEMA, "record": "hardening", "statement": statement(self), **plain}
        return cast(dict[str, Any], finite(told))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote.

        Raises:
            FileError: no such record, or one of another schema.
        """
        if not is_hardening_record(plain) or plain.get("schema") != SCHEMA:
            raise FileError(
                f"hardening: is no comparison of ways to harden of schema {SCHEMA}; give a file "
                "that `crashsim harden --json` or `Hardening.save` of this version wrote"
            )
        try:
            facts: HardeningRecord = read(HardeningRecord, plain)
            facts._check()
        except ValueError as error:
            raise FileError(f"hardening: {error}; the file is damaged or was changed") from error
        return cls(**{f.name: getattr(facts, f.name) for f in fields(HardeningRecord)})

    def _check(self) -> None:
        """Raises ValueError for parts that do not fit together."""
        names = [way["name"] for way in self.ways]
        if len(set(names)) < len(names):
            raise ValueError("ways: two have one name")
        if self.chosen is not None and self.chosen not in names:
            raise ValueError(f"chosen: {self.chosen!r} is none of the ways")

    def way(self, name: str) -> WayFacts:
        """The way of a name. Raises KeyError for none."""
        return {way["name"]: way for way in self.ways}[name]


def is_hardening_record(plain: Any) -> bool:
    """Whether data of a JSON file are those of such a comparison."""
    return isinstance(plain, Mapping) and plain.get("record") == "hardening"
