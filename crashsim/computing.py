"""Carries out a plan: every method of a score, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crashsim import analytic, proofs, second_order
from crashsim.certified import certified_sampling
from crashsim.enumeration import ExactDistribution, enumerate_space
from crashsim.errors import Interrupted, NotApplicableError
from crashsim.layer_bounds import layer_bounds
from crashsim.montecarlo import MonteCarlo, monte_carlo
from crashsim.plan import PROOFS, Plan
from crashsim.questions import Answer, answers
from crashsim.rare import importance_sampling
from crashsim.space import FaultSpace

if TYPE_CHECKING:
    from crashsim_hardware import Chip

    from crashsim.spiking import ChipRun

_CERTIFIED = 4  # inputs that get a certificate: each bound takes about a second
INTERRUPTED = "interrupted before it was finished"
_NO_EPSILON = "give epsilon: it bounds P(|Delta| >= epsilon)"

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
        timings: seconds by method.
        interrupted: what ended the work before its end, where something did.
    """

    analysis: analytic.Analysis = field(default_factory=analytic.Analysis)
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
            confidence=confidence, progress=progress, chip=chip,
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
) -> None:
    """Adds what the methods find to the results, one after the other."""
    analysis, wanted = results.analysis, set(plan.methods)
    wide = analytic.double_precision(space)

    def timed(name: str, work: Callable[[], T]) -> T:
        before = {f.name: copy(getattr(analysis, f.name)) for f in fields(analysis)}
        try:
            progress(name, 0, 1)
            start = time.perf_counter()
            found = work()
            results.timings[name] = time.perf_counter() - start
        except KeyboardInterrupt:  # nothing is left of a method that was not finished
            vars(analysis).update(before)
            raise
        progress(name, 1, 1)
        return found

    if "exact" in wanted:
        results.exact = timed("exact", lambda: enumerate_space(space))
        analysis.estimates += results.exact.estimates(epsilon)
    if wanted & {"norm", "absolute"}:
        try:
            bounds = timed("layer bounds", lambda: layer_bounds(space))
            analysis.estimates += [e for e in bounds if e.method in wanted]
        except NotApplicableError as error:
            results.skipped |= {m: str(error) for m in ("norm", "absolute") if m in wanted}
    for name, method in (
        ("taylor", analytic.taylor),
        ("single", analytic.single),
        ("pairs", second_order.pairs),
        ("mean-point-curvature", second_order.mean_point_curvature),
    ):
        if name not in wanted:
            continue
        try:
            timed(name, lambda method=method: method(wide, analysis))  # type: ignore[misc]
        except NotApplicableError as error:
            results.skipped[name] = str(error)
    # Tails, shares and proofs need a surrogate: the differences' if computed, else the gradient's.
    tails = wanted & set(analytic.TAIL_METHODS)
    needed = wanted & {*tails, *PROOFS, "importance-sampling"} and "mean-point-single" not in wanted
    if needed or "mean-point-taylor" in wanted:
        timed("mean-point-taylor", lambda: analytic.mean_point_taylor(wide, analysis))
        if "mean-point-taylor" not in wanted:
            analysis.estimates = [e for e in analysis.estimates if e.method != "mean-point-taylor"]
    if "mean-point-single" in wanted:
        timed("mean-point-single", lambda: analytic.mean_point_single(wide, analysis))
    if tails:
        timed("tails", lambda: analytic.tails(wide, analysis, tails, epsilon))
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
        from crashsim.spiking import run_chip

        results.chip = timed(
            "hardware", lambda: run_chip(space, seed=seed, confidence=confidence, chip=chip)
        )
        analysis.estimates += results.chip.estimates
    if epsilon is not None and delta is not None:
        results.answers = timed("answers", lambda: answers(wide, analysis, epsilon, delta))
    if space.K == 1:
        results.skipped["class-change"] = "the model has a single output, so no class to change"


def _sampled(space: FaultSpace, **options: Any) -> tuple[MonteCarlo, Interrupted | None]:
    """What Monte Carlo found, and what interrupted it, if something did."""
    try:
        return monte_carlo(space, **options), None
    except Interrupted as stop:
        return stop.partial, stop


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
    assert surrogate is not None
    try:
        results.proof = proof = proofs.provable(space)
    except NotApplicableError as error:
        results.skipped |= {m: str(error) for m in PROOFS if m in wanted}
        return
    if "remainder" in wanted:
        try:
            shift = analytic.shift_to(wide, space.mean_point)
            analysis.estimates += proofs.remainders(space, proof, shift, surrogate, analysis.source)
        except NotApplicableError as error:
            results.skipped["remainder"] = str(error)
    output = int(np.argmax(surrogate.variance.mean(0)))
    if "linear-exact" in wanted:
        if epsilon is None:
            results.skipped["linear-exact"] = _NO_EPSILON
        elif proof.is_linear:
            analysis.estimates += proofs.linear_tails(surrogate, epsilon, output)
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
