"""Faults of neurons that are computed two or three times: compared, or voted on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from crashsim.errors import ArgumentError
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Strikes
from crashsim.faults.words.guards import Ints, Members

Seen = Literal["vote", "zero", "last"]
"""The majority of three copies; or what becomes of a value whose two copies differ."""


@dataclass(frozen=True)
class GuardedUnits(BernoulliFault):
    """A fault of neurons of which some have copies, each struck on its own with the same ``p``.

    Coordinates: one for each neuron (or group of neurons) as the fault itself has, and behind them
    those of the copies. What the voter or comparator sees is a polynomial in them, linear in each.

    Args:
        struck: the fault without copies.
        members: which coordinates have copies.
        units: number of coordinates without these.
        seen: what becomes of copies that differ.
    """

    name: ClassVar[str] = "guarded-units"
    strikes: ClassVar[Strikes] = "both"
    zeroes: ClassVar[bool] = False
    is_elementwise: ClassVar[bool] = False
    struck: BernoulliFault = field(kw_only=True)
    members: Members = field(kw_only=True)
    units: int = field(kw_only=True)
    seen: Seen = field(kw_only=True)

    @classmethod
    def of(
        cls, struck: BernoulliFault, members: Members, shape: tuple[int, ...], seen: Seen
    ) -> Self:
        """Copies of neurons of a site of this shape.

        Raises:
            ArgumentError: a fault with an exact number of strikes, or with rates of their own.
        """
        if struck.count is not None or struck.is_varied:
            raise ArgumentError(
                f"{type(struck).__name__}: count= or rates of their own: copies of neurons want "
                "one p for all; give a number"
            )
        own = {f.name: getattr(struck, f.name) for f in fields(BernoulliFault)}
        units = struck.coordinate_count(shape)
        return cls(**own, struck=struck, members=members, units=units, seen=seen)

    @property
    def copies(self) -> int:
        """How many a member has besides itself."""
        return 2 if self.seen == "vote" else 1

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return self.units + self.copies * len(self.members)

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.coordinate_count(shape),)

    @property
    def is_guarded(self) -> bool:
        return True

    @property
    def is_of_features(self) -> bool:
        return self.struck.is_of_features

    def displacement(self, value: Tensor) -> Tensor:
        return self.struck.displacement(value)

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        e = e.to(value.dtype)
        where = torch.from_numpy(self.members.numbers.copy()).to(e.device)
        own, first = e[..., : self.units], e[..., where]
        others = e[..., self.units :].unflatten(-1, (self.copies, len(where))).unbind(-2)
        if self.seen == "vote":
            second, third = others
            read = first * second + first * third + second * third - 2 * first * second * third
            return self.struck.perturb(value, own.index_copy(-1, where, read), shape)
        both = first * others[0]
        struck = self.struck.perturb(value, own.index_copy(-1, where, both), shape)
        if self.seen == "last":
            return struck
        differ = torch.zeros_like(own).index_copy(-1, where, first + others[0] - 2 * both)
        differ = self._of_values(differ, shape)
        return struck * (1 - differ)

    def seen_struck(self, rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
        """Samples and units that are struck as the voter or comparator sees it.

        Args:
            rows: (n,) the sample of each struck coordinate.
            columns: (n,) the coordinate.
        """
        own = columns < self.units
        members = self.members.numbers
        copies = members[(columns[~own] - self.units) % max(len(members), 1)]
        key = np.concatenate(
            [rows[own] * self.units + columns[own], rows[~own] * self.units + copies]
        )
        found, often = np.unique(key, return_counts=True)
        row, unit = np.divmod(found, self.units)
        needed = np.where(np.isin(unit, members), 1 if self.seen == "zero" else 2, 1)
        return row[often >= needed], unit[often >= needed]

    def _of_values(self, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(..., *shape) coordinates (..., units) written out for each value."""
        size = self.struck.group_size(shape)
        if size > 1:
            n = int(torch.Size(shape).numel())
            e = e.repeat_interleave(size, dim=-1)[..., :n]
        return e.reshape(*e.shape[:-1], *shape)

    def to_dict(self) -> dict[str, Any]:
        own = super().to_dict()
        for name in ("struck", "members", "units", "seen"):
            del own[name]
        return {**own, "fault": self.struck.name, "guarded": len(self.members)}

    def facts(self) -> dict[str, object]:
        return super().facts() | {"fault": self.struck.name, "guarded": len(self.members)}
