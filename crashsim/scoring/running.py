"""Carries out a plan: every method of a score, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crashsim.analytic import first_order, proofs, second_order
from crashsim.analytic.layer_bounds import layer_bounds
from crashsim.analytic.questions import answers
from crashsim.errors import Interrupted, NotApplicableError
from crashsim.metrics import AskedMetrics
from crashsim.results.estimate import Answer
from crashsim.sampling.certified import certified_sampling
from crashsim.sampling.enumeration import ExactDistribution, enumerate_space
from crashsim.sampling.importance import importance_sampling
from crashsim.sampling.monte_carlo import MonteCarlo, monte_carlo
from crashsim.scoring.plan import PROOFS, Plan
from crashsim.scoring.timing import timing
from crashsim.space import FaultSpace

if TYPE_CHECKING:
    from crashsim_hardware import Chip

    from crashsim.chip.spiking import ChipRun

_CERTIFIED = 4  # inputs that get a certificate: each bound takes about a second
INTERRUPTED = "interrupted before it was finished"
_NO_EPSILON = "give epsilon: it bounds P(|Delta| >= epsilon)"
_NO_SURROGATE = "needs a linear surrogate of Delta, and none is to be had"
_NO_METRICS = "a metric of your own is computed by exact and monte-carlo: name one of them"
_NOTHING = "nothing is random or nothing reaches the output, so there is nothing to say"

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass
class Results:
    """What the methods found.

    Attributes:
        analysis: estimates of all methods, with what theory leaves for shares and pictures.
        exact, sampled, chip: the results of their methods, None where they did not run.
        proof: the space as the theory package sees it, where proofs were asked for.
        answers: to the questions of a target, where one was given.
        skipped: methods that did not apply, with the reason.
        timings: seconds by method, and of what serves them all.
        interrupted: what ended the work before its end, where something did.
    """

    analysis: first_order.Analysis = field(default_factory=first_order.Analysis)
    exact: ExactDistribution | None = None
    sampled: MonteCarlo | None = None
    chip: ChipRun | None = None
    answers: list[Answer] = field(default_factory=list)
    proof: proofs.Provable | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    interrupted: KeyboardInterrupt | None = None


def compute(
    space: FaultSpace,
    plan: Plan,
    *,
    epsilon: float | None,
    delta: float | None,
    rel_width: float | None,
    seed: int,
    confidence: float,
    progress: Progress,
    chip: Chip | None,
    asked: AskedMetrics,
) -> Results:
    """All methods of the plan. Theory works in double precision, Monte Carlo in the model's own.

    An interrupt ends it: what was finished is returned, ``results.interrupted`` set, and the other
    methods are among those skipped.

    Raises:
        KeyboardInterrupt: nothing was finished.
    """
    results = Results(skipped=dict(plan.skipped))
    try:
        _run(
            results, space, plan, epsilon=epsilon, delta=delta, rel_width=rel_width, seed=seed,
            confidence=confidence, progress=progress, chip=chip, asked=asked,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        finished = {e.method for e in results.analysis.estimates}
        if not finished:
            raise
        missing = [m for m in plan.methods if m not in finished | results.skipped.keys()]
        results.skipped |= dict.fromkeys(missing, INTERRUPTED)
        results.interrupted = stop
    return results


def _run(
    results: Results,
    space: FaultSpace,
    plan: Plan,
    *,
    epsilon: float | None,
    delta: float | None,
    rel_width: float | None,
    seed: int,
    confidence: float,
    progress: Progress,
    chip: Chip | None,
    asked: AskedMetrics,
) -> None:
    """Adds what the methods find to the results, one after the other."""
    analysis, wanted = results.analysis, set(plan.methods)
    with timing(results.timings, "double precision"):
        wide = first_order.double_precision(space)

    def timed(name: str, work: Callable[[], T]) -> T:
        before = {f.name: copy(getattr(analysis, f.name)) for f in fields(analysis)}
        try:
            progress(name, 0, 1)
            with timing(results.timings, name):
                found = work()
        except KeyboardInterrupt:  # nothing is left of a method that was not finished
            vars(analysis).update(before)
            raise
        progress(name, 1, 1)
        return found

    def curvature(of: FaultSpace, found: first_order.Analysis) -> None:
        second_order.mean_point_curvature(of, found, seed=seed, confidence=confidence)

    if "exact" in wanted:
        results.exact = timed("exact", lambda: enumerate_space(space))
        analysis.estimates += results.exact.estimates(epsilon, asked)
    if wanted & {"norm", "absolute"}:
        try:
            bounds = timed("layer bounds", lambda: layer_bounds(wide))
            analysis.estimates += [e for e in bounds if e.method in wanted]
        except NotApplicableError as error:
            results.skipped |= {m: str(error) for m in ("norm", "absolute") if m in wanted}
    for name, method in (
        ("taylor", first_order.taylor),
        ("single", first_order.single),
        ("pairs", second_order.pairs),
        ("mean-point-curvature", curvature),
    ):
        if name not in wanted:
            continue
        try:
            timed(name, lambda method=method: method(wide, analysis))  # type: ignore[misc]
        except NotApplicableError as error:
            results.skipped[name] = str(error)
    _linearise(wide, wanted, results, timed)
    # What is left of these needs a surrogate, and has one.
    tails = wanted & set(first_order.TAIL_METHODS) - results.skipped.keys()
    if tails:
        timed("tails", lambda: first_order.tails(wide, analysis, tails, epsilon))
    if wanted & set(PROOFS):
        timed("proofs", lambda: _prove(space, wide, wanted, epsilon, seed, confidence, results))
    if "monte-carlo" in wanted:
        control = analysis.surrogate if plan.control else None
        results.sampled, stop = timed(
            "monte-carlo",
            lambda: _sampled(
                space,
                epsilon=epsilon,
                samples=plan.samples,
                rel_width=rel_width,
                seed=seed,
                confidence=confidence,
                progress=lambda done, total: progress("monte-carlo", done, total),
                control=control,
                few_exact=plan.few_exact,
                targets=asked.targets,
                metrics=asked.metrics,
            ),
        )
        analysis.estimates += results.sampled.estimates
        if stop is not None:
            raise stop
    if "importance-sampling" in wanted and analysis.surrogate is not None:
        output = int(np.argmax(analysis.surrogate.variance.mean(0)))
        analysis.estimates += timed(
            "importance-sampling",
            lambda: importance_sampling(
                space, analysis, epsilon=epsilon, output=output, seed=seed, confidence=confidence
            ),
        )
    if "hardware" in wanted:
        from crashsim.chip.spiking import run_chip

        results.chip = timed(
            "hardware", lambda: run_chip(space, seed=seed, confidence=confidence, chip=chip)
        )
        analysis.estimates += results.chip.estimates
    if epsilon is not None and delta is not None:
        if analysis.surrogate is None:
            results.skipped["answers"] = _NO_SURROGATE
        results.answers = timed("answers", lambda: answers(wide, analysis, epsilon, delta))
    if space.K == 1:
        results.skipped["class-change"] = "the model has a single output, so no class to change"
    _account_for(plan.methods, epsilon, results)
    if not wanted & {"exact", "monte-carlo"}:
        results.skipped |= {metric.name: _NO_METRICS for metric in asked.metrics}


def _sampled(space: FaultSpace, **options: Any) -> tuple[MonteCarlo, Interrupted | None]:
    """What Monte Carlo found, and what interrupted it, if something did."""
    try:
        return monte_carlo(space, **options), None
    except Interrupted as stop:
        return stop.partial, stop


def _linearise(
    wide: FaultSpace,
    wanted: set[str],
    results: Results,
    timed: Callable[[str, Callable[[], None]], None],
) -> None:
    """The mean-point methods, and the surrogate that tails, shares and rare events build on.

    It has the differences' gains where these are computed, else the gradient's; where the model has
    no derivatives, the differences are computed for the surrogate alone. Without either, what needs
    one is skipped.
    """
    analysis = results.analysis
    needing = wanted & {*first_order.TAIL_METHODS, *PROOFS, "importance-sampling"}
    crashes = all(p.fault.is_bernoulli for p in wide.placements)
    by_differences = "mean-point-single" in wanted and crashes

    def attempt(
        name: str, method: Callable[[FaultSpace, first_order.Analysis], None]
    ) -> str | None:
        """Runs a method and keeps its numbers if wanted; why it does not apply, or None."""
        before = len(analysis.estimates)
        try:
            timed(name, lambda: method(wide, analysis))
        except NotApplicableError as error:
            return str(error)
        if name not in wanted:
            del analysis.estimates[before:]
            analysis.formulas.pop(name, None)
        return None

    reason = None
    if "mean-point-taylor" in wanted or (needing and not by_differences):
        reason = attempt("mean-point-taylor", first_order.mean_point_taylor)
        if reason and "mean-point-taylor" in wanted:
            results.skipped["mean-point-taylor"] = reason
    if "mean-point-single" in wanted or (needing and analysis.surrogate is None):
        told = attempt("mean-point-single", first_order.mean_point_single)
        if told and "mean-point-single" in wanted:
            results.skipped["mean-point-single"] = told
        reason = told or reason
    if analysis.surrogate is None:
        why = f"{_NO_SURROGATE}: {reason}" if reason else _NO_SURROGATE
        results.skipped |= dict.fromkeys(sorted(needing - set(PROOFS)), why)


def _account_for(methods: tuple[str, ...], epsilon: float | None, results: Results) -> None:
    """Every method of the plan is among the estimates or says why it is not."""
    told = {e.method for e in results.analysis.estimates} | results.skipped.keys()
    for method in methods:
        if method not in told:
            results.skipped[method] = _NO_EPSILON if epsilon is None else _NOTHING


def _prove(
    space: FaultSpace,
    wide: FaultSpace,
    wanted: set[str],
    epsilon: float | None,
    seed: int,
    confidence: float,
    results: Results,
) -> None:
    """The methods that prove something, as far as they apply."""
    analysis = results.analysis
    surrogate = analysis.surrogate
    try:
        results.proof = proof = proofs.provable(space)
    except NotApplicableError as error:
        results.skipped |= {m: str(error) for m in PROOFS if m in wanted}
        return
    if "remainder" in wanted:
        try:
            analysis.estimates += proofs.remainders(space, proof)
        except NotApplicableError as error:
            results.skipped["remainder"] = str(error)
    output = 0 if surrogate is None else int(np.argmax(surrogate.variance.mean(0)))
    if "linear-exact" in wanted:
        if epsilon is None:
            results.skipped["linear-exact"] = _NO_EPSILON
        elif proof.is_linear:
            analysis.estimates += proofs.linear_tails(proof, epsilon, output)
        else:
            results.skipped["linear-exact"] = "the output is not linear in the fault coordinates"
    certified = wanted & {"certificate", "certified-sampling"}
    if epsilon is None and space.K == 1:
        results.skipped |= dict.fromkeys(sorted(certified), _NO_EPSILON)
    elif certified:
        inputs = range(min(space.B, _CERTIFIED))
        found = proofs.certify(space, proof, epsilon, output, inputs)
        if "certificate" in wanted:
            analysis.estimates += proofs.certificates(found, epsilon, output)
        if "certified-sampling" in wanted:
            analysis.estimates += certified_sampling(
                wide, found, epsilon, output, seed=seed, confidence=confidence
            )
