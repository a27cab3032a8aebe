"""Hardening: ways to harden a network, compared: a record that saves, loads and shows itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import nn

from crashsim.arguments import path as file_path
from crashsim.arguments import whole
from crashsim.errors import FileError
from crashsim.files.limits import read_text
from crashsim.notebook import fragment
from crashsim.results.hardening import words
from crashsim.results.hardening.record import HardeningRecord
from crashsim.writing import write_text


@dataclass(frozen=True)
class Hardening(HardeningRecord):
    """Ways to harden a network, compared at equal cost, and the network that was chosen.

    Its attributes are those of ``crashsim.results.hardening.record.HardeningRecord``, and:

    Attributes:
        model: facts of the network, as of any record.
        network: the chosen way's, in evaluation mode, protection included; None where it was read
            from a file, or where no way could be judged.
        trained: the chosen way's after training, before copies and other protection were added.
    """

    network: nn.Module | None = field(default=None, compare=False, repr=False)
    trained: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def statement(self) -> str:
        """The result in plain words."""
        return words.statement(self)

    def save(self, path: str | Path) -> None:
        """Writes the comparison, without the network, as JSON. Raises FileError if it cannot."""
        path = file_path("path", path)
        write_text("path", path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a comparison from JSON.

        Raises:
            FileError: it cannot be read, is none, or would take too much memory (see
                ``crashsim.files.limits``).
        """
        path = file_path("path", path)
        what = f"hardening={str(path)!r}"
        remedy = "give a file that `crashsim harden --json` or `Hardening.save` wrote"
        try:
            return cls.from_dict(json.loads(read_text(what, path, remedy)))
        except FileError as error:
            if str(error).startswith(what):
                raise
            raise FileError(f"{what}: {str(error).removeprefix('hardening: ')}") from error
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{what}: cannot be read as JSON ({reason}); {remedy}") from error

    def to_text(self, width: int = 100) -> str:
        """A table for a terminal of this width."""
        from crashsim.report.hardening import to_text

        return to_text(self, whole("width", width, 20, 10_000))

    def to_html(self) -> str:
        """A self-contained HTML page."""
        from crashsim.report.hardening import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        title = f"crashsim: {self.model['name']}"
        notes = [words.footer(self), *words.refusals(self), *self.warnings]
        return fragment(title, self.statement, words.titles(self), words.rows(self), notes)

    def __str__(self) -> str:
        return self.to_text()
