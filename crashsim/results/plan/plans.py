"""A plan of protection in words: what to protect, what it costs, what it buys, how sure."""

from __future__ import annotations

from collections.abc import Mapping

from crashsim.results.numbers import percent
from crashsim.results.plan.plan_record import PlanRecord

CHOSEN = "scheme", "where", "bits", "protected", "of", "bits stored", "MACs", "overhead"
FRONT = "overhead", "protected", "predicted", "chips at target", "schemes"
_ROWS = 30  # of a table, beyond which the largest overheads alone are shown


def title(plan: PlanRecord) -> str:
    return plan.model["name"]


def sentences(plan: PlanRecord) -> list[str]:
    """What the plan is and does, in a few sentences."""
    found = plan.verified
    schemes = sorted({row["scheme"] for row in plan.chosen})
    count = sum(row["coordinates"] for row in plan.chosen)
    if not plan.chosen:
        told = ["Protect nothing:"]
    else:
        what = f"{percent(count / plan.coordinates)} of {plan.coordinates:,} places of faults"
        told = [
            f"Protect {what if count else 'the whole network'} by {', '.join(schemes)}, at an "
            f"overhead of {percent(plan.overhead)}:"
        ]
    without = found["unprotected"]
    told.append(
        f"{plan.metric} {_number(found['value'])} [{_number(found['low'])}, "
        f"{_number(found['high'])}] at {percent(plan.confidence)} confidence, against "
        f"{_number(without['value'])} [{_number(without['low'])}, {_number(without['high'])}] "
        f"without protection and {_number(plan.clean)} without faults."
    )
    if found["accepted"] is not None:
        at = found["accepted"]
        side = "at most" if plan.lower_is_better else "at least"
        told.append(
            f"{percent(at['value'])} [{percent(at['low'])}, {percent(at['high'])}] of chips have "
            f"{side} {_number(at['level'])}."
        )
    if plan.target is not None:
        told.append(_verdict(plan))
    inside = "inside" if found["agrees"] else "outside"
    told.append(
        f"Virtual chips predicted {_number(found['predicted'])}, {inside} the measured interval."
    )
    return told


def _verdict(plan: PlanRecord) -> str:
    asked = f"The target ({_number(plan.target)}"
    asked += f", of {percent(plan.share)} of chips)" if plan.share is not None else ")"
    if plan.reached is None:
        return f"{asked} may be reached: the interval leaves it open."
    return f"{asked} is {'reached' if plan.reached else 'not reached'}."


def faults_of(plan: PlanRecord) -> str:
    """What strikes, in a line."""
    kinds = list(dict.fromkeys(fault["fault"] for fault in plan.faults))
    rates = sorted({fault["p"] for fault in plan.faults if "p" in fault})
    at = f", p = {rates[0]:g}" if len(rates) == 1 else ""
    return f"faults: {', '.join(kinds)}{at}, {plan.coordinates:,} places at {len(plan.sites)} sites"


def chosen_rows(plan: PlanRecord) -> list[list[str]]:
    """What to protect, a row for each scheme and site, the dearest where there are many."""
    rows = sorted(plan.chosen, key=lambda row: -row["overhead"])[:_ROWS]
    kept = [row for row in plan.chosen if any(row is other for other in rows)]
    found = [
        [
            row["scheme"],
            row["site"],
            _bits(row["bits"]),
            f"{row['coordinates']:,}" if row["coordinates"] else "all",
            f"{row['of']:,}" if row["of"] else "",
            _cost(row["cost"], "bits"),
            _cost(row["cost"], "macs"),
            percent(row["overhead"]),
        ]
        for row in kept
    ]
    if len(kept) < len(plan.chosen):
        found.append([f"and {len(plan.chosen) - len(kept)} more", *[""] * 7])
    return found


def front_rows(plan: PlanRecord) -> list[list[str]]:
    """Plans that no other beats, the cheapest first; an arrow at the one that was chosen."""
    return [
        [
            percent(row["overhead"]) + (" <" if row["chosen"] else ""),
            percent(row["protected"]),
            _number(row["predicted"]),
            "" if row["accepted"] is None else percent(row["accepted"]),
            ", ".join(row["schemes"]) or "none",
        ]
        for row in plan.front
    ]


def footer(plan: PlanRecord) -> str:
    found = plan.verified
    return (
        f"measured on {found['chips']:,} chips with the schemes in place and {found['examples']:,} "
        f"examples that did not choose; plans judged by {plan.virtual_chips:,} virtual chips; "
        f"latency +{plan.cost.get('latency', 0):g}; seed {plan.seed}"
    )


def _bits(bits: list[int]) -> str:
    """Numbers of bits, runs with a dash."""
    runs: list[list[int]] = []
    for bit in bits:
        if runs and bit == runs[-1][1] + 1:
            runs[-1][1] = bit
        else:
            runs.append([bit, bit])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _cost(cost: Mapping[str, float], name: str) -> str:
    return f"{cost[name]:,.0f}" if cost.get(name) else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
