"""Metrics: what is asked of the outputs, as an event or as a number for each sample and example.

By name (``crashsim.metrics.named``), or of one's own: a function of (outputs, targets), or a name
and a function of arrays:

    >>> import crashsim
    >>> is_right = crashsim.Event(
    ...     "is-right", lambda outputs, clean, targets: outputs.argmax(-1) == targets
    ... )
    >>> score = crashsim.Mean("score", lambda outputs, clean, targets: outputs.max(-1))

Give them to ``score(..., targets=y, metrics=["accuracy", is_right, score])`` or ``monte_carlo``.
"""

from crashsim.metrics.asked import MOST, RESERVED, AskedMetrics, Metric, read_targets
from crashsim.metrics.classes import CLASS_CHANGE, NOT_FINITE, predicted_class
from crashsim.metrics.metric import Event, Mean, OfSums, Targets, bounds_of
from crashsim.metrics.named import NAMES, usual

__all__ = [
    "CLASS_CHANGE",
    "MOST",
    "NAMES",
    "NOT_FINITE",
    "RESERVED",
    "AskedMetrics",
    "Event",
    "Mean",
    "Metric",
    "OfSums",
    "Targets",
    "bounds_of",
    "predicted_class",
    "read_targets",
    "usual",
]
