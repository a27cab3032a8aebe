"""Carries out a plan: every method of a score, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from crashsim.analytic.first_order import Analysis
from crashsim.analytic.proofs import Provable
from crashsim.analytic.questions import answers
from crashsim.coordinates.placement import DEPENDENT
from crashsim.errors import Interrupted, NotApplicableError
from crashsim.faults import lacking_for_tails
from crashsim.results.estimate import Answer
from crashsim.results.estimates import Estimates
from crashsim.sampling.enumeration import ExactDistribution
from crashsim.sampling.monte_carlo import DEFAULT_SAMPLES, MonteCarlo
from crashsim.scoring.method import Found, Method, guarded
from crashsim.scoring.methods import METHODS
from crashsim.scoring.named import of_named
from crashsim.scoring.planning.plan import SAMPLING, Plan
from crashsim.scoring.request import Progress, Request
from crashsim.scoring.shared import NO_SURROGATE, Given, Shared, no_class, steps_of
from crashsim.scoring.timing import timing
from crashsim.space import FaultSpace
from crashsim.working import Steps, listening

if TYPE_CHECKING:
    from crashsim.chip.spiking import ChipRun

INTERRUPTED = "interrupted before it was finished"
_NO_METRICS = "a metric of your own is computed by exact and monte-carlo: name one of them"
_SILENT = "it returned no estimates"


@dataclass
class Results:
    """What the methods found.

    Attributes:
        analysis: estimates and formulas of all methods, and the linearisation at hand.
        found: what each finished method found, in the order in which they ran.
        proof: the space as the theory package sees it, where proofs were asked for.
        answers: to the questions of a target, where one was given.
        skipped: methods that did not apply, with the reason.
        timings: seconds by method, and of what serves them all.
        interrupted: what ended the work before its end, where something did.
    """

    analysis: Analysis = field(default_factory=Analysis)
    found: dict[str, Found] = field(default_factory=dict)
    proof: Provable | None = None
    answers: list[Answer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    interrupted: KeyboardInterrupt | None = None

    @property
    def exact(self) -> ExactDistribution | None:
        return cast(ExactDistribution | None, self._result("exact"))

    @property
    def sampled(self) -> MonteCarlo | None:
        return cast(MonteCarlo | None, self._result("monte-carlo"))

    @property
    def chip(self) -> ChipRun | None:
        return cast("ChipRun | None", self._result("hardware"))

    def _result(self, method: str) -> object:
        found = self.found.get(method)
        return None if found is None else found.result

    def keep(self, method: str, found: Found) -> None:
        """Adds what a method found, all of it or nothing."""
        estimates = Estimates() + found.estimates
        self.found[method] = found
        self.analysis.estimates += estimates
        if found.formula is not None:
            self.analysis.formulas[method] = found.formula
        if not estimates:
            self.skipped[method] = _SILENT

    def linearise(self, shared: Shared) -> None:
        """Takes the surrogate, shares and covariance at hand."""
        linear = shared.linearised
        self.analysis.surrogate, self.analysis.source = linear.surrogate, linear.source
        self.analysis.shares, self.analysis.covariance = linear.shares, linear.covariance
        self.analysis.by_value = linear.by_value
        self.proof = shared.made("proof")


def compute(space: FaultSpace, plan: Plan, asked: Request, progress: Progress) -> Results:
    """All methods of the plan. Theory works in double precision, Monte Carlo in the model's own.

    An interrupt ends it: what was finished is returned, ``results.interrupted`` set, and the other
    methods are among those skipped.

    Raises:
        KeyboardInterrupt: nothing was finished.
    """
    results = Results(skipped=dict(plan.skipped))
    names = frozenset(plan.methods)
    shared = Shared(space, asked, names, results.timings, progress, plan.size)
    apart = shared.of_named is not None  # what is asked of named outputs has results of its own
    needed = {name for m in plan.chosen if not (apart and m.by_output) for name in m.needs}
    try:
        for method in plan.chosen:
            _run(method, needed, plan, shared, results, progress)
        results.linearise(shared)
        _answer(shared, results, progress)
    except KeyboardInterrupt as stop:
        if not results.analysis.estimates:
            raise
        told = results.found.keys() | results.skipped.keys()
        results.skipped |= {m: INTERRUPTED for m in plan.methods if m not in told}
        results.linearise(shared)
        results.interrupted = stop
    if space.K == 1:
        results.skipped["class-change"] = no_class(space)
    if not {"exact", "monte-carlo"} & set(plan.methods):
        results.skipped |= {metric.name: _NO_METRICS for metric in asked.metrics.metrics}
    return results


def _run(
    method: Method,
    needed: set[str],
    plan: Plan,
    shared: Shared,
    results: Results,
    progress: Progress,
) -> None:
    """Runs a method, after what it needs; of one that does not apply, keeps the reason."""
    name, named = method.name, shared.asked.outputs or ()
    told = _steps(method, plan, progress)
    some = shared.of_named if method.by_output else None
    shared = some or shared
    given = Given(
        shared.space,
        shared.asked,
        method.size_of(plan.size),
        told.count,
        name,
        method.needs,
        shared,
    )
    try:
        if reason := method.inapplicable(shared.space):
            raise NotApplicableError(reason)
        for need in method.needs:
            shared.take(need)
        for use in needed & set(method.uses):
            shared.offer(use)
        told.begin()
        with timing(results.timings, name), listening(told.work):
            found = method.compute(given) if method in METHODS else guarded(method, given)
        if some is not None:
            found = replace(found, estimates=of_named(found.estimates, sorted(named)))
        told.end()
    except NotApplicableError as error:
        results.skipped[name] = str(error)
        return
    except Interrupted as stop:
        if isinstance(stop.partial, Found):
            results.keep(name, stop.partial)
        raise
    results.keep(name, found)


def _steps(method: Method, plan: Plan, progress: Progress) -> Steps:
    """A method's progress: Monte Carlo's in samples, others' in hundredths of what they cost."""
    name, size = method.name, plan.size
    if name == SAMPLING:
        samples = plan.samples or DEFAULT_SAMPLES
        return Steps(lambda done, total: progress(name, done, total), samples, size.B)
    return steps_of(name, plan.cost_of(method), size, progress)


def _answer(shared: Shared, results: Results, progress: Progress) -> None:
    """The answers to a target's questions, from the surrogate at hand."""
    epsilon, delta = shared.asked.epsilon, shared.asked.delta
    if epsilon is None or delta is None:
        return
    if results.analysis.surrogate is None:
        results.skipped["answers"] = DEPENDENT if shared.space.counts else NO_SURROGATE
        return
    if lacking := lacking_for_tails(p.fault for p in shared.space.placements):
        results.skipped["answers"] = lacking
        return
    wide = shared.take("wide")
    progress("answers", 0, 1)
    with timing(results.timings, "answers"):
        found = answers(wide, results.analysis, epsilon, delta, shared.asked.outputs)
    progress("answers", 1, 1)
    results.answers = found
