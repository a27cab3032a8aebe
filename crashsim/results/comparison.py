"""Which architecture tolerates faults best, and is the difference more than chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats

from crashsim.arguments import instance, one_of
from crashsim.errors import ArgumentError
from crashsim.notebook import fragment
from crashsim.results.estimate import Estimate
from crashsim.results.numbers import interval_numbers, percents
from crashsim.results.record import Record

By = Literal["variance", "class-change"]
_ALPHA = 0.05


@dataclass(frozen=True)
class Measure:
    """One quantity of a contender: its value and interval.

    Over several initialisations, the value is the geometric mean and the interval Student's over
    the initialisations' logarithms; for one, Monte Carlo's own.
    """

    value: float
    low: float
    high: float
    each: list[float]  # one value for each initialisation


@dataclass(frozen=True)
class Contender:
    """One model, or one architecture over several initialisations.

    Attributes:
        name: as the user called it.
        measures: by quantity; what has no class to change has no ``class-change``.
        relative_variance: Var Delta over the variance of the clean outputs across inputs (both
            summed over outputs), which allows for networks with larger outputs.
        accuracy: of the clean network on the data, averaged over initialisations; None without
            targets.
        coordinates, parameters: number of fault coordinates and of parameters.
    """

    name: str
    measures: dict[str, Measure]
    relative_variance: float
    accuracy: float | None
    coordinates: int
    parameters: int


@dataclass(frozen=True)
class Comparison:
    """Contenders from the most tolerant to the least.

    Attributes:
        by: the quantity that ranks them.
        contenders: in order.
        p_values: that each contender and the next are really equal, corrected for the number of
            neighbours compared (Holm 1979).
        inits: initialisations of each.
        missing: models that were to be compared too, before an interrupt.
        samples: of Monte Carlo, the fewest of a model.
    """

    by: By
    contenders: list[Contender]
    p_values: list[float]
    inits: int
    missing: list[str] = field(default_factory=list)
    samples: int = 0

    @property
    def partial(self) -> bool:
        """Whether it was interrupted, so that models are missing."""
        return bool(self.missing)

    @property
    def is_significant(self) -> list[bool]:
        """Whether each contender beats the next at the 5% level."""
        return [p < _ALPHA for p in self.p_values]

    @property
    def verdict(self) -> str:
        if not self.partial:
            return self._ranking
        told = f"Partial, as it was interrupted before {', '.join(self.missing)}."
        if len(self.contenders) < 2:
            return f"{told} Only {self.contenders[0].name} was scored."
        return f"{told} Of the others, {self._ranking}"

    @property
    def _ranking(self) -> str:
        first = self.contenders[0].name
        tied = [c.name for c in self.contenders[1:] if not self._beaten(c)]
        what = "the lowest Var Δ" if self.by == "variance" else "the fewest changes of class"
        scope = (
            f"over {self.inits} initialisations each"
            if self.inits > 1
            else "of these particular weights (use --inits to compare architectures)"
        )
        if not tied:
            return f"{first} has {what}, {scope}."
        return (
            f"{first} has {what}, {scope}, but {', '.join(tied)} cannot be told from it "
            "with these samples."
        )

    def _beaten(self, contender: Contender) -> bool:
        """Whether a significant step separates a contender from the first."""
        return any(self.is_significant[: self.contenders.index(contender)])

    def to_dataframe(self) -> Any:
        """A DataFrame of pandas: a row for each model and measure.

        Raises:
            MissingExtraError: without pandas; names the command that installs it.
        """
        from crashsim.results.tables import of_comparison

        return of_comparison(self).to_dataframe()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = []
        for i, one in enumerate(self.contenders):
            change, variance = one.measures.get("class-change"), one.measures["variance"]
            shown = (
                "" if change is None else _shown(percents(change.value, change.low, change.high))
            )
            ends = interval_numbers(variance.value, variance.low, variance.high)
            accuracy = "" if one.accuracy is None else f"{one.accuracy:.1%}"
            rows.append((str(i + 1), one.name, shown, _shown(ends), accuracy))
        titles = ("", "model", "P(class changes)", "Var Δ", "accuracy")
        return fragment("crashsim: comparison", self.verdict, titles, rows, names=2)

    def to_dict(self) -> dict[str, Any]:
        plain = {"schema": 1, "verdict": self.verdict, "partial": self.partial}
        return {**plain, **asdict(self)}


def _shown(texts: tuple[str, str, str]) -> str:
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def compare(
    scores: Mapping[str, Sequence[Record]],
    by: By | None = None,
    accuracies: Mapping[str, Sequence[float]] | None = None,
    spreads: Mapping[str, Sequence[float]] | None = None,
    missing: Sequence[str] = (),
) -> Comparison:
    """Ranks models by their scores.

    Args:
        scores: for each name, a score for each initialisation; all with Monte Carlo.
        by: what to rank by; by default ``class-change`` where the models classify, else
            ``variance``.
        accuracies: for each name, the clean accuracy of each initialisation.
        spreads: for each name, the variance of the clean outputs across inputs, summed over
            outputs, of each initialisation.
        missing: names without a score, because an interrupt came first: the comparison is partial.

    Raises:
        ArgumentError: fewer than two names (one, where others are missing), or a score without
            Monte Carlo.
    """
    instance("scores", scores, Mapping, "a list of scores for each name")
    for argument, groups in (("accuracies", accuracies), ("spreads", spreads)):
        if groups is not None:
            instance(argument, groups, Mapping, "a list for each name")
    for name, group in scores.items():
        if (
            not isinstance(group, Sequence)
            or not group
            or not all(isinstance(score, Record) for score in group)
        ):
            raise ArgumentError(f"scores[{name!r}]={group!r}; give a list of scores")
    if by is not None:
        one_of("by", by, ("variance", "class-change"))
    if len(scores) < (1 if missing else 2):
        raise ArgumentError(f"models: {len(scores)} to compare; give at least two")
    contenders = [
        _contender(name, list(group), (accuracies or {}).get(name), (spreads or {}).get(name))
        for name, group in scores.items()
    ]
    classify = all("class-change" in c.measures for c in contenders)
    by = by or ("class-change" if classify else "variance")
    lacking = [c.name for c in contenders if by not in c.measures]
    if lacking:
        raise ArgumentError(f"by={by!r}: {lacking[0]!r} has a single output; use by='variance'")
    contenders.sort(key=lambda c: c.measures[by].value)
    raw = [_p_value(a.measures[by], b.measures[by]) for a, b in pairwise(contenders)]
    inits = min(len(group) for group in scores.values())
    samples = min(score.samples for group in scores.values() for score in group)
    return Comparison(by, contenders, _holm(raw), inits, list(missing), samples)


def _contender(
    name: str,
    scores: list[Record],
    accuracies: Sequence[float] | None,
    spreads: Sequence[float] | None,
) -> Contender:
    measures = {}
    for quantity in ("variance", "class-change"):
        found = [s.find("monte-carlo", quantity) for s in scores]
        estimates = [e for e in found if e is not None]
        if len(estimates) == len(scores):
            measures[quantity] = _measure(estimates)
    if "variance" not in measures:
        raise ArgumentError(f"scores: {name!r} has no Monte Carlo estimate to compare by")
    relative = (
        float(np.mean([v / s for v, s in zip(measures["variance"].each, spreads, strict=True)]))
        if spreads is not None and min(spreads) > 0
        else math.nan
    )
    return Contender(
        name,
        measures,
        relative,
        None if accuracies is None else float(np.mean(accuracies)),
        scores[0].coordinates,
        int(scores[0].model["parameters"]),
    )


def _measure(estimates: list[Estimate]) -> Measure:
    each = [e.value for e in estimates]
    if len(each) == 1:
        low, high = estimates[0].low, estimates[0].high
        return Measure(each[0], low or 0.0, math.inf if high is None else high, each)
    if min(each) <= 0:  # no logarithm: compare on the plain scale
        mean, half = float(np.mean(each)), _half_width(np.array(each))
        return Measure(mean, max(mean - half, 0.0), mean + half, each)
    logs = np.log(each)
    mean, half = float(logs.mean()), _half_width(logs)
    return Measure(math.exp(mean), math.exp(mean - half), math.exp(mean + half), each)


def inits_needed(each: Sequence[float], factor: float = 2.0) -> int | None:
    """How many initialisations would know the geometric mean to a factor, were they as scattered.

    None where more than 1,000, or one of them is 0.
    """
    if len(each) < 2 or min(each) <= 0:
        return None
    scatter = float(np.log(each).std(ddof=1))
    for n in range(len(each), 1001):
        if stats.t.ppf(1 - _ALPHA / 2, n - 1) * scatter / math.sqrt(n) <= math.log(factor):
            return n
    return None


def _half_width(values: np.typing.NDArray[np.float64]) -> float:
    n = len(values)
    return float(stats.t.ppf(1 - _ALPHA / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))


def _p_value(a: Measure, b: Measure) -> float:
    """That two measures are equal: Welch's test over initialisations, or a z-test."""
    if len(a.each) > 1 and len(b.each) > 1:
        both = np.array([*a.each, *b.each])
        if np.ptp(both) == 0:
            return 1.0
        scale = np.log if both.min() > 0 else np.asarray
        return float(stats.ttest_ind(scale(a.each), scale(b.each), equal_var=False).pvalue)
    # The interval of a plain difference, from each side's own half-width towards the other.
    gap = b.value - a.value
    width = math.hypot(a.high - a.value, b.value - b.low) / stats.norm.ppf(1 - _ALPHA / 2)
    if gap <= 0 or not math.isfinite(width):
        return 1.0
    return float(2 * stats.norm.sf(gap / width)) if width > 0 else 0.0


def _holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction."""
    n = len(p_values)
    corrected = [0.0] * n
    running = 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        running = max(running, min(1.0, (n - rank) * p_values[i]))
        corrected[i] = running
    return corrected
