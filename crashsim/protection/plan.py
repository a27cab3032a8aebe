"""Plan: what to protect, what it costs and what it buys; a record that saves, loads and shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from torch import nn

from crashsim.arguments import path as file_path
from crashsim.arguments import whole
from crashsim.errors import FileError, NotApplicableError
from crashsim.files.limits import read_text
from crashsim.notebook import fragment
from crashsim.protection.protected import Protected
from crashsim.protection.schemes import Scheme
from crashsim.results.plan import plans
from crashsim.results.plan.plan_record import PlanRecord
from crashsim.writing import write_text


@dataclass(frozen=True)
class Plan(PlanRecord):
    """A plan of protection.

    Its attributes are those of ``crashsim.results.plan.plan_record.PlanRecord``, and:

    Attributes:
        schemes: the schemes with what they protect, as ``Protected`` takes them; none in a plan
            that was read from a file, which keeps how many coordinates they protect alone.
    """

    schemes: tuple[Scheme, ...] = field(default=(), compare=False)

    def protected(self, model: nn.Module, data: Any = None) -> Protected:
        """A model with the plan's schemes.

        Args:
            model: the one that the plan was made for.
            data: clean examples, where activations are clipped.

        Raises:
            NotApplicableError: the plan was read from a file.
        """
        if not self.schemes and self.chosen:
            raise NotApplicableError(
                "a plan that was read from a file does not hold which coordinates it protects; "
                "call crashsim.protect again, with the same seed"
            )
        return Protected(model, self.schemes, data=data)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        record = PlanRecord.from_dict(plain)
        return cls(**{f.name: getattr(record, f.name) for f in fields(PlanRecord)})

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON.

        Raises:
            FileError: it cannot be written.
        """
        write_text("path", file_path("path", path), json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A plan that ``save`` or ``crashsim protect --json`` wrote.

        Raises:
            FileError: it cannot be read, or is no plan.
        """
        path = file_path("path", path)
        remedy = "give a file that `crashsim protect --json` or `Plan.save` wrote"
        try:
            return cls.from_dict(json.loads(read_text(str(path), path, remedy)))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, FileError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{path}: cannot be read as JSON ({reason}); {remedy}") from error

    def to_text(self, width: int = 100) -> str:
        """A table for a terminal of this width."""
        from crashsim.report.plans import to_text

        return to_text(self, whole("width", width, 20, 10_000))

    def to_html(self) -> str:
        """A self-contained HTML page."""
        from crashsim.report.plans import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        title, told = f"crashsim: {plans.title(self)}", " ".join(plans.sentences(self))
        notes = [plans.faults_of(self), *self.told, plans.footer(self), *self.warnings]
        return fragment(title, told, plans.CHOSEN, plans.chosen_rows(self), notes, names=3)

    def __str__(self) -> str:
        return self.to_text()
