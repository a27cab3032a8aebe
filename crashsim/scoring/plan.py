"""What a score will compute: which methods apply, and which are affordable.

Costs are counted in floating-point operations, not in seconds, so that the plan, and with it the
result, is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from crashsim.analytic.first_order import TAIL_METHODS
from crashsim.analytic.second_order import MAX_EXACT_HESSIAN, MAX_PAIRED
from crashsim.coordinates.placement import strikes_singly
from crashsim.errors import ArgumentError
from crashsim.faults import MOMENT_METHODS, check_drawable
from crashsim.injection.derivatives import NO_DERIVATIVES
from crashsim.injection.flops import Operations
from crashsim.results.estimate import METHODS
from crashsim.sampling.enumeration import can_enumerate
from crashsim.sampling.exact_strata import probability_of_two, usual_state
from crashsim.sampling.importance import SAMPLES as IMPORTANCE_SAMPLES
from crashsim.sampling.monte_carlo import DEFAULT_SAMPLES
from crashsim.space import FaultSpace

BUDGET = 5e11  # operations per method: about a minute of one core
EXTRA = 3e9  # operations of what refines first-order theory: a second or so
MIN_SAMPLES = 200
ENUMERATED = 16  # coordinates up to which the exact sum is computed unasked
PROOFS = ("remainder", "linear-exact", "certificate", "certified-sampling")
_FEW = 0.5  # probability of two or more faults below which they alone are sampled
_CONTROL_VALUES = 2**26  # B x K x N gains of a control variate
_CONTROL_COST = 4  # times a forward pass that it may cost
_GRADIENT_VALUES = 2**27  # B x K x N gains kept: 1 GiB

SCORED = (
    "exact",
    "norm",
    "absolute",
    "taylor",
    "single",
    "pairs",
    "mean-point-taylor",
    "mean-point-curvature",
    "mean-point-single",
    "remainder",
    "chebyshev",
    "chernoff",
    "saddlepoint",
    "linear-exact",
    "certificate",
    "monte-carlo",
    "importance-sampling",
    "certified-sampling",
    "hardware",
)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    methods: to compute, in the order of ``METHODS``.
    skipped: the others, with the reason.
    samples: of Monte Carlo, None where ``rel_width`` decides.
    few_exact: no fault and single ones are to be summed exactly, two or more sampled.
    control: Monte Carlo is to take the linear surrogate for a control variate.
    """

    methods: tuple[str, ...]
    skipped: Mapping[str, str]
    samples: int | None
    few_exact: bool
    control: bool


def plan(
    space: FaultSpace,
    methods: Iterable[str] | None,
    samples: int | None,
    rel_width: float | None,
    hardware: bool = False,
    proofs: bool = False,
) -> Plan:
    """Chooses methods; those that are named are computed whatever they cost.

    Args:
        methods: names; or names with a ``+``, which are added to those chosen unasked.
        samples, rel_width: of Monte Carlo, as asked for.
        hardware, proofs: also the methods of these names.

    Raises:
        ArgumentError: an unknown method is named; or one that draws faults, of which a fault's law
            does not say how.
    """
    named = set() if methods is None else _check(methods)
    added = {name.removeprefix("+") for name in named if name.startswith("+")}
    only = named - {f"+{name}" for name in added}
    added |= {"hardware"} if hardware else set()
    added |= set(PROOFS) if proofs else set()
    faults = [p.fault for p in space.placements]
    if beyond := [m for m in SCORED if m in only | added and m not in MOMENT_METHODS]:
        check_drawable(faults, beyond[0])
    elif not only:
        check_drawable(faults, "Monte Carlo")
    cost = _operations(space)
    skipped: dict[str, str] = {}
    chosen = only | added
    if not only:
        for method in SCORED:
            reason = None if method in added else _reason_against(method, space, cost)
            if reason:
                skipped[method] = reason
            else:
                chosen.add(method)
    if samples is None and rel_width is None:
        samples = int(min(DEFAULT_SAMPLES, max(MIN_SAMPLES, BUDGET / cost)))
    few, values = _few_strike(space), space.N * space.B * space.K
    few_exact = few and (samples or DEFAULT_SAMPLES) >= space.N and values <= _GRADIENT_VALUES
    # Where single faults are all that samples hold, they say too little of what it leaves over.
    control = few_exact or not few
    struck = sum(p.size * p.fault.change_probability for p in space.placements)
    control &= values <= _CONTROL_VALUES and 2 * struck * space.B * space.K <= _CONTROL_COST * cost
    ordered = tuple(m for m in METHODS if m in chosen)
    return Plan(ordered, skipped, samples, few_exact, control)


def _few_strike(space: FaultSpace) -> bool:
    """Whether most samples would hold no strike or a single one, but not surely so."""
    usual = usual_state(space)
    return usual is not None and (usual[1] > 0).sum() >= 2 and probability_of_two(usual[1]) < _FEW


def _check(methods: Iterable[str]) -> set[str]:
    try:
        named = {methods} if isinstance(methods, str) else set(methods)
    except TypeError:
        raise ArgumentError(f"methods={methods!r}: give a list of names") from None
    unknown = sorted(str(name) for name in named if str(name).removeprefix("+") not in SCORED)
    if unknown or not named:
        raise ArgumentError(f"methods={unknown}: choose among {', '.join(SCORED)}")
    return named


def _reason_against(method: str, space: FaultSpace, cost: float) -> str | None:
    """Why a method is not computed unasked; None where it is."""
    if method == "hardware":
        return "ask for it with --hardware (hardware=True)"
    if method in PROOFS:
        return "ask for proofs with --proofs (proofs=True)"
    if method == "exact" and not can_enumerate(space, ENUMERATED):
        return f"{space.N} coordinates: 2^{space.N} fault patterns are too many to sum over"
    if method in ("single", "mean-point-single"):
        if 2 * space.N * cost > BUDGET:
            return f"2 x {space.N} coordinates: as many forward passes cost too much"
        if 4 * space.N * space.B * space.K > _GRADIENT_VALUES:
            return f"{space.N} coordinates: their single-fault differences do not fit in memory"
    if method == "pairs":
        if space.N > MAX_PAIRED or not all(p.fault.is_binary for p in space.placements):
            return f"for at most {MAX_PAIRED} crashes; there are {space.N} coordinates"
        if space.N**2 / 2 * cost > EXTRA:
            return "a forward pass for every pair of faults takes longer; ask for it as +pairs"
    if method == "mean-point-curvature":
        products = min(space.N, MAX_EXACT_HESSIAN)
        if space.B * space.K * space.N * products > 4 * _GRADIENT_VALUES:
            return f"{space.N} coordinates: their Hessian does not fit in memory"
        if 4 * space.K * products * cost > EXTRA:
            return "second derivatives take longer; ask for them as +mean-point-curvature"
    if not space.has_derivatives:
        if method in ("taylor", "mean-point-taylor", "mean-point-curvature"):
            return NO_DERIVATIVES
        if method in (*TAIL_METHODS, "importance-sampling"):  # they build on one of the two
            reason = _reason_against("mean-point-single", space, cost)
            if reason:
                return f"{NO_DERIVATIVES}; {reason}"
    if method in ("taylor", "mean-point-taylor", "chebyshev", "chernoff", "saddlepoint"):
        if space.N * space.B * space.K > _GRADIENT_VALUES:
            return f"{space.N} coordinates: gradients of {space.B} inputs do not fit in memory"
        if space.B * space.K * cost > 10 * BUDGET:
            return f"{space.K} outputs: as many backward passes per input cost too much"
    if method == "importance-sampling":
        if can_enumerate(space, ENUMERATED):
            return "the exact sum is at hand"
        samples = 2 * IMPORTANCE_SAMPLES * space.B
        if samples * _operations(space, inputs=1) > BUDGET / 4:
            return (
                "some thousand samples for each input take longer; ask for it as "
                "+importance-sampling, on fewer inputs"
            )
    if method in ("norm", "absolute"):
        for p in space.placements:
            if not strikes_singly(p):
                return f"defined for crashes of neurons and weights, not for {p.fault.name}"
    return None


def _operations(space: FaultSpace, inputs: int | None = None) -> float:
    """Floating-point operations of one sample's forward pass on some inputs (all), about."""
    with torch.no_grad(), Operations() as counter:
        space.faulty_model.model.outputs(space.examples.part(0, 1).clone())
    elementwise = 10 * sum(s.size for s in space.available_sites if s.kind != "parameter")
    # What a call costs at all; samples with faulty parameters cannot always share one.
    alone = space.runs_alone or any(p.site.kind == "parameter" for p in space.placements)
    overhead = 3e6 if alone else 1e5
    return (inputs or space.B) * float(counter.total + elementwise) + overhead
