"""Method: one way to compute numbers of a score, crashsim's own or a user's.

A method is a value: plain functions with what a plan and a report must know of them. Crashsim's
stand in one table (``crashsim.scoring.methods.METHODS``); one's own is passed to ``score``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from crashsim.arguments import instance, is_whole, one_of, shown
from crashsim.coordinates.placement import DEPENDENT
from crashsim.errors import ArgumentError, CrashsimError
from crashsim.model.failures import described
from crashsim.results.estimate import Estimate, Kind, Quantity
from crashsim.results.estimates import Estimates
from crashsim.results.method_facts import LAST, MethodFacts
from crashsim.results.schema import FormulaFacts
from crashsim.scoring.planning.size import BUDGET, Size
from crashsim.space import FaultSpace

if TYPE_CHECKING:
    from crashsim.scoring.shared import Given

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# What a score skips under these names are no methods.
_TAKEN = ("answers", "class-change")


@dataclass(frozen=True)
class Found:
    """What a method found, where there is more to it than estimates.

    Attributes:
        estimates: its numbers.
        formula: what was derived for them, as text and LaTeX.
        result: an object that the curves and pictures of a score read.
    """

    estimates: Iterable[Estimate]
    formula: FormulaFacts | None = None
    result: Any = None


@dataclass(frozen=True)
class Method:
    """A method of ``score``: ``score(..., methods=["+pairs", Method(...)])``.

    Attributes:
        name: as ``methods=``, estimates and reports say it; of letters, digits, ``-``, ``_``, ``.``
        about: what it computes, in a few words, for reports.
        run: its estimates (``crashsim.Estimate``, with ``method=name``) of what it is given
            (``crashsim.scoring.shared.Given``: the space, what was asked, and what it ``needs``);
            or a ``Found``. Raises ``NotApplicableError`` with the reason where it says nothing. It
            draws random numbers from the seed it is given alone.
        kind: of its estimates (``exact``, ``proof``, ``bound``, ``statistical``, ``estimate``); it
            decides how far a verdict trusts them.
        needs: shared results, each made once for all methods and before this one runs; see
            ``crashsim.scoring.shared.NEEDS``. Where one cannot be had, the method is skipped with
            the reason.
        uses: shared results that it takes if another method of the same score needs them.
        cost: floating-point operations, counted from a ``crashsim.scoring.planning.size.Size``;
            None: not counted.
        most: operations that it may cost without being named, where no budget says otherwise.
        dear: why it is not computed where it costs more.
        refuses: why it is not computed without being named, or None; of a ``Size``.
        moments_only: it asks nothing of a fault's law but its moments, so it serves laws that
            cannot be drawn from.
        dependent: it is right for coordinates that depend on each other too, as those do of which
            an exact number is struck (``space.counts``).
        by_output: it asks of each output by itself, so that of very many it is asked of those alone
            that are named (``outputs=``): it is then given a space with these outputs.
        option: the argument of ``score`` that adds it (``proofs``, ``hardware``), if one does.
        rank: its place among methods of its kind when a verdict quotes one number, lowest first;
            None: never quoted.
        rare: its place among those to rely on for events too rare for plain samples; None: none.

    Raises:
        ArgumentError: a field is of the wrong type, or the name cannot be one.
    """

    name: str
    about: str
    run: Callable[[Given], Found | Iterable[Estimate]]
    kind: Kind = "estimate"
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    cost: Callable[[Size], float] | None = None
    most: float = BUDGET
    dear: str = "it takes longer"
    refuses: Callable[[Size], str | None] | None = None
    moments_only: bool = False
    dependent: bool = False
    by_output: bool = False
    option: str = ""
    rank: int | None = LAST
    rare: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ArgumentError(
                f"name={shown(self.name)}; name the method with letters, digits, '-', '_' and '.'"
            )
        if self.name in _TAKEN:
            raise ArgumentError(f"name={self.name!r} stands for something else; give another name")
        instance("about", self.about, str, "what the method computes, in a few words")
        one_of("kind", self.kind, get_args(Kind))
        for argument, value in (("run", self.run), ("cost", self.cost), ("refuses", self.refuses)):
            if not callable(value) and (value is not None or argument == "run"):
                raise ArgumentError(f"{argument}={shown(value)}; give a function")
        for argument, place in (("rank", self.rank), ("rare", self.rare)):
            if place is not None and not is_whole(place):
                raise ArgumentError(f"{argument}={shown(place)}; give an integer or None")

    def facts(self) -> MethodFacts:
        """What a record keeps of it."""
        return MethodFacts(self.name, self.about, self.kind, self.rank)

    def inapplicable(self, space: FaultSpace) -> str | None:
        """Why it says nothing of a space, whoever asks for it; None where it does."""
        return None if self.dependent or not space.counts else DEPENDENT

    def size_of(self, size: Size) -> Size:
        """The size of what it is asked of."""
        return (self.by_output and size.of_named) or size

    def reason_against(self, size: Size) -> str | None:
        """Why it is not computed without being named; None where it is."""
        if self.refuses is not None and (reason := self.refuses(size)) is not None:
            instance("refuses", reason, str, "a function that returns the reason or None")
            return reason
        if self.cost is not None and self.cost(size) > size.scale * self.most:
            return f"{self.dear}; ask for it as +{self.name}"
        return None

    def compute(self, given: Given) -> Found:
        """What it finds."""
        found = self.run(given)
        return found if isinstance(found, Found) else Found(Estimates() + found)


def guarded(method: Method, given: Given) -> Found:
    """What a user's own method finds, if it is fit for a score.

    Raises:
        ArgumentError: its code fails, or returns what is no estimate of it.
    """
    with told_as_its_own(method):
        found = method.compute(given)
        estimates = list(found.estimates)
    for e in estimates:
        if told := _unfit(e, method, given):
            raise ArgumentError(f"methods: {method.name} returned {told}")
    formula = found.formula
    if formula is not None:
        formula = {"text": str(formula["text"]), "latex": str(formula["latex"])}
    return Found(estimates, formula)


@contextmanager
def told_as_its_own(method: Method) -> Iterator[None]:
    """What a method's code raises becomes an ArgumentError that names the method."""
    try:
        yield
    except CrashsimError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"methods: {method.name} raised {described(error)}; correct its code"
        ) from error


def _unfit(e: Any, method: Method, given: Given) -> str | None:
    """What is wrong with an estimate, and what to do; None if nothing is."""
    if not isinstance(e, Estimate):
        return f"{shown(e)}; return a list of crashsim.Estimate"
    if e.method != method.name:
        return f"an estimate of {e.method!r}; give it method={method.name!r}"
    quantities = (*get_args(Quantity), *(m.name for m in given.asked.metrics.metrics))
    for field, choices in (("quantity", quantities), ("kind", get_args(Kind))):
        if getattr(e, field) not in choices:
            return f"{field}={getattr(e, field)!r}; choose among {', '.join(choices)}"
    for field, count in (("input", given.space.B), ("output", given.space.K)):
        where = getattr(e, field)
        is_index = isinstance(where, int) and not isinstance(where, bool)
        if where != "all" and not (is_index and 0 <= where < count):
            return f"{field}={where!r}; give an int below {count}, or 'all'"
    numbers = (e.value, e.low, e.high, e.level, e.worth, e.confidence)
    if any(n is not None and not isinstance(n, float | int) for n in numbers):
        return f"an estimate of {e.quantity} that holds no plain numbers; convert them with float()"
    if math.isnan(e.value):
        return f"NaN for {e.quantity}; leave out what it does not know"
    epsilon = given.asked.epsilon
    if e.quantity == "tail" and epsilon is None:
        return "a tail, and no epsilon was asked; raise NotApplicableError instead"
    if e.quantity == "tail" and e.level != epsilon:
        return f"a tail at level={e.level}; give it level={epsilon}, the epsilon asked"
    if e.note is not None and not isinstance(e.note, str):
        return f"note={shown(e.note)}; give a text"
    return None
