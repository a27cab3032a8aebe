"""What a score will compute: which methods apply, and which are affordable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from crashsim.analytic.gains import MEMORY
from crashsim.errors import ArgumentError
from crashsim.faults import check_drawable
from crashsim.scoring.method import Method, told_as_its_own
from crashsim.scoring.methods import METHODS
from crashsim.scoring.shared import NEEDS
from crashsim.scoring.size import Size
from crashsim.scoring.variance_reduction import chosen_samples
from crashsim.space import FaultSpace


@dataclass(frozen=True)
class Plan:
    """What is computed and what is not.

    Attributes:
        considered: methods that were asked for or might run unasked, in the order of the table.
        skipped: those of them that are not computed, by name, with the reason.
        samples: of Monte Carlo, None where ``rel_width`` decides.
        size: the counts that it was decided on.
    """

    considered: tuple[Method, ...]
    skipped: Mapping[str, str]
    samples: int | None
    size: Size = field(compare=False)

    @property
    def chosen(self) -> tuple[Method, ...]:
        """The methods to compute, in the order of the table."""
        return tuple(m for m in self.considered if m.name not in self.skipped)

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(m.name for m in self.chosen)


def plan(
    space: FaultSpace,
    methods: Iterable[str | Method] | None,
    samples: int | None,
    rel_width: float | None,
    hardware: bool = False,
    proofs: bool = False,
    memory: int = MEMORY,
) -> Plan:
    """Chooses methods; those that are named are computed whatever they cost.

    Args:
        methods: names; or names with a ``+``, which are added to those chosen unasked. A
            ``Method`` joins the table for this score, and is computed unless it refuses.
        samples, rel_width: of Monte Carlo, as asked for.
        hardware, proofs: also the methods of these names.
        memory: bytes that gains may take, about.

    Raises:
        ArgumentError: an unknown method is named, two have one name; or one draws faults, of which
            a fault's law does not say how.
    """
    names, own = _read(methods)
    table = (*METHODS, *own)
    added = {name.removeprefix("+") for name in names if name.startswith("+")}
    only = names - {f"+{name}" for name in added}
    options = {"hardware"} if hardware else set()
    options |= {"proofs"} if proofs else set()
    named = only | added | {m.name for m in table if m.option in options}
    considered = tuple(m for m in table if not only or m.name in named or m in own)
    _check_drawable(space, [m for m in considered if m.name in named or m in own], not only)
    size = Size(space, memory)
    skipped: dict[str, str] = {}
    for method in considered:
        if method.name in named:
            continue
        with told_as_its_own(method) if method in own else nullcontext():
            reason = _reason_against(method, size)
        if reason is not None:
            skipped[method.name] = reason
    return Plan(considered, skipped, chosen_samples(size, samples, rel_width), size)


def _read(methods: Iterable[str | Method] | None) -> tuple[set[str], tuple[Method, ...]]:
    """The names that are given, and the methods of one's own."""
    try:
        given = [methods] if isinstance(methods, str | Method) else list(methods or [])
    except TypeError:
        raise ArgumentError(f"methods={methods!r}: give a list of names") from None
    own = tuple(dict.fromkeys(m for m in given if isinstance(m, Method) and m not in METHODS))
    known = [m.name for m in (*METHODS, *own)]
    twice = [name for name, count in Counter(known).items() if count > 1]
    if twice:
        raise ArgumentError(f"methods: {twice[0]!r} names two methods; give yours another name")
    for method in own:
        if lacking := [need for need in (*method.needs, *method.uses) if need not in NEEDS]:
            raise ArgumentError(
                f"methods: {method.name} needs {lacking[0]!r}; choose among {', '.join(NEEDS)}"
            )
    names = {m for m in given if isinstance(m, str)}
    names |= {f"+{m.name}" for m in given if isinstance(m, Method) and m in METHODS}
    others = [m for m in given if not isinstance(m, str | Method)]
    unknown = sorted(name for name in names if name.removeprefix("+") not in known)
    unknown += [repr(m) for m in others]
    if unknown or (methods is not None and not given):
        raise ArgumentError(f"methods={unknown}: choose among {', '.join(known)}")
    return names, own


def _check_drawable(space: FaultSpace, named: list[Method], others: bool) -> None:
    """Raises ArgumentError where a method would draw faults whose law cannot be drawn from.

    Args:
        named: methods that are asked for.
        others: methods that were not asked for may run, too.
    """
    drawing = next((m.name for m in named if not m.moments_only), "Monte Carlo" if others else "")
    if drawing:
        serving = [m.name for m in METHODS if m.moments_only]
        faults = (p.fault for p in space.placements)
        check_drawable(faults, drawing, f"ask for methods={serving}")


def _reason_against(method: Method, size: Size) -> str | None:
    """Why a method is not computed unasked, for what it needs or for itself; None where it is."""
    if reason := method.inapplicable(size.space):
        return reason
    for name in method.needs:
        refuses = NEEDS[name].refuses
        if refuses is not None and (reason := refuses(size)):
            return reason
    return method.reason_against(size)
