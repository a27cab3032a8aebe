"""The figure of a plan: what protection buys against what it costs."""

from __future__ import annotations

from crashsim.report.plots import figure_of, svg
from crashsim.results.plan.plan_record import PlanRecord


def front(plan: PlanRecord) -> str:
    """Plans that no other beats, predicted, and the chosen one as measured, as inline SVG."""
    with figure_of(7.4, 4.0) as (figure, axes):
        overheads = [100 * row["overhead"] for row in plan.front]
        axes.plot(
            overheads, [row["predicted"] for row in plan.front], "o-", ms=3.5, lw=1.4,
            color="#0f766e", label="virtual chips, by overhead",
        )  # fmt: skip
        found = plan.verified
        axes.errorbar(
            [100 * plan.overhead],
            [found["value"]],
            [[found["value"] - found["low"]], [found["high"] - found["value"]]],
            fmt="s", ms=6, capsize=3, color="#dc2626", label="the plan, measured",
        )  # fmt: skip
        axes.axhline(plan.clean, color="#64748b", lw=1, ls=":", label="without faults")
        if plan.target is not None:
            axes.axhline(plan.target, color="#d97706", lw=1, ls="--", label="target")
        axes.set_xlabel("overhead in %")
        axes.set_ylabel(f"{plan.metric} (mean over chips)")
        axes.grid(True)
        axes.legend(loc="best")
        return svg(figure)
