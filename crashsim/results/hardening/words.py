"""A comparison of ways to harden in words and in rows, as terminals and reports show it."""

from __future__ import annotations

from crashsim.results.hardening.record import HardeningRecord, VerifiedFacts, WayFacts
from crashsim.results.numbers import percent
from crashsim.results.schema import RangeFacts

# Metrics that are shares of examples.
_SHARES = ("accuracy", "top-", "error-rate", "class-change", "sdc-", "due", "mean-iou")


def statement(found: HardeningRecord) -> str:
    """Which way reaches the target, how sure that is, and what it costs."""
    told = ["Interrupted: ways are missing."] if found.partial else []
    if found.chosen is None:
        return " ".join([*told, "No way could be judged."])
    chosen = found.way(found.chosen)
    looked = next((v for v in reversed(found.verified) if v["name"] == found.chosen), None)
    if found.target is None:
        told.append(f"Best of {len(_judged(found))} ways by {_asked(found)}: {found.chosen}.")
    elif found.reached:
        told.append(f"Reached: {found.chosen} has {_asked(found)} {_bound(found)}.")
    else:
        told.append(f"Not reached: no way is shown to have {_asked(found)} {_bound(found)}.")
        told.append(f"The best is {found.chosen}.")
    if looked is not None:
        told.append(_verified(found, looked))
    told += _failed(found)
    return " ".join([*told, *_price(found, chosen)])


def _asked(found: HardeningRecord) -> str:
    if found.share is not None:
        return f"{percent(found.share)} of chips with {found.metric}"
    if found.target is None or _is_movement(found):
        return found.metric
    return f"a mean {found.metric} over chips"


def _is_movement(found: HardeningRecord) -> bool:
    """Whether what counts is how far outputs move, which is 0 without faults."""
    return found.metric.startswith("P(")


def _bound(found: HardeningRecord) -> str:
    assert found.target is not None
    word = "at most" if found.lower_is_better else "at least"
    return f"{word} {value_text(found, found.target)}"


def _verified(found: HardeningRecord, looked: VerifiedFacts) -> str:
    what = range_text(found, looked["mean"])
    if looked["accepted"] is not None and found.share is not None:
        accepted = looked["accepted"]
        ends = f"[{percent(accepted['low'])}, {percent(accepted['high'])}]"
        what += f", reached by {percent(accepted['value'])} {ends} of chips"
    if looked["population"] is not None:
        low, high = looked["population"]["low"], looked["population"]["high"]
        what += f", and [{value_text(found, low)}, {value_text(found, high)}] of all like these"
    told = f"On examples and chips that no decision had seen ({looked['examples']:,}): {what}"
    told += f" ({percent(looked['confidence'])} confidence)"
    if not _is_movement(found):
        told += f"; {value_text(found, looked['clean'])} without faults"
    return f"{told}."


def _failed(found: HardeningRecord) -> list[str]:
    names = [v["name"] for v in found.verified if v["name"] != found.chosen]
    if not names:
        return []
    return [f"Looked promising, but was not confirmed: {', '.join(dict.fromkeys(names))}."]


def _price(found: HardeningRecord, chosen: WayFacts) -> list[str]:
    plain = found.ways[0]
    told = []
    mine, usual = chosen["training"], plain["training"]
    for what, cost, of in (
        ("multiply-accumulates", chosen["macs"], plain["macs"]),
        ("stored bits", chosen["bits"], plain["bits"]),
        ("training", mine and mine["operations"], usual and usual["operations"]),
    ):
        if cost and of and cost != of:
            told.append(f"{cost / of:.3g} times the {what}")
    if not told:
        return [] if chosen is plain else ["It costs no more than plain training."]
    return [f"It costs {', '.join(told)} of plain training."]


def _judged(found: HardeningRecord) -> list[WayFacts]:
    return [way for way in found.ways if not way["refused"]]


def titles(found: HardeningRecord) -> list[str]:
    """The columns of ``rows``."""
    titles = ["way"]
    if not _is_movement(found):
        titles.append(f"{found.metric} without faults")
    if _has_accuracy(found):
        titles.append("accuracy without faults")
    titles.append(found.metric if _is_movement(found) else "mean over chips")
    if found.share is not None:
        titles.append(f"chips {'≤' if found.lower_is_better else '≥'} {_target(found)}")
    if found.target is not None:
        titles.append("reaches")
    return [*titles, "training", "macs", "bits"]


def _has_accuracy(found: HardeningRecord) -> bool:
    """Whether accuracy is told beside the metric."""
    return found.metric != "accuracy" and any(way["accuracy"] is not None for way in found.ways)


def _target(found: HardeningRecord) -> str:
    return "" if found.target is None else value_text(found, found.target)


def rows(found: HardeningRecord) -> list[list[str]]:
    """Each way: the metric with faults and without, whether it reaches the target, its cost."""
    return [_row(found, way) for way in found.ways]


def _row(found: HardeningRecord, way: WayFacts) -> list[str]:
    mark = "▸ " if way["name"] == found.chosen else ""
    row = [mark + way["name"]]
    if way["refused"]:
        return [*row, *[""] * (len(titles(found)) - 1)]
    if not _is_movement(found):
        row.append(value_text(found, way["clean"]))
    if _has_accuracy(found):
        row.append("" if way["accuracy"] is None else percent(way["accuracy"]))
    row.append(range_text(found, way["mean"]))
    if found.share is not None:
        row.append(_share_text(way))
    if found.target is not None:
        row.append({"yes": "yes", "no": "no", "open": "not sure"}[way["reaches"]])
    training = way["training"]
    operations = None if training is None else training["operations"]
    return [*row, count_text(operations), count_text(way["macs"]), count_text(way["bits"])]


def _share_text(way: WayFacts) -> str:
    share = way["accepted"]
    if share is None:
        return ""
    return f"{percent(share['value'])} [{percent(share['low'])}, {percent(share['high'])}]"


def refusals(found: HardeningRecord) -> list[str]:
    """The ways that could not be taken, and why: a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for way in found.ways:
        if way["refused"]:
            by_reason.setdefault(way["refused"], []).append(way["name"])
    return [f"{', '.join(names)}: {why}" for why, names in by_reason.items()]


def footer(found: HardeningRecord) -> str:
    """What was the same for all, and what the intervals are."""
    return (
        f"every way trained for the same {found.equal}; {found.chips:,} chips each, the same "
        f"faults where the network is the same, on {found.examples:,} held-out examples; intervals "
        f"hold for all ways at once ({percent(found.confidence)}); training in floating-point "
        "operations, macs of an example, bits as the model stores them"
    )


def range_text(found: HardeningRecord, given: RangeFacts | None) -> str:
    """A value with its interval."""
    if given is None:
        return ""
    ends = f"[{value_text(found, given['low'])}, {value_text(found, given['high'])}]"
    return f"{value_text(found, given['value'])} {ends}"


def value_text(found: HardeningRecord, value: float | None) -> str:
    """A value of the metric as people write it."""
    if value is None:
        return ""
    return percent(value) if found.metric.startswith(_SHARES) else f"{value:.4g}"


def count_text(value: float | None) -> str:
    """``1.2e9`` as ``1.2G``; a dash where it is not known."""
    if value is None:
        return "–"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
