"""What a score will compute: which methods apply, and which are affordable.

Costs are counted in floating-point operations, not in seconds, so that the plan, and with it the
result, is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from crashsim.enumeration import can_enumerate
from crashsim.errors import ArgumentError
from crashsim.estimate import METHODS
from crashsim.faults import WeightCrash
from crashsim.montecarlo import DEFAULT_SAMPLES
from crashsim.space import FaultSpace

BUDGET = 2e12  # operations per method: a few minutes of one core
MIN_SAMPLES = 200
ENUMERATED = 16  # coordinates up to which the exact sum is computed unasked
_GRADIENT_VALUES = 2**27  # B x K x N gains kept: 1 GiB

SCORED = (
    "exact",
    "norm",
    "absolute",
    "taylor",
    "single",
    "mean-point-taylor",
    "mean-point-single",
    "chebyshev",
    "chernoff",
    "saddlepoint",
    "monte-carlo",
    "hardware",
)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    methods: to compute, in the order of ``METHODS``.
    skipped: the others, with the reason.
    samples: of Monte Carlo, None where ``rel_width`` decides.
    """

    methods: tuple[str, ...]
    skipped: Mapping[str, str]
    samples: int | None


def plan(
    space: FaultSpace,
    methods: Iterable[str] | None,
    samples: int | None,
    rel_width: float | None,
    hardware: bool = False,
) -> Plan:
    """Chooses methods; those that are named are computed whatever they cost.

    Raises:
        ArgumentError: an unknown method is named.
    """
    named = None if methods is None else _check(methods)
    if hardware and named is not None:
        named.add("hardware")
    cost = _operations(space)
    skipped: dict[str, str] = {}
    chosen = []
    for method in SCORED:
        if named is not None:
            if method in named:
                chosen.append(method)
            continue
        if method == "hardware":
            reason = None if hardware else "ask for it with --hardware (hardware=True)"
        else:
            reason = _reason_against(method, space, cost)
        if reason:
            skipped[method] = reason
        else:
            chosen.append(method)
    if samples is None and rel_width is None:
        samples = int(min(DEFAULT_SAMPLES, max(MIN_SAMPLES, BUDGET / cost)))
    return Plan(tuple(m for m in METHODS if m in chosen), skipped, samples)


def _check(methods: Iterable[str]) -> set[str]:
    named = {methods} if isinstance(methods, str) else set(methods)
    unknown = sorted(named - set(SCORED))
    if unknown or not named:
        raise ArgumentError(f"methods={unknown}: choose among {', '.join(SCORED)}")
    return named


def _reason_against(method: str, space: FaultSpace, cost: float) -> str | None:
    """Why a method is not computed unasked; None where it is."""
    if method == "exact" and not can_enumerate(space, ENUMERATED):
        return f"{space.N} coordinates: 2^{space.N} fault patterns are too many to sum over"
    if method in ("single", "mean-point-single"):
        if 2 * space.N * cost > BUDGET:
            return f"2 x {space.N} coordinates: as many forward passes cost too much"
        if 4 * space.N * space.B * space.K > _GRADIENT_VALUES:
            return f"{space.N} coordinates: their single-fault differences do not fit in memory"
    if method in ("taylor", "mean-point-taylor", "chebyshev", "chernoff", "saddlepoint"):
        if space.N * space.B * space.K > _GRADIENT_VALUES:
            return f"{space.N} coordinates: gradients of {space.B} inputs do not fit in memory"
        if space.B * space.K * cost > 10 * BUDGET:
            return f"{space.K} outputs: as many backward passes per input cost too much"
    if method in ("norm", "absolute"):
        for p in space.placements:
            unit = getattr(p.fault, "group", None) == "unit"
            if not unit and not isinstance(p.fault, WeightCrash):
                return f"defined for crashes of neurons and weights, not for {p.fault.name}"
    return None


def _operations(space: FaultSpace) -> float:
    """Floating-point operations of one forward pass of all inputs, about."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        space._call(space.inputs[:1].clone())
    elementwise = 10 * sum(s.size for s in space.available_sites if s.kind != "parameter")
    overhead = 1e5  # of calling a small network at all
    return space.B * float(counter.get_total_flops() + elementwise) + overhead
