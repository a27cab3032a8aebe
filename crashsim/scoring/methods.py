"""The table of methods: every way in which crashsim computes numbers of a score, in one tuple.

They run in the order of the table, and reports show them in it. A new method is a module of its own
in ``analytic/`` or ``sampling/``, and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from crashsim_theory import TheoryError

from crashsim.analytic import first_order, proofs, second_order
from crashsim.analytic.first_order import Analysis, TailMethod
from crashsim.analytic.gains import are_dense
from crashsim.analytic.sampled_singles import SAMPLE, SingleMethod, sampled_singles
from crashsim.analytic.surrogates import rivals, surrogate_law
from crashsim.errors import Interrupted, NotApplicableError
from crashsim.faults import lacking_for_tails
from crashsim.results.estimate import Estimate
from crashsim.results.estimates import Estimates
from crashsim.sampling.certified import certified_sampling
from crashsim.sampling.chips.drawn import probability_of_any
from crashsim.sampling.chips.run import ChipRun, chip_metrics
from crashsim.sampling.enumeration import enumerate_space, outcomes_of
from crashsim.sampling.monte_carlo import MonteCarlo, monte_carlo
from crashsim.sampling.tilted.importance import importance_sampling
from crashsim.sampling.words.importance import SAMPLES as WORD_IMPORTANCE_SAMPLES
from crashsim.sampling.words.importance import word_importance
from crashsim.sampling.words.strata import word_strata
from crashsim.scoring.method import Found, Method
from crashsim.scoring.planning.costs import (
    operations_of_rare_events,
    operations_of_tails,
    passes_of_rare_events,
    strikes_of_words,
)
from crashsim.scoring.planning.size import (
    BUDGET,
    EXTRA,
    GRADIENT_VALUES,
    UNDER_GUARDS,
    Size,
    is_enumerated,
    no_surrogate,
    singles_sampled,
    too_many_differences,
    too_many_gradients,
    too_many_singles,
)
from crashsim.scoring.shared import NO_EPSILON, Given
from crashsim.scoring.variance_reduction import (
    chosen_chips,
    chosen_samples,
    is_controlled,
    is_stratified,
)
from crashsim.space import NO_MEAN_POINT, FaultSpace

_NOTHING = "nothing is random or nothing reaches the output, so there is nothing to say"


def _exact(given: Given) -> Found:
    found = enumerate_space(given.space)
    return Found(found.estimates(given.asked.epsilon, given.asked.metrics), result=found)


def _too_many_patterns(size: Size) -> str | None:
    if is_enumerated(size):
        return None
    n = size.N
    chosen = [f"{c.struck} of {c.size}" for c in size.space.counts]
    independent = n - sum(c.size for c in size.space.counts)
    how = " times ".join([*([f"2^{independent}"] if independent else []), *chosen])
    return f"{n} coordinates: {how} fault patterns are too many to sum over"


def _layer_bound(name: str, given: Given) -> Estimates:
    return given.layer_bounds.by(name)


def _taylor(given: Given) -> Found:
    found = Analysis()
    space = given.wide if are_dense(given.space) else given.space
    first_order.taylor(space, found, given.asked.memory)
    return _of_analysis(found)


def _single(given: Given) -> Found:
    if count := singles_sampled(given.size):
        return _sampled(given, "single", count)
    return _expansion(first_order.single, given)


def _mean_point_single(given: Given) -> Found:
    if given.all_singles is not None:
        return _of_analysis(given.all_singles)
    return _sampled(given, "mean-point-single", singles_sampled(given.size) or SAMPLE)


def _sampled(given: Given, method: SingleMethod, count: int) -> Found:
    asked = given.asked
    return Found(
        sampled_singles(
            given.space,
            method,
            count=count,
            seed=asked.seed,
            confidence=asked.confidence,
            memory=asked.memory,
        )
    )


def _expansion(work: Callable[[FaultSpace, Analysis], None], given: Given) -> Found:
    """First or second order at the clean network."""
    found = Analysis()
    work(given.wide, found)
    return _of_analysis(found)


def _of_analysis(found: Analysis) -> Found:
    return Found(found.estimates, formula=next(iter(found.formulas.values()), None))


def _mean_point_taylor(given: Given) -> Found:
    return _of_analysis(given.gradients)


def _mean_point_curvature(given: Given) -> Found:
    found, asked = Analysis(), given.asked
    second_order.mean_point_curvature(
        given.wide, found, seed=asked.seed, confidence=asked.confidence
    )
    return _of_analysis(found)


def _not_few_crashes(size: Size) -> str | None:
    space = size.space
    if space.N > second_order.MAX_PAIRED or not all(p.fault.is_binary for p in space.placements):
        return f"for at most {second_order.MAX_PAIRED} crashes; there are {space.N} coordinates"
    return None


def _hessian_columns(size: Size) -> int:
    return min(size.N, second_order.MAX_EXACT_HESSIAN)


def _too_large_a_hessian(size: Size) -> str | None:
    if size.gains * _hessian_columns(size) > 4 * GRADIENT_VALUES:
        return f"{size.N} coordinates: their Hessian does not fit in memory"
    return None if size.space.has_derivatives else size.space.why_no_derivatives


def _tails(name: TailMethod, given: Given) -> Estimates:
    if given.asked.epsilon is None and given.margins is None:
        raise NotApplicableError(NO_EPSILON)
    if name != "chebyshev":
        _check_laws(given)
    struck = probability_of_any(given.space.placements)
    return first_order.tails(name, given.linear, given.margins, given.asked.epsilon, struck)


def _nearest_rivals(given: Given) -> Estimates:
    return rivals.nearest_rivals(given.nearest_margins, given.asked.seed)


def _where_all_outputs_serve(size: Size) -> str | None:
    if no_surrogate(size):
        return None
    return "saddlepoint takes every rival; ask for it as +nearest-rivals"


def _check_laws(given: Given, tilted: bool = False) -> None:
    """NotApplicableError for a law without what tails (or tilted samples) take of it."""
    faults = [p.fault for p in given.space.placements]
    if lacking := lacking_for_tails(faults, tilted):
        raise NotApplicableError(lacking)


def _surrogate_law(given: Given) -> Estimates:
    asked, linear = given.asked, given.linear
    if asked.epsilon is None and given.margins is None:
        raise NotApplicableError(NO_EPSILON)
    note = f"exact law of {first_order.SURROGATE} ({linear.source})"
    return surrogate_law.law_estimates(
        "surrogate-law",
        given.wide,
        given.surrogate,
        given.margins,
        asked.epsilon,
        asked.seed,
        note,
        given.progress,
    )


def _single_law(given: Given) -> Estimates:
    space, asked = given.wide, given.asked
    if asked.epsilon is None and not space.has_classes:
        raise NotApplicableError(NO_EPSILON)
    surrogate = surrogate_law.single_changes(space)
    return surrogate_law.law_estimates(
        "single-law",
        space,
        surrogate,
        surrogate_law.single_margins(space, surrogate),
        asked.epsilon,
        asked.seed,
        "exact law of the sum of single-fault changes",
        given.progress,
    )


def _where_derivatives_serve(size: Size) -> str | None:
    if any(p.fault.is_guarded for p in size.space.placements):
        return UNDER_GUARDS
    if reason := surrogate_law.why_no_single_changes(size.space):
        return reason
    if size.space.has_derivatives:
        return "surrogate-law serves models with derivatives; ask for it as +single-law"
    return too_many_differences(size)


def _word_strata(given: Given) -> list[Estimate]:
    return word_strata(given.space, given.asked.seed, strikes_of_words(given.size))


def _word_importance(given: Given) -> list[Estimate]:
    return word_importance(given.space, given.asked.seed, given.asked.confidence)


def _where_bits_add_up(size: Size) -> str | None:
    if size.space.strikes_words:
        return None
    return "for bits of words that do not add up, such as an exponent's"


def _cost_of_law(size: Size) -> float:
    return surrogate_law.law_operations(size.N, 2.0 * size.B * size.K)


def _without_derivatives(size: Size) -> str | None:
    if size.space.has_derivatives:
        return None
    serves = "word-strata" if size.space.strikes_words else "single-law"
    return f"{size.space.why_no_derivatives}; {serves} serves there"


def _remainder(given: Given) -> Estimates:
    return proofs.remainders(given.space, given.proof)


def _linear_exact(given: Given) -> list[Estimate]:
    if given.asked.epsilon is None:
        raise NotApplicableError(NO_EPSILON)
    if not given.proof.is_linear:
        raise NotApplicableError("the output is not linear in the fault coordinates")
    found: list[Estimate] = []
    for output in given.outputs:
        found += proofs.linear_tails(given.proof, given.asked.epsilon, output)
    return found


def _certificate(given: Given) -> list[Estimate]:
    found: list[Estimate] = []
    for output, certified in given.certificates.items():
        found += proofs.certificates(certified, given.asked.epsilon, output)
    return found


def _certified_sampling(given: Given) -> list[Estimate]:
    asked = given.asked
    found: list[Estimate] = []
    for output, certified in given.certificates.items():
        found += certified_sampling(
            given.wide,
            certified,
            asked.epsilon,
            output,
            seed=asked.seed,
            confidence=asked.confidence,
        )
    return found


def _monte_carlo(given: Given) -> Found:
    asked = given.asked
    samples = chosen_samples(given.size, asked.samples, asked.rel_width)
    control = given.linear_at_hand
    if control is not None and not is_controlled(given.size, samples):
        control = None

    def found(run: MonteCarlo) -> Found:
        return Found(run.estimates, result=run)

    try:
        run = monte_carlo(
            given.space,
            epsilon=asked.epsilon,
            samples=samples,
            rel_width=asked.rel_width,
            seed=asked.seed,
            confidence=asked.confidence,
            progress=given.progress,
            control=control,
            few_exact=is_stratified(given.size, samples),
            targets=asked.metrics.targets,
            metrics=asked.metrics.metrics,
            outputs=asked.outputs,
            executor=asked.executor,
            store=asked.store,
        )
    except Interrupted as stop:
        raise Interrupted(str(stop), found(stop.partial)) from stop
    return judged(given, run)


def judged(given: Given, run: MonteCarlo) -> Found:
    """Adds what is asked of whole chips to how far outputs move, in the place of averages of it.

    Raises:
        Interrupted: with the chips that were finished, if there are any.
    """
    judging = given.asked.judging
    if judging is None:
        return Found(run.estimates, result=run)
    names = {metric.name for metric in judging.asked.metrics}

    def found(chips: ChipRun) -> Found:
        kept = run.estimates.without_averages(names)
        return Found(kept + chips.estimates(), result=replace(run, chips=chips))

    try:
        return found(
            chip_metrics(
                given.space,
                judging.examples,
                metrics=judging.asked,
                samples=chosen_chips(given.size, judging),
                rel_width=judging.widths,
                virtual=judging.virtual,
                seed=given.asked.seed,
                confidence=given.asked.confidence,
                progress=given.progress,
                executor=given.asked.executor,
                store=given.asked.store,
            )
        )
    except Interrupted as stop:
        raise Interrupted(str(stop), found(stop.partial)) from stop
    except KeyboardInterrupt as stop:
        message = "interrupted before a chip was finished"
        raise Interrupted(message, Found(run.estimates, result=run)) from stop


def _importance_sampling(given: Given) -> Iterable[Estimate]:
    _check_laws(given, tilted=True)
    asked = given.asked
    try:
        found: list[Estimate] = []
        for i, output in enumerate(given.outputs):
            found += importance_sampling(
                given.space,
                given.linear,
                epsilon=asked.epsilon,
                output=output,
                class_changes=i == 0 and given.space.has_classes,
                seed=asked.seed,
                confidence=asked.confidence,
                passes=passes_of_rare_events(given.size),
            )
    except TheoryError as error:  # a law that cannot be drawn under as strong a tilt
        raise NotApplicableError(str(error)) from error
    if not found:
        is_asked = asked.epsilon is not None or given.space.has_classes
        raise NotApplicableError(_NOTHING if is_asked else NO_EPSILON)
    return found


def _exact_is_at_hand(size: Size) -> str | None:
    return "the exact sum is at hand" if is_enumerated(size) else None


def _hardware(given: Given) -> Found:
    from crashsim.chip.spiking import run_chip

    asked = given.asked
    run = run_chip(
        given.space, seed=asked.seed, confidence=asked.confidence, chip=asked.chip, all_inputs=True
    )
    return Found(run.estimates, result=run)


def _operations_on_the_chip(size: Size) -> float:
    from crashsim.chip.conversion import chip_of
    from crashsim.chip.plan import computed_operations, plan_run
    from crashsim.model.layers import UnsupportedLayerError

    try:
        chip, _ = chip_of(size.space)
    except (NotApplicableError, UnsupportedLayerError):  # the run will say so
        return 0.0
    return computed_operations(chip, plan_run(chip, size.B, None, keeps_inputs=True))


def _on_request(reason: str) -> Callable[[Size], str]:
    return lambda size: reason


_PROOFS = _on_request("ask for proofs with --proofs (proofs=True)")

METHODS: tuple[Method, ...] = (
    Method(
        "exact",
        "sum over all fault patterns",
        _exact,
        "exact",
        refuses=_too_many_patterns,
        cost=lambda size: outcomes_of(size.space) * size.operations,
        most=float("inf"),  # it is refused by the number of coordinates alone
        dependent=True,
        rank=0,
        rare=0,
    ),
    Method(
        "norm",
        "product of layer norms (paper b1)",
        partial(_layer_bound, "norm"),
        "bound",
        needs=("layer_bounds",),
        rank=3,
    ),
    Method(
        "absolute",
        "product of absolute weights (paper b2)",
        partial(_layer_bound, "absolute"),
        "bound",
        needs=("layer_bounds",),
        rank=2,
    ),
    Method(
        "taylor",
        "first order at the clean network (paper b3)",
        _taylor,
        "estimate",
        needs=("wide",),
        refuses=too_many_gradients,
        moments_only=True,
        dependent=True,
        rank=6,
    ),
    Method(
        "single",
        "one fault at a time (paper b4)",
        _single,
        "estimate",
        needs=("wide",),
        refuses=too_many_singles,
        moments_only=True,
        dependent=True,
        rank=5,
    ),
    Method(
        "pairs",
        "all single faults and all pairs",
        partial(_expansion, second_order.pairs),
        "estimate",
        needs=("wide",),
        refuses=_not_few_crashes,
        cost=lambda size: size.N**2 / 2 * size.operations,
        most=EXTRA,
        dear="a forward pass for every pair of faults takes longer",
        rank=None,
    ),
    Method(
        "mean-point-taylor",
        "first order at the mean point",
        _mean_point_taylor,
        "estimate",
        needs=("gradients",),
        moments_only=True,
        dependent=True,
        rank=1,
    ),
    Method(
        "mean-point-curvature",
        "second order at the mean point",
        _mean_point_curvature,
        "estimate",
        needs=("wide",),
        refuses=_too_large_a_hessian,
        cost=lambda size: 4 * size.K * _hessian_columns(size) * size.operations,
        most=EXTRA,
        dear="the Hessian takes longer",
        moments_only=True,
        rank=None,
    ),
    Method(
        "mean-point-single",
        "one fault at a time, around the mean point",
        _mean_point_single,
        "estimate",
        needs=("all_singles",),
        refuses=lambda size: NO_MEAN_POINT if size.space.strikes_words else None,
        moments_only=True,
        dependent=True,
        rank=0,
    ),
    Method(
        "chebyshev",
        "the paper's tail bound, from mean and variance",
        partial(_tails, "chebyshev"),
        "bound",
        needs=("surrogate", "margins"),
        moments_only=True,
        by_output=True,
        rank=1,
    ),
    Method(
        "chernoff",
        "tail bound from the cumulant generating function",
        partial(_tails, "chernoff"),
        "bound",
        needs=("surrogate", "margins"),
        cost=operations_of_tails,
        dear="a tilt for every tail and margin takes longer",
        by_output=True,
        rank=0,
        rare=7,
    ),
    Method(
        "saddlepoint",
        "Lugannani-Rice tail estimate",
        partial(_tails, "saddlepoint"),
        "estimate",
        needs=("surrogate", "margins"),
        cost=operations_of_tails,
        dear="a tilt for every tail and margin takes longer",
        by_output=True,
        rank=4,
        rare=6,
    ),
    Method(
        "nearest-rivals",
        "class changes to the nearest rivals, by the exact law of their margins",
        _nearest_rivals,
        "estimate",
        needs=("nearest_margins",),
        refuses=_where_all_outputs_serve,
        rank=9,
        rare=8,
    ),
    Method(
        "surrogate-law",
        "exact law of the linear surrogate",
        _surrogate_law,
        "estimate",
        needs=("wide", "surrogate", "margins"),
        refuses=_without_derivatives,
        cost=_cost_of_law,
        dear="the laws of as many outputs take longer",
        by_output=True,
        rank=2,
        rare=5,
    ),
    Method(
        "single-law",
        "exact law of the sum of single-fault changes",
        _single_law,
        "estimate",
        needs=("wide",),
        refuses=_where_derivatives_serve,
        cost=lambda size: _cost_of_law(size) + size.N * size.operations,
        dear="every fault alone, and the laws of as many outputs, take longer",
        by_output=True,
        rank=3,
    ),
    Method(
        "word-strata",
        "single faults of words, in strata of layer and bit",
        _word_strata,
        "estimate",
        refuses=_where_bits_add_up,
        cost=lambda size: strikes_of_words(size) * size.operations,
        dear="striking some thousand single faults takes longer",
        rank=7,
    ),
    Method(
        "remainder",
        "proved interval around the mean-point estimates",
        _remainder,
        "proof",
        needs=("proof", "leading_output"),  # whose surrogate gives the parts' shares beside it
        refuses=_PROOFS,
        option="proofs",
    ),
    Method(
        "linear-exact",
        "exact tail where the output is linear in the faults",
        _linear_exact,
        "proof",
        needs=("proof", "leading_output"),
        refuses=_PROOFS,
        option="proofs",
        rare=1,
    ),
    Method(
        "certificate",
        "proved by linear relaxation and dynamic programming",
        _certificate,
        "proof",
        needs=("leading_output", "certificates"),
        refuses=_PROOFS,
        option="proofs",
        rare=3,
    ),
    Method(
        "certified-sampling",
        "faults injected where a certificate allows harm; exact interval",
        _certified_sampling,
        "statistical",
        needs=("wide", "leading_output", "certificates"),
        refuses=_PROOFS,
        option="proofs",
        rank=2,
        rare=2,
    ),
    Method(
        "monte-carlo",
        "random faults injected",
        _monte_carlo,
        "statistical",
        uses=("gradients", "differences", "surrogate"),
        dependent=True,
        rank=0,
    ),
    Method(
        "importance-sampling",
        "faults injected where they hurt, reweighted",
        _importance_sampling,
        "statistical",
        needs=("surrogate", "leading_output"),
        refuses=_exact_is_at_hand,
        cost=operations_of_rare_events,
        most=BUDGET / 4,
        dear="some thousand samples for each input take longer (give fewer inputs)",
        by_output=True,
        rank=1,
        rare=4,
    ),
    Method(
        "word-importance",
        "bits of words struck where they hurt, reweighted",
        _word_importance,
        "statistical",
        refuses=lambda size: _exact_is_at_hand(size) or _where_bits_add_up(size),
        cost=lambda size: 1.5 * WORD_IMPORTANCE_SAMPLES * size.operations,
        most=BUDGET / 4,
        dear="some thousand samples take longer",
        rank=3,
        rare=4,
    ),
    Method(
        "hardware",
        "the same faults on a spiking chip model",
        _hardware,
        "statistical",
        refuses=_on_request("ask for it with --hardware (hardware=True)"),
        cost=_operations_on_the_chip,
        option="hardware",
        dependent=True,
        rank=None,
    ),
)
