"""What a record says of its methods, so that it renders without the code that made it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crashsim.results.estimate import Kind
from crashsim.results.estimates import Estimates

LAST = 100  # rank of a method whose author does not say how good it is

# Whose number a verdict quotes first. A proof is a limit, not a value, so it is never quoted.
_QUOTED: tuple[Kind, ...] = ("exact", "statistical", "estimate", "bound")


@dataclass(frozen=True)
class MethodFacts:
    """A method as a record keeps it.

    Attributes:
        name: as its estimates say.
        about: what it computes, in a few words.
        kind: of its estimates, as a rule.
        rank: its place within its kind when one number is quoted, lowest first; None: never.
    """

    name: str
    about: str
    kind: Kind
    rank: int | None = LAST

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def all_methods(told: Sequence[MethodFacts], estimates: Estimates) -> dict[str, MethodFacts]:
    """Methods by name: those told of in their order, then those of which there are only estimates.

    Args:
        told: what a record says of its methods; nothing, if it was saved by version 0.1.
        estimates: of the record.
    """
    found = {method.name: method for method in told}
    for part in estimates.parts:
        if part.method not in found:
            found[part.method] = MethodFacts(part.method, "", part.kind)
    return found


def quoted(methods: Iterable[MethodFacts]) -> list[str]:
    """Names of the methods whose number may be quoted alone, the best first."""
    some = [m for m in methods if m.rank is not None and m.kind in _QUOTED]
    return [m.name for m in sorted(some, key=lambda m: (_QUOTED.index(m.kind), m.rank))]
