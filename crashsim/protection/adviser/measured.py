"""A plan measured: chips with its schemes in place, judged on examples that did not choose it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crashsim.arrays import Floats
from crashsim.campaign.store import Store
from crashsim.errors import Interrupted
from crashsim.model.labelled import Labelled
from crashsim.results.estimate import Interval
from crashsim.sampling.chips.facts import is_lower_better
from crashsim.sampling.chips.run import chip_metrics
from crashsim.space import FaultSpace


@dataclass(frozen=True)
class Measured:
    """A metric over chips.

    Attributes:
        clean: without faults.
        mean: over chips, with its interval.
        accepted: the share of chips that reach the level, with its interval; None without one.
        level: that is asked for.
        values: (chips,) of the chips that were judged; of those without a fault, the clean one.
    """

    clean: float
    mean: Interval
    accepted: Interval | None
    level: float
    values: Floats


def measured(
    space: FaultSpace,
    examples: Labelled,
    metric: str,
    level: float | None,
    chips: int,
    seed: int,
    confidence: float,
    executor: Executor | None,
    store: str | Path | Store | None,
    progress: Callable[[int, int], None] | None,
) -> Measured:
    """Judges chips by Monte Carlo; arguments as of ``chip_metrics``.

    Raises:
        KeyboardInterrupt: Ctrl-C: a part of what a plan is measured by is no plan.
    """
    try:
        run = chip_metrics(
            space,
            examples,
            metrics=[metric],
            samples=chips,
            one_exact=False,
            seed=seed,
            confidence=confidence,
            executor=executor,
            store=store,
            progress=progress,
        )
    except Interrupted as stop:
        raise KeyboardInterrupt from stop
    law, alpha = run.found.law(0), 1 - run.confidence
    accepted = None
    if level is not None:
        reach = law.at_most if is_lower_better(metric) else law.at_least
        accepted = reach(level, alpha)
    clean = float(run.found.clean[0])
    values = np.full(run.chips, clean)
    values[: len(law.sampled)] = law.sampled
    return Measured(clean, law.mean(alpha), accepted, 0.0 if level is None else level, values)
