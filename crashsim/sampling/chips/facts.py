"""What a run over chips found, as the plain data of a record."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crashsim.results.estimate import Interval
from crashsim.results.schema import ChipsFacts, LevelFacts, MetricFacts, RangeFacts
from crashsim.sampling.chips.run import ChipRun

PERCENTILES = (0.01, 0.05, 0.5, 0.95)
_LOSS = 0.01  # of accuracy that a chip may show and still be accepted, unless said
_HIGHER = ("accuracy", "top-", "mean-iou")  # the metrics of which more is better
_LOWER = (
    "error-rate",
    "class-change",
    "sdc-",
    "due",
    "cross-entropy",
    "perplexity",
    "mse",
    "mae",
    "loss",
)


def is_lower_better(name: str) -> bool:
    """Whether less of a metric is better; of one's own, more is."""
    return name.startswith(_LOWER)


def chips_facts(run: ChipRun, accept: Mapping[str, float]) -> ChipsFacts:
    """What a run found.

    Args:
        run: over chips.
        accept: by metric, the worst value with which a chip is accepted: at least so much, or at
            most where less is better. Of the accuracies, by default a point below the clean one.
    """
    found, alpha = run.found, 1 - run.confidence
    metrics = []
    for number, metric in enumerate(found.asked.metrics):
        law, clean = found.law(number), float(found.clean[number])
        mean = law.mean(alpha)
        limit = accept.get(metric.name)
        if limit is None and metric.name.startswith(_HIGHER) and clean > _LOSS:
            limit = clean - _LOSS  # of a network that is never right, every chip is as good
        accepted = None
        if limit is not None:
            lower = is_lower_better(metric.name)
            share = law.at_most(limit, alpha) if lower else law.at_least(limit, alpha)
            accepted = LevelFacts(level=limit, **_range(share))
        population = found.of_population(number, alpha)
        judged = np.concatenate([found.known[1:, number], found.values[:, number]])
        lost = int((~np.isfinite(judged)).sum())
        metrics.append(
            MetricFacts(
                name=metric.name,
                clean=clean,
                mean=_range(mean),
                change=_range(mean, clean),
                population=None if population is None else _range(population[0]),
                population_change=None if population is None else _range(population[1]),
                percentiles=[
                    LevelFacts(level=level, **_range(law.quantile(level, alpha)))
                    for level in PERCENTILES
                ],
                accepted=accepted,
                lower_is_better=is_lower_better(metric.name),
                not_finite=lost,
            )
        )
    sums = found.sums if found.singles is None else found.singles + found.sums
    facts = ChipsFacts(
        chips=run.chips,
        struck=sums.struck,
        without_fault=found.none,
        examples=found.examples,
        confidence=run.confidence,
        stopped=run.stopped,
        rows=sums.rows,
        metrics=metrics,
    )
    if found.singles is not None:
        facts["with_one_fault"] = float(found.chances.sum())
    return facts


def _range(interval: Interval, less: float = 0.0) -> RangeFacts:
    value, low, high = (float(end) - less for end in (interval.value, interval.low, interval.high))
    return RangeFacts(value=value, low=low, high=high)
