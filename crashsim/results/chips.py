"""Metrics over chips in words and in rows, as terminals, reports and verdicts show them."""

from __future__ import annotations

import math

from crashsim.results.numbers import (
    interval_numbers,
    percent,
    percents,
    samples_needed,
    says_little,
)
from crashsim.results.schema import ChipsFacts, LevelFacts, MetricFacts, RangeFacts

# Metrics that are shares of examples or positions, and how a sentence says so.
_SHARES = ("accuracy", "top-", "error-rate", "class-change", "sdc-", "due", "mean-iou")
_SAYS = {"accuracy": "the network is right on", "error-rate": "the network is wrong on"}
_DECIMALS = 4  # of a percentage, at most: what lies beyond is no difference to anybody
_WIDE_SHARE = 0.2  # between the ends of an interval, above which it says little
_MOST = 0.95  # share of chips that must pass before faults are called tolerated
_MEANS = {
    "sdc-1": "answers that change (sdc-1)",
    "due": "outputs not finite (due)",
}
_LOW, _HIGH = 0.05, 0.95  # the percentiles that a sentence tells of
TITLES = ("metric", "no faults", "over chips", "change", "worst 5% of chips", "chips accepted")


def sentences(facts: ChipsFacts, faults: str) -> list[str]:
    """What happens to the first metric: on average, to the worst chips, and how many pass.

    Args:
        facts: of the chips.
        faults: in words.
    """
    first = facts["metrics"][0]
    told = [_average(facts, first, faults)]
    worst = _worst(first)
    if worst is not None and facts["struck"]:
        at_best = "at least" if first["lower_is_better"] else "at most"
        told.append(
            f"One chip in twenty has {at_best} {_value(first, worst)} ({_interval(first, worst)})."
        )
    accepted = first["accepted"]
    if accepted is not None:
        bound = "at most" if first["lower_is_better"] else "at least"
        told.append(
            f"{percent(accepted['value'])} of chips have {bound} "
            f"{_number(first, accepted['level'])} "
            f"({percent(accepted['low'])} to {percent(accepted['high'])})."
        )
    for metric in facts["metrics"]:
        if metric["not_finite"]:
            told.append(
                f"{metric['name']} is infinite or no number on {metric['not_finite']} of "
                f"{facts['struck']} chips with faults, and so is its mean: read its percentiles."
            )
    return told


def _average(facts: ChipsFacts, metric: MetricFacts, faults: str) -> str:
    """The sentence that a stranger reads first."""
    mean, level = metric["mean"], percent(facts["confidence"])
    clean, value = _number(metric, metric["clean"]), _value(metric, mean)
    where = f"of {facts['examples']:,} examples"
    says = _SAYS.get(metric["name"])
    interval = f"{level} interval {_interval(metric, mean)}, {facts['chips']:,} chips"
    if says is not None:
        return (
            f"Without faults, {says} {clean} {where}; under {faults}, on {value} on average over "
            f"chips ({interval})."
        )
    return (
        f"Without faults, {metric['name']} is {clean} on {facts['examples']:,} examples; under "
        f"{faults}, {value} on average over chips ({interval})."
    )


def headline(facts: ChipsFacts, faults: str) -> str:
    """What a reader in a hurry needs: is it tolerated, what is lost on average, and at worst."""
    first = facts["metrics"][0]
    clean, mean = _number(first, first["clean"]), first["mean"]
    interval = f"{percent(facts['confidence'])} interval {_interval(first, mean)}"
    told = (
        f"Under {faults}, {first['name']} goes from {clean} to {_value(first, mean)} on average "
        f"over chips ({interval})."
    )
    accepted, worst = first["accepted"], _worst(first)
    if accepted is not None:
        bound = "at most" if first["lower_is_better"] else "at least"
        share = percents(accepted["value"], accepted["low"], accepted["high"])
        judged = "" if _is_met_by_all(first, accepted) else f"{_judgement(accepted)} "
        told = (
            f"{judged}{share[0]} of chips ({share[1]} to {share[2]}) keep "
            f"{first['name']} {bound} {_number(first, accepted['level'])}. {told}"
        )
    if worst is not None and facts["struck"]:
        at_best = "at least" if first["lower_is_better"] else "at most"
        told += f" One chip in twenty has {at_best} {_value(first, worst)}."
    return told


def _is_met_by_all(metric: MetricFacts, accepted: LevelFacts) -> bool:
    """Whether a share is asked for that no chip can miss: at least 0%, or at most 100%."""
    level = accepted["level"]
    return _is_share(metric) and (level >= 1 if metric["lower_is_better"] else level <= 0)


def _judgement(accepted: LevelFacts) -> str:
    """Whether nearly all chips pass, or most do not; neither where the interval leaves it open."""
    if accepted["low"] >= _MOST:
        return "Tolerated:"
    if accepted["high"] <= 0.5:
        return "Not tolerated:"
    return "Tolerated by a part of the chips:"


def rows(facts: ChipsFacts) -> list[tuple[str, ...]]:
    """Each metric: its name, without faults, over chips, change, worst chips, accepted ones."""
    found: list[tuple[str, ...]] = []
    for metric in facts["metrics"]:
        worst, accepted = _worst(metric), metric["accepted"]
        share = ""
        if accepted is not None:
            bound = "≤" if metric["lower_is_better"] else "≥"
            share, low, high = percents(accepted["value"], accepted["low"], accepted["high"])
            share += f" [{low}, {high}] {bound} {_number(metric, accepted['level'])}"
        found.append(
            (
                metric["name"],
                _number(metric, metric["clean"]),
                _with_interval(metric, metric["mean"]),
                _with_interval(metric, metric["change"], signed=True),
                "" if worst is None else _with_interval(metric, worst),
                share,
            )
        )
    return found


def figures(facts: ChipsFacts, most: int) -> list[tuple[str, str, str, str]]:
    """The first metrics: name, without faults, with faults and its interval; then worst chips."""
    found: list[tuple[str, str, str, str]] = []
    for i, metric in enumerate(facts["metrics"][:most]):
        clean, name = _number(metric, metric["clean"]), metric["name"]
        value, _, ends = _with_interval(metric, metric["mean"]).partition(" [")
        said = _MEANS.get(name, f"{name}, on average")
        found.append((said, clean, value, f"[{ends}" if ends else ""))
        if i > 0:
            continue
        if (worst := _worst(metric)) is not None:
            value, _, ends = _with_interval(metric, worst).partition(" [")
            found.append((f"{name}, worst 5% of chips", clean, value, f"[{ends}" if ends else ""))
        if (accepted := metric["accepted"]) is not None:
            bound = "≤" if metric["lower_is_better"] else "≥"
            level = _number(metric, accepted["level"])
            share, low, high = percents(accepted["value"], accepted["low"], accepted["high"])
            found.append((f"chips with {name} {bound} {level}", "", share, f"[{low}, {high}]"))
    return found


def metrics_on_more(facts: ChipsFacts | None, count: int) -> set[str]:
    """The metrics that were judged on more than so many examples."""
    if facts is None or facts["examples"] <= count:
        return set()
    return {metric["name"] for metric in facts["metrics"]}


def wide(facts: ChipsFacts) -> list[str]:
    """Metrics of which the chips say little, and about how many would tell more."""
    told = []
    for metric in facts["metrics"]:
        mean = metric["mean"]
        if not _is_share(metric):
            continue
        is_wide = mean["high"] - mean["low"] > _WIDE_SHARE
        if metric["lower_is_better"]:  # a share of mistakes, which may be rare
            is_wide = says_little(mean["low"], mean["high"], is_probability=True)
        if is_wide:
            more = samples_needed(facts["chips"], mean["value"], mean["low"], mean["high"])
            many = "more chips" if more is None else f"about {more:,} chips (--samples {more})"
            told.append(
                f"{metric['name']}, on average: the interval says little; {many} would tell more"
            )
    return told


def card(facts: ChipsFacts) -> dict[str, str]:
    """The first metric over chips: label, value, and where it comes from."""
    first = facts["metrics"][0]
    return {
        "label": f"{first['name']} over chips; {_number(first, first['clean'])} without faults",
        "value": _value(first, first["mean"]),
        "source": f"{percent(facts['confidence'])} interval {_interval(first, first['mean'])}",
    }


def footer(facts: ChipsFacts) -> str:
    """How many chips and examples, and what the intervals are over."""
    drawn = f"{facts['struck']:,} with faults; without, with probability"
    which = f"{drawn} {percent(facts['without_fault'])}"
    if "with_one_fault" in facts:
        which = (
            f"each single fault once; none has the probability {percent(facts['without_fault'])}, "
            f"one {percent(facts['with_one_fault'])}"
        )
    text = (
        f"{facts['chips']:,} chips ({which}), each judged on {facts['examples']:,} examples; "
        f"{percent(facts['confidence'])} intervals over chips, given the examples"
    )
    first = facts["metrics"][0]
    if (population := first["population"]) is not None:
        low, high = _number(first, population["low"]), _number(first, population["high"])
        text += f"; of {first['name']} over chips and examples like these: {low} to {high}"
    return text


def _worst(metric: MetricFacts) -> RangeFacts | None:
    level = _HIGH if metric["lower_is_better"] else _LOW
    found = (p for p in metric["percentiles"] if math.isclose(p["level"], level))
    return next(found, None)


def _is_share(metric: MetricFacts) -> bool:
    return metric["name"].startswith(_SHARES)


def _number(metric: MetricFacts, value: float, signed: bool = False, digits: int = 2) -> str:
    if not math.isfinite(value):
        return "infinite" if value != value or value > 0 else "-infinite"
    if not _is_share(metric):
        return f"{value:+.3g}" if signed else f"{value:.4g}"
    if signed:
        return f"{100 * value:+.3g} points"
    text = f"{100 * value:.{digits}f}".rstrip("0").rstrip(".")
    if text == "100" and value < 1:
        return percent(value)
    return f"{text}%" if value == 0 or abs(value) >= 1e-4 else percent(value)


def _digits(found: RangeFacts) -> int:
    """How many digits of a percentage tell the ends of its interval apart."""
    width = 100 * (found["high"] - found["low"])
    if not 0 < width < math.inf:
        return 2
    return min(max(2, 1 - math.floor(math.log10(width))), _DECIMALS)


def _value(metric: MetricFacts, found: RangeFacts) -> str:
    return _number(metric, found["value"], digits=_digits(found))


def _interval(metric: MetricFacts, found: RangeFacts) -> str:
    if not _is_share(metric) and -math.inf < found["low"] < found["high"] < math.inf:
        _, low, high = interval_numbers(found["value"], found["low"], found["high"])
        return f"{low} to {high}"
    low, high = (_number(metric, found[e], digits=_digits(found)) for e in ("low", "high"))
    return f"{low} to {high}"


def _with_interval(metric: MetricFacts, found: RangeFacts, signed: bool = False) -> str:
    if signed and _is_share(metric):
        low, high = (f"{100 * found[end]:+.3g}" for end in ("low", "high"))
        return f"{_number(metric, found['value'], True)} [{low}, {high}]"
    if _is_share(metric) or not all(math.isfinite(found[e]) for e in ("value", "low", "high")):
        low, high = (_number(metric, found[e], digits=_digits(found)) for e in ("low", "high"))
        value = _number(metric, found["value"], signed, _digits(found))
        return f"{value} [{low}, {high}]"
    value, low, high = interval_numbers(found["value"], found["low"], found["high"])
    return f"{value} [{low}, {high}]"
