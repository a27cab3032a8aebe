"""What a score will compute: which methods apply, and which are affordable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from crashsim.analytic.gains import MEMORY
from crashsim.arguments import MOST_SAMPLES, nearest
from crashsim.errors import ArgumentError
from crashsim.faults import check_drawable
from crashsim.results.numbers import CORE, words_of_time
from crashsim.sampling.monte_carlo import DEFAULT_SAMPLES
from crashsim.scoring.method import Method, told_as_its_own
from crashsim.scoring.methods import METHODS
from crashsim.scoring.planning.costs import (
    Cost,
    affordable_samples,
    cost_of,
    cost_of_sampling,
)
from crashsim.scoring.planning.size import Size, singles_sampled
from crashsim.scoring.shared import NEEDS
from crashsim.scoring.variance_reduction import chosen_samples
from crashsim.space import FaultSpace

SAMPLING = "monte-carlo"
_ALWAYS = "mean-point-taylor"
_THEORY = 0.6  # of a budget that goes to all but plain samples, at most
_FEWEST = 2  # samples
# Operations that may be spent on rare events, whatever the rest takes: ten seconds; less where the
# number of samples that was asked for says that less is wanted.
_MUCH, _MUCH_BESIDE_FEW = 1e11, 2e10
# Theory that nobody asked for takes this much at most, or so many times as much as the
# arithmetic of the samples that somebody did.
_THEORY_BESIDE_FEW, _TIMES = 1e9, 4.0


@dataclass(frozen=True)
class Plan:
    """What is computed and what is not.

    Attributes:
        considered: methods that were asked for or might run unasked, in the order of the table.
        skipped: those of them that are not computed, by name, with the reason.
        samples: of Monte Carlo, or the most of them where ``rel_width`` decides (None: as many as
            it takes).
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
    def steps(self) -> dict[str, Cost]:
        """What each method costs, and each result that several share, in the order they run."""
        found: dict[str, Cost] = {}
        for method in self.chosen:
            found |= _costs_of(method, self.size, self.samples, found)
        return found

    def cost_of(self, method: Method) -> Cost:
        """What a method costs, without what it shares with others."""
        return _costs_of(method, self.size, self.samples, {})[method.name]

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
    budget: float | None = None,
    beside: Callable[[Size], float] = lambda size: 0.0,
    named_outputs: Sequence[int] = (),
) -> Plan:
    """Chooses methods; those that are named are computed whatever they cost.

    With a budget, methods are taken while they take 0.6 of it, the cheapest first, and Monte Carlo
    gets what is left. Where a number of samples is asked for, theory takes a tenth of a second of a
    core, or four times as long as they do. What would cost more than all the rest together is left
    out, too.

    Args:
        methods: names; or names with a ``+``, which are added to those chosen unasked. A
            ``Method`` joins the table for this score, and is computed unless it refuses.
        samples, rel_width: of Monte Carlo, as asked for.
        hardware, proofs: also the methods of these names.
        memory: bytes that gains may take, about.
        budget: operations for all of it; None: as much for each method as its table says.
        beside: what is taken of a budget by other things than methods.
        named_outputs: outputs that were asked for by number.

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
    size = Size(space, memory, budget, tuple(named_outputs))
    skipped: dict[str, str] = {}
    for method in considered:
        if method.name in named:
            continue
        with told_as_its_own(method) if method in own else nullcontext():
            reason = _reason_against(method, size)
        if reason is not None:
            skipped[method.name] = reason
    count = chosen_samples(size, samples, rel_width)
    left = [m for m in considered if m.name not in skipped]
    kept = frozenset(m.name for m in left if m.name in named or m in own)
    if budget is None:
        much = _MUCH if samples is None else _MUCH_BESIDE_FEW
        if samples is not None:
            skipped |= _beyond_samples(left, kept, size, samples)
            left = [m for m in left if m.name not in skipped]
        skipped |= _out_of_proportion(left, kept, size, count, much)
    else:
        skipped |= _beyond_budget(left, kept, size, budget)
        left = [m for m in left if m.name not in skipped]
        if samples is None:
            count = _affordable_samples(left, size, budget - beside(size))
    return Plan(considered, skipped, count, size)


def _costs_of(
    method: Method, size: Size, samples: int | None, known: Mapping[str, Cost]
) -> dict[str, Cost]:
    """What a method adds to the costs that are known already, its needs first."""
    size = method.size_of(size)
    found = {need: cost_of(need, size) for need in method.needs if need not in known}
    if "surrogate" in found and "differences" not in known:  # what it is made from
        source = "gradients" if size.space.has_derivatives else "differences"
        found |= {} if source in known else {source: cost_of(source, size)}
    if "all_singles" in found and "differences" not in known and singles_sampled(size) is None:
        found["differences"] = cost_of("differences", size)
    if method.name == SAMPLING:
        return {**found, SAMPLING: cost_of_sampling(size, samples or DEFAULT_SAMPLES)}
    return {**found, method.name: cost_of(method.name, size, method.cost)}


def _out_of_proportion(
    left: list[Method], kept: frozenset[str], size: Size, samples: int | None, much: float
) -> dict[str, str]:
    """What refines a score and would take longer than all the rest of it, with the reason.

    Args:
        left: the methods that may run.
        kept: those that are not to be left out.
        size: of the space.
        samples: of Monte Carlo.
        much: operations up to which nothing is left out.
    """
    costs: dict[str, Cost] = {}
    for method in left:
        costs |= _costs_of(method, size, samples, costs)
    total = sum(cost.operations for cost in costs.values())
    found = {}
    for method in left:
        own = costs[method.name].operations
        refines = method.rare is not None and method.kind == "statistical"
        if refines and method.name not in kept and own > max(much, total - own):
            found[method.name] = (
                f"{method.dear}: about {words_of_time(costs[method.name].seconds)}, more than all "
                f"the rest; ask for it as +{method.name}"
            )
    return found


def _beyond_budget(
    left: list[Method], kept: frozenset[str], size: Size, budget: float
) -> dict[str, str]:
    """The methods that a budget does not pay for, with the reason.

    Those asked for come first, then the cheapest, so that one dear number does not take the place
    of several others; of equal cost, in the order of the table.
    """
    theory = [method for method in left if method.name != SAMPLING]
    return {
        name: f"it takes {words_of_time(more / CORE)} more of the budget; ask for it as +{name}"
        for name, more in _too_dear(theory, kept, size, _THEORY * budget).items()
    }


def _beyond_samples(
    left: list[Method], kept: frozenset[str], size: Size, samples: int
) -> dict[str, str]:
    """The methods that would take many times as long as the samples asked for, with the reason.

    Who asks for few samples has little time; which layers matter is said all the same. What needs
    nothing but passes of the network is not theory: a sum over all patterns, strata of single
    faults.
    """
    sampling, kept = cost_of_sampling(size, samples).operations, kept | {_ALWAYS}
    arithmetic = sampling * max(size.arithmetic / size.operations, 1.0)
    theory = [m for m in left if m.needs and m.kind != "statistical"]
    asked: dict[str, Cost] = {}
    for method in theory:
        if method.name in kept:
            asked |= _costs_of(method, size, samples, asked)
    most = max(_THEORY_BESIDE_FEW, _TIMES * arithmetic)
    most += sum(cost.operations for cost in asked.values())
    return {
        name: f"it takes {more / sampling:.2g} times as long as {samples} samples; ask for it as "
        f"+{name}"
        for name, more in _too_dear(theory, kept, size, most).items()
    }


def _too_dear(
    theory: list[Method], kept: frozenset[str], size: Size, most: float
) -> dict[str, float]:
    """What so many operations do not pay for, by name, and what each would take in addition."""
    costs: dict[str, Cost] = {}
    found = {}

    def place(method: Method) -> tuple[bool, float]:
        alone = _costs_of(method, size, None, {})
        return method.name not in kept, sum(cost.operations for cost in alone.values())

    for method in sorted(theory, key=place):
        more = _costs_of(method, size, None, costs)
        spent = sum(cost.operations for cost in (costs | more).values())
        if method.name in kept or spent <= most:
            costs |= more
        else:
            found[method.name] = sum(cost.operations for cost in more.values())
    return found


def _affordable_samples(left: list[Method], size: Size, budget: float) -> int:
    """How many samples the rest of a budget pays for."""
    costs: dict[str, Cost] = {}
    for method in left:
        if method.name != SAMPLING:
            costs |= _costs_of(method, size, None, costs)
    rest = budget - sum(cost.operations for cost in costs.values())
    return affordable_samples(size, rest, _FEWEST, MOST_SAMPLES)


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
        near = nearest(unknown[0].removeprefix("+"), known) if unknown else ""
        raise ArgumentError(f"methods={unknown}{near}: choose among {', '.join(known)}")
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
    size = method.size_of(size)
    if reason := method.inapplicable(size.space):
        return reason
    for name in method.needs:
        refuses = NEEDS[name].refuses
        if refuses is not None and (reason := refuses(size)):
            return reason
    return method.reason_against(size)
