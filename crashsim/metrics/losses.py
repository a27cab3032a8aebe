"""Losses: cross-entropy and perplexity of classes, mean squared and absolute error.

Outputs that are not finite lose without limit: their loss is infinite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.metrics.classes import DUE, not_finite, share
from crashsim.metrics.layout import IGNORED, Layout, flat_classes
from crashsim.metrics.metric import Mean, OfSums, Targets

_SUMS_TO_ONE = 1e-4  # rounding of half precision aside
_LEAST = 1e-300  # probability whose logarithm is taken


def are_probabilities(layout: Layout, clean: Floats) -> bool:
    """Whether the outputs are those of a softmax, and not what a softmax is taken of."""
    split = layout.split(clean)
    return bool((split >= 0).all() and (np.abs(split.sum(-1) - 1) < _SUMS_TO_ONE).all())


@dataclass(frozen=True)
class _CrossEntropy:
    """Minus the logarithm of the target's probability, in nats."""

    layout: Layout
    probabilities: bool

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Floats:
        split, wanted = self.layout.split(outputs), flat_classes(self.layout, targets)
        classes = np.broadcast_to(np.maximum(wanted, 0), split.shape[:-1])[..., None]
        with np.errstate(invalid="ignore", over="ignore"):
            if self.probabilities:
                chosen = np.take_along_axis(split, classes, -1)[..., 0]
                loss = -np.log(np.maximum(chosen, _LEAST))
            else:
                top = split.max(-1, keepdims=True)
                norm = np.log(np.exp(split - top).sum(-1)) + top[..., 0]
                loss = norm - np.take_along_axis(split, classes, -1)[..., 0]
        lost = not_finite(outputs)
        if lost is not None:
            loss = np.where(lost[..., None], np.inf, loss)
        if self.layout.positions == 1:
            only: Floats = loss[..., 0]
            return only
        counts = np.broadcast_to((wanted != IGNORED).astype(np.float64), loss.shape)
        total = np.where(counts > 0, loss, 0.0).sum(-1)
        return np.stack([total, counts.sum(-1)], axis=-1)


def cross_entropy(name: str, layout: Layout, clean: Floats) -> Mean | OfSums:
    """Mean cross-entropy of the targets, of examples or of positions of all examples, in nats."""
    loss = _CrossEntropy(layout, are_probabilities(layout, clean))
    low = None if loss.probabilities else 0.0  # those that are struck may exceed one
    if layout.positions == 1:
        return Mean(name, loss, low)
    return OfSums(name, loss, 2, share, low)


@dataclass(frozen=True)
class _WithCount:
    """The loss of the only position, and that it is one."""

    loss: _CrossEntropy

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Floats:
        found = self.loss(outputs, clean, targets)
        return np.stack([found, np.ones_like(found)], -1) if found.ndim == 2 else found


def _exponential(sums: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(share(sums))


def perplexity(name: str, layout: Layout, clean: Floats) -> OfSums:
    """The exponential of the mean cross-entropy of all positions (tokens) of all examples."""
    loss = _CrossEntropy(layout, are_probabilities(layout, clean))
    low = 0.0 if loss.probabilities else 1.0
    return OfSums(name, _WithCount(loss), 2, _exponential, low)


@dataclass(frozen=True)
class _Distance:
    """Mean over outputs of a power of the distance from the targets."""

    power: int

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Floats:
        assert targets is not None
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(outputs - targets.reshape(len(targets), -1).astype(np.float64))
            found: Floats = (off**self.power).mean(-1)
        lost = not_finite(outputs)
        return found if lost is None else np.where(lost, np.inf, found)


def _only(outputs: Floats, clean: Floats, targets: Targets) -> Floats:
    """The only output; infinite where it is not finite."""
    found: Floats = outputs[..., 0]
    return np.where(np.isfinite(found), found, np.inf)


LOSS = "loss"  # where the outputs are the loss of each example already


def of_losses(metrics: Iterable[Any] | None, low: float | None) -> list[Any]:
    """What is asked where the loss of each example is read in place of the outputs.

    Args:
        metrics: as they were given.
        low: what no loss is below; None where there is no such bound.

    Raises:
        ArgumentError: the name of a metric that needs the outputs themselves.
    """
    given = [metrics] if isinstance(metrics, str) else list(metrics or [LOSS])
    for each in given:
        if isinstance(each, str) and each not in (LOSS, DUE.name):
            raise ArgumentError(
                f"metrics: {each!r} asks about the outputs, and outputs='loss' reads the loss of "
                "each example in their place; leave outputs out, or the metric"
            )
    return [Mean(LOSS, _only, low) if each == LOSS else each for each in given]


def distance(name: str, power: int, clean: Floats, targets: Targets) -> Mean:
    """Mean squared (power 2) or absolute (1) error of the outputs."""
    if targets is None:
        raise ArgumentError(f"metrics: {name!r} compares outputs with targets; give targets=")
    if targets[:1].size != clean.shape[1] or targets.dtype.kind not in "fiub":
        raise ArgumentError(
            f"metrics: {name!r} wants a number for each of {clean.shape[1]} outputs; targets are "
            f"{targets.dtype} of shape {targets.shape}"
        )
    if not np.isfinite(targets.astype(np.float64)).all():
        raise ArgumentError("targets: hold NaN or infinity; clean the data first")
    return Mean(name, _Distance(power), low=0.0)
