"""What is asked of ``protect``, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crashsim.arguments import check_seed, fraction, instance, nearest, number, sample_count, shown
from crashsim.errors import ArgumentError
from crashsim.protection.schemes import Scheme

METRICS = ("accuracy", "error-rate", "class-change")
CHIPS = 400  # that a plan is measured by, unless another number is asked for


def lower_is_better(metric: str) -> bool:
    return metric != "accuracy"


def as_metric(metric: str, right: float) -> float:
    """The metric of a share of right examples, and the other way round."""
    return 1 - right if lower_is_better(metric) else right


@dataclass(frozen=True)
class Asked:
    """What was asked for, checked."""

    target: float | None
    metric: str | None
    share: float | None
    budget: float | None
    schemes: tuple[Scheme, ...] | None
    chips: int
    virtual: int | None
    seed: int
    confidence: float

    @classmethod
    def of(
        cls, target: Any, metric: Any, share: Any, budget: Any, schemes: Any, chips: Any,
        virtual: Any, seed: Any, confidence: Any,
    ) -> Asked:  # fmt: skip
        if metric is not None and metric not in METRICS:
            raise ArgumentError(
                f"metric={shown(metric)}{nearest(metric, METRICS)}"
                f"; give one of {', '.join(METRICS)}"
            )
        if target is not None:
            target = number("target", target, "a share of examples, such as 0.95", least=0, most=1)
        if budget is not None:
            budget = number("budget", budget, "an overhead, such as 0.1 for a tenth", least=0)
        if target is None and budget is None:
            raise ArgumentError(
                "target=None, budget=None: give the value of the metric that is to be reached, or "
                "the most overhead"
            )
        if share is not None:
            share = fraction("share", share)
            if target is None:
                raise ArgumentError(f"share={share}: of chips that reach what? give target, too")
        if schemes is not None:
            listed = (schemes,) if isinstance(schemes, Scheme) else schemes
            if isinstance(listed, str) or not isinstance(listed, Iterable):
                raise ArgumentError(f"schemes={shown(schemes)}; give a list of schemes")
            schemes = tuple(listed)
            for scheme in schemes:
                instance("schemes", scheme, Scheme, "protection schemes, such as SECDED()")
            if not schemes:
                raise ArgumentError("schemes=[]: nothing can be protected; give some, or None")
        return cls(
            target, metric, share, budget, schemes,
            CHIPS if chips is None else sample_count("chips", chips, 10),
            None if virtual is None else sample_count("virtual", virtual, 20),
            check_seed(seed),
            fraction("confidence", confidence),
        )  # fmt: skip
