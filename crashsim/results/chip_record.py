"""A run of the spiking chip as a record: what ``crashsim hardware --json`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, cast

from crashsim.errors import FileError
from crashsim.results.estimates import Estimates
from crashsim.results.json_reading import finite, read
from crashsim.results.schema import ChipFacts

__all__ = ["ChipRecord", "is_chip_record"]

SCHEMA = 2
_READABLE = (1, SCHEMA)  # files of schema 1 say less


@dataclass(frozen=True)
class ChipRecord:
    """The result of one run of the chip.

    Attributes:
        model: its name.
        seed: of masks and membranes.
        hardware: what the run measured beside its estimates.
        estimates: of the chip.
        inputs: where they came from.
        faults: in words.
        beside: what theory and Monte Carlo say of the network that the chip is of, if asked for.
        picojoules: of a synaptic operation, if given.
        warnings: what to know before the numbers are trusted.
        versions: of packages.
    """

    model: str
    seed: int
    hardware: ChipFacts
    estimates: Estimates
    inputs: str = ""
    faults: list[str] = field(default_factory=list)
    beside: Estimates = field(default_factory=Estimates)
    picojoules: float | None = None
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["estimates"] = [e.to_dict() for e in self.estimates]
        plain["beside"] = [e.to_dict() for e in self.beside]
        return cast(dict[str, Any], finite({"schema": SCHEMA, **plain}))

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote, of this version or of schema 1.

        Raises:
            FileError: not such a record, or one of another schema.
        """
        if plain.get("schema") not in _READABLE:
            raise FileError(
                f"record: schema {plain.get('schema')!r} is none of {_READABLE}; give a file that "
                "`crashsim hardware --json` of this version wrote"
            )
        try:
            found: Self = read(cls, plain)
            if not found.hardware["raster"]["layers"]:
                raise ValueError("hardware.raster has no layers")
        except ValueError as error:
            raise FileError(
                f"record: {error}; the file is damaged or was changed: write it again with "
                "`crashsim hardware --json`"
            ) from error
        return found


def is_chip_record(plain: Any) -> bool:
    """Whether data of a JSON file are those of a run of the chip, and of no score."""
    return (
        isinstance(plain, Mapping)
        and isinstance(plain.get("hardware"), Mapping)
        and isinstance(plain.get("model"), str)
    )
