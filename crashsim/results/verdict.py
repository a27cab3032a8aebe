"""The answer of a score in plain words."""

from __future__ import annotations

import math
from typing import Any

from crashsim.results import chips
from crashsim.results.estimate import Estimate
from crashsim.results.numbers import interval_numbers, percent
from crashsim.results.record import Record
from crashsim.results.schema import OwnRates

_NAMED = 4  # outputs that were asked for by number, the first, of which a sentence tells
# Where samples of the faults' own law see too few events, these may have seen enough.
_FOR_RARE = ("importance-sampling", "word-importance")
# What theory says of events that samples saw too seldom, the best first.
_LAWS = ("surrogate-law", "single-law", "nearest-rivals", "saddlepoint")
# What gives moments too, unless outputs that are not finite spoil them.
_WITH_MOMENTS = ("exact", "monte-carlo")


def best(score: Record, quantity: str, output: int | str = "all") -> Estimate | None:
    """The most trustworthy estimate of a quantity pooled over inputs."""
    for method in score.quoted:
        found = score.find(method, quantity, output=output)
        if found is None:
            continue
        if method != "monte-carlo":
            return found
        others = [score.find(name, quantity, output=output) for name in _FOR_RARE]
        seen = [e for e in others if e is not None and not _leaves_out(e, found)]
        rare = min(seen, key=_width, default=found)
        return rare if _width(rare) < min(_width(found), 2.0) else found
    return None


def _leaves_out(rare: Estimate, plain: Estimate) -> bool:
    """Whether weighted samples have missed what plain ones have seen."""
    return rare.high is not None and plain.low is not None and rare.high < plain.low


def _beside(score: Record, found: Estimate) -> str:
    """What theory says, where samples saw so few events that their interval says little, and do
    not contradict it."""
    if found.method != "monte-carlo" or found.low is None or found.high is None:
        return ""
    if _width(found) <= 2.0:
        return ""
    for name in _LAWS:
        told = score.find(name, found.quantity, output=found.output)
        if told is not None and found.low <= told.value <= found.high:
            return f"; theory puts it at {percent(told.value)} ({_source(told)})"
    return ""


def _width(estimate: Estimate) -> float:
    """Width of the interval relative to the value."""
    if estimate.low is None or estimate.high is None or estimate.value == 0:
        return math.inf
    return (estimate.high - estimate.low) / estimate.value


def verdict(score: Record) -> str:
    """What happens to the network, with how much, how often and how sure."""
    sentences = ["Partial, as it was interrupted."] if score.partial else []
    if score.chips is not None:
        sentences += chips.sentences(score.chips, describe_faults(score))
    of_events, of_variance = _events(score), _movement(score)
    if score.chips is not None and score.chips["examples"] > score.inputs["count"]:
        of_events = []  # of fewer examples than were judged already
    if _events_lead(score) and of_events:
        start = f"Under {describe_faults(score)}, "
        sentences += [start + of_events[0][0].lower() + of_events[0][1:], *of_events[1:]]
        sentences += of_variance
    else:
        sentences += [*of_variance, *of_events]
    tail = best(score, "tail")
    if tail is not None:
        which = _only(score) if score.outputs == 1 else "some output"
        sentences.append(
            f"{which.capitalize()} moves by {score.epsilon:g} or more with probability "
            f"{percent(tail.value)} ({_source(tail)}){_beside(score, tail)}."
        )
    else:
        sentences += _named_tails(score)
    shares = {s["name"]: s["share"] for s in score.sites if s["share"] is not None}
    leading = max(shares, key=shares.__getitem__, default="")
    if len(score.sites) > 1 and shares.get(leading, 0) > 0 and not _is_spoiled(score):
        sentences.append(f"{percent(shares[leading])} of the variance comes from {leading}.")
    if len(sentences) == score.partial:
        sentences.append("Nothing was computed.")
    return " ".join(sentences)


def _named_tails(score: Record) -> list[str]:
    """How often the outputs move that were asked for by number, where no more is known."""
    told = []
    for k in score.named_outputs[:_NAMED]:
        found = best(score, "tail", k)
        if found is not None:
            told.append(
                f"Output {k} moves by {score.epsilon:g} or more with probability "
                f"{percent(found.value)} ({_source(found)})."
            )
    return told


def headline(score: Record) -> str:
    """The verdict for a reader in a hurry: whether the faults are tolerated, and what matters."""
    told = ["Partial, as it was interrupted."] if score.partial else []
    if score.chips is not None:
        told.append(chips.headline(score.chips, describe_faults(score)))
    else:
        events, moved = _events(score), _movement(score)
        first = events[:1] or moved or _named_tails(score)[:1]
        if first and not first[0].startswith("Under "):
            start = f"Under {describe_faults(score)}, "
            first = [start + first[0][0].lower() + first[0][1:]]
        told += first or ["Nothing was computed."]
    shares = {s["name"]: s["share"] for s in score.sites if s["share"] is not None}
    leading = max(shares, key=shares.__getitem__, default="")
    if len(score.sites) > 1 and shares.get(leading, 0) > 0 and not _is_spoiled(score):
        told.append(f"What matters most: {leading} ({percent(shares[leading])} of the variance).")
    return " ".join(told)


def _movement(score: Record) -> list[str]:
    """How far the outputs move; or why that is not told, or not worth much."""
    lost, variance = best(score, "not-finite"), best(score, "variance")
    if _is_spoiled(score):
        return ["Outputs that are not finite leave their movement no mean and no variance."]
    if variance is None:
        return []
    size = f"{math.sqrt(max(variance.value, 0)):.3g} ({_source(variance, 0.5)})"
    if not _events_lead(score):
        return [f"Under {describe_faults(score)}, {_outputs(score)} by {size}."]
    seen = " in the samples" if lost is not None and lost.kind == "statistical" else ""
    told = _outputs(score)[0].upper() + _outputs(score)[1:]
    return [f"{told} by {size}{seen}: the few flips that make numbers immense decide it."]


def _events(score: Record) -> list[str]:
    """How often the class changes, and an output is not finite."""
    found, change, lost = [], best(score, "class-change"), best(score, "not-finite")
    if change is not None:
        found.append(
            f"The predicted class changes with probability {percent(change.value)} "
            f"({_source(change)}){_beside(score, change)}."
        )
    if lost is not None:
        among = ", which counts as a change" if change is not None else ""
        found.append(
            f"Some output is infinite or NaN{among}, with probability {percent(lost.value)} "
            f"({_source(lost)})."
        )
    return found


def _is_spoiled(score: Record) -> bool:
    """Whether what ran the model says that there are no moments: some outputs have no square."""
    return any(
        score.find(method, "not-finite") is not None
        and score.find(method, "variance", output="all") is None
        for method in _WITH_MOMENTS
    )


def _events_lead(score: Record) -> bool:
    """Whether events say more than moments do: bits of exponents make numbers immense."""
    if _is_spoiled(score):
        return True
    return any(fault.get("immense") for fault in score.faults)


def _outputs(score: Record) -> str:
    if score.outputs == 1:
        return f"{_only(score)} moves, in standard deviation,"
    return f"the {score.outputs} outputs together move (root of their summed variances)"


def _only(score: Record) -> str:
    """The only output."""
    return "the loss" if score.of_loss else "the output"


def describe_faults(score: Record) -> str:
    """``1% neuron-crash of 150 coordinates (sigmoid1, sigmoid2)``, for each kind of fault."""
    groups: dict[str, list[int]] = {}
    for i, fault in enumerate(score.faults):
        own: dict[str, Any] = {k: v for k, v in fault.items() if k not in ("site", "fault")}
        if "p" in own:
            rate = percent(own.pop("p"))
        else:  # the standard deviation, or the parameter of a law of the user's own
            name = own.pop("parameter", "rate")
            rate = f"std {own.pop('std'):g}" if "std" in own else f"{name} {own.pop('rate'):g}"
        if "count" in own:
            rate = f"exactly {own.pop('count')} of {own.pop('of')}"
        if "rates" in own:
            rate = f"{_ends(own.pop('rates'))} (mean {rate})"
        extra = "".join(
            f", {k} {v}" for k, v in own.items() if k != "immense" and (k, v) != ("group", "unit")
        )
        groups.setdefault(f"{rate} {fault['fault']}{extra}", []).append(i)
    parts = []
    for label, members in groups.items():
        count = sum(score.sites[i]["coordinates"] for i in members)
        names = [_site(score.sites[i]) for i in members]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts.append(f"{label} on {count} coordinates ({shown})")
    return " and ".join(parts)


def _ends(rates: OwnRates) -> str:
    """The least and the largest of rates."""
    return f"rates from {rates['min']:.3g} to {rates['max']:.3g}"


def _site(site: Any) -> str:
    """``lif1``, or ``lif1 in each of 25 steps``."""
    steps = site.get("steps", 1)
    return f"{site['name']} in each of {steps} steps" if steps > 1 else str(site["name"])


def _source(estimate: Estimate, power: float = 1.0) -> str:
    """``monte-carlo, 95% interval 0.1 to 0.2``; the interval raised to ``power``."""
    kind = estimate.kind
    if estimate.low is None or estimate.high is None or kind == "exact":
        return kind if kind == estimate.method else f"{estimate.method}, {kind}"
    low, high = max(estimate.low, 0) ** power, max(estimate.high, 0) ** power
    percents = estimate.quantity in ("tail", "class-change", "not-finite")
    _, low_text, high_text = interval_numbers(low, low, high)
    if percents:
        low_text, high_text = percent(low), percent(high)
    level = percent(estimate.confidence or 0)
    return f"{estimate.method}, {level} interval {low_text} to {high_text}"
