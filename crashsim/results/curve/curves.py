"""Curves in words and in rows, as terminals and reports show them."""

from __future__ import annotations

import math

from crashsim.results.curve.curve_record import CurveRecord, PointFacts, TolerableFacts
from crashsim.results.numbers import percent, percents

# Metrics that are shares of examples or positions.
_SHARES = ("accuracy", "top-", "error-rate", "class-change", "sdc-", "due", "mean-iou")
_LOW, _HIGH = 0.05, 0.95


def title(curve: CurveRecord) -> str:
    """What a curve is called among others."""
    return curve.name or str(curve.model["name"])


def faults_of(curve: CurveRecord) -> str:
    """``neuron-crash of 150 coordinates (relu1, relu2)``, for each kind of fault."""
    kinds: dict[str, list[int]] = {}
    for i, fault in enumerate(curve.faults):
        own = {
            k: v
            for k, v in fault.items()
            if k not in ("site", "fault", "p", "std", "rate", "rates", "parameter", "immense")
            and (k, v) != ("group", "unit")
        }
        extra = "".join(f", {k} {v}" for k, v in own.items())
        kinds.setdefault(f"{fault['fault']}{extra}", []).append(i)
    parts = []
    for kind, members in kinds.items():
        sites = [curve.sites[i] for i in members]
        names = [str(site["name"]) for site in sites]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts.append(f"{kind} of {sum(s['coordinates'] for s in sites)} coordinates ({shown})")
    return " and ".join(parts)


def sentences(curve: CurveRecord) -> list[str]:
    """What becomes of the metric, and up to which rate its target is reached."""
    told = ["Partial, as it was interrupted."] if curve.partial else []
    first, last = curve.points[0], curve.points[-1]
    how = "over chips" if curve.is_measured else "as predicted"
    clean = value_text(curve, curve.clean)
    ends = [f"{value_text(curve, p['value'])} at {rate_text(curve, p)}" for p in (first, last)]
    span = ends[0] if first is last else " and ".join(ends)
    told.append(f"Without faults, {curve.metric} is {clean}; on average {how}, it is {span}.")
    return told + [_tolerated(curve, found) for found in curve.tolerated]


def _tolerated(curve: CurveRecord, found: TolerableFacts) -> str:
    bound = "at most" if curve.lower_is_better else "at least"
    level = f"{bound} {value_text(curve, found['target'])}"
    share = found["share"]
    if share is None:
        what = f"The mean of {curve.metric} over chips is {level}"
    else:
        what = f"{percent(share)} of chips have {level}"
    if found["rate"] == 0 and found["high"] == 0:
        return f"Even without faults, {curve.metric} is not {level}."
    low, high = found["low"], found["high"]
    name, sure = curve.parameter, percent(found["confidence"])
    least = f"{low:.2g}" if low else "below the rates of the curve"
    if high is None:
        if low == curve.points[-1]["rate"]:
            return f"{what} at every rate of the curve ({sure} confidence)."
        return (
            f"{what} up to about {name} = {found['rate']:.2g} ({sure} interval from {least}, "
            "without an end among these rates)."
        )
    return (
        f"{what} up to about {name} = {found['rate']:.2g} ({sure} interval {least} to {high:.2g})."
    )


def titles(curve: CurveRecord) -> list[str]:
    """The columns of ``rows``."""
    found = [curve.parameter, curve.metric]
    if not curve.is_measured and not has_intervals(curve):
        return found
    found[1] = f"{curve.metric} [{percent(curve.confidence)}]"
    if not curve.is_measured:
        return [*found, "band"]
    found += ["band", "worst 5%"]
    if curve.points[0]["accepted"] is not None:
        bound = "≤" if curve.lower_is_better else "≥"
        found.append(f"chips {bound} {value_text(curve, curve.points[0]['accepted']['level'])}")
    return [*found, "predicted"] if has_prediction(curve) else found


def rows(curve: CurveRecord) -> list[list[str]]:
    """Each point, after the clean network: rate, mean, band, worst chips, accepted, predicted."""
    width = len(titles(curve))
    found = [["0", value_text(curve, curve.clean), *[""] * (width - 2)]]
    for point in curve.points:
        row = [f"{point['rate']:.3g}", value_text(curve, point["value"])]
        if curve.is_measured or has_intervals(curve):
            row[1] += f" {_ends(curve, point['low'], point['high'])}"
            row.append(_ends(curve, point["band_low"], point["band_high"]))
        if curve.is_measured:
            row.append(_worst(curve, point))
            if (share := point["accepted"]) is not None:
                value, low, high = percents(share["value"], share["low"], share["high"])
                row.append(f"{value} [{low}, {high}]")
            if has_prediction(curve):
                row.append(value_text(curve, point["predicted"]))
        found.append(row)
    return found


def has_intervals(curve: CurveRecord) -> bool:
    """Whether its points have intervals: they were measured, or chips checked what is predicted."""
    return all(math.isfinite(point["low"]) for point in curve.points)


def has_prediction(curve: CurveRecord) -> bool:
    """Whether theory predicts some of the points."""
    return any(point["predicted"] is not None for point in curve.points)


def footer(curve: CurveRecord) -> str:
    """How many chips, examples and passes, and what the intervals are."""
    examples = f"{curve.inputs['count']:,} examples"
    chosen = _chosen(curve)
    if not curve.is_measured:
        how = "intervals by the chips that check it" if has_intervals(curve) else "no intervals"
        return f"predicted for {examples}, {how}{chosen}"
    return (
        f"{curve.chips:,} chips at every rate, with nested faults, each judged on {examples} "
        f"({curve.rows:,} passes); intervals over chips, given the examples; the band holds at all "
        f"{len(curve.points)} rates at once{chosen}"
    )


def _chosen(curve: CurveRecord) -> str:
    """How rates were chosen, where nobody named them."""
    if curve.pilot is None:
        return ""
    grid = f"at {len(curve.pilot['rates'])} rates"
    if not curve.pilot["chips"]:
        return f"; its rates were chosen by a prediction {grid}"
    return (
        f"; its rates were chosen by {curve.pilot['chips']} other chips {grid} "
        f"({curve.pilot['rows']:,} passes more)"
    )


def rate_text(curve: CurveRecord, point: PointFacts) -> str:
    """``p = 0.001``."""
    return f"{curve.parameter} = {point['rate']:.3g}"


def is_share(curve: CurveRecord) -> bool:
    """Whether the metric is a share, told in percent."""
    return curve.metric.startswith(_SHARES)


def value_text(curve: CurveRecord, value: float | None) -> str:
    """A value of the metric as people write it."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "-infinite" if value < 0 else "infinite"
    if not is_share(curve):
        return f"{value:.4g}"
    if 0 < abs(value) < 1e-4:
        return percent(value)
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def _ends(curve: CurveRecord, low: float, high: float) -> str:
    if is_share(curve) and min(abs(low), abs(high)) >= 1e-4:
        return f"[{100 * low:.2f}, {100 * high:.2f}]"
    return f"[{value_text(curve, low)}, {value_text(curve, high)}]"


def _worst(curve: CurveRecord, point: PointFacts) -> str:
    level = _HIGH if curve.lower_is_better else _LOW
    at = [p for p in point["percentiles"] if math.isclose(p["level"], level)]
    return value_text(curve, at[0]["value"]) if at else ""
