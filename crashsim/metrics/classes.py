"""Metrics of predicted classes: accuracy, top-k, errors, class change, silent corruption, DUE.

Outputs that are not finite are seen by whoever looks: a detected unrecoverable error (DUE). They
give no right answer, so they count as wrong and as changed, and as no *silent* data corruption
(SDC). SDC-1: the predicted class is not that without faults; SDC-5: it is not among the five
likeliest without faults (Li et al., Understanding error propagation in deep learning neural network
(DNN) accelerators and applications, SC 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.metrics.layout import IGNORED, Layout, flat_classes
from crashsim.metrics.metric import Event, OfSums, Targets

Truths = NDArray[np.bool_]


def predicted_class(outputs: Any) -> Any:
    """The class (...) that outputs (..., K) of numpy or torch predict: the first of the largest."""
    return outputs.argmax(-1)


def not_finite(outputs: Floats) -> Truths | None:
    """(...) of outputs (..., K): whether some are NaN or infinite; None where none are anywhere."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(outputs.sum()):
            return None
    found = np.asarray(~np.isfinite(outputs).all(-1))
    return found if found.any() else None


def _changes_class(outputs: Floats, clean: Floats, targets: Targets) -> Truths:
    changed: Truths = predicted_class(outputs) != predicted_class(clean)
    lost = not_finite(outputs)
    return changed if lost is None else changed | lost


CLASS_CHANGE = Event("class-change", _changes_class)
"""The predicted class is another one, or an output is infinite or NaN, so that there is none."""


def _is_lost(outputs: Floats, clean: Floats, targets: Targets) -> Truths:
    lost = not_finite(outputs)
    return np.zeros(outputs.shape[:2], dtype=np.bool_) if lost is None else lost


NOT_FINITE = Event("not-finite", _is_lost)
"""An output is infinite or NaN: an error that shows itself."""

DUE = Event("due", _is_lost)
"""The same under the field's name, as a metric of chips."""


def rank_of(outputs: Floats, classes: NDArray[Any]) -> NDArray[Any]:
    """(...) how many classes outputs (..., C) put before the given one (...): 0 for the first."""
    own = np.take_along_axis(outputs, classes[..., None], -1)
    before = np.arange(outputs.shape[-1]) < classes[..., None]
    found: NDArray[Any] = ((outputs > own) | ((outputs == own) & before)).sum(-1)
    return found


@dataclass(frozen=True)
class _Position:
    """Something of the classes of each position (S, B, P), of outputs that are finite.

    Attributes:
        layout: of the outputs.
        k: of the likeliest classes.
    """

    layout: Layout
    k: int = 1

    def _judged(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        raise NotImplementedError

    def _of(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        """(S, B, P)."""
        found = self._judged(self.layout.split(outputs), self.layout.split(clean), targets)
        lost = not_finite(outputs)
        return found if lost is None else found & ~lost[..., None]

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Any:
        """(S, B) truth values of the only position; of several, (S, B, 2) how many, of how many."""
        found = self._of(outputs, clean, targets)
        if self.layout.positions == 1:
            return found[..., 0]
        return _counted(found, targets)


def _counted(found: Truths, targets: Targets) -> Floats:
    count = np.ones(found.shape[1:])
    if targets is not None and targets.size == count.size:  # one for each position
        count = (targets.reshape(count.shape) != IGNORED).astype(np.float64)
    counts = np.broadcast_to(count.sum(-1), found.shape[:2])
    return np.stack([(found * count).sum(-1), counts], axis=-1)


@dataclass(frozen=True)
class _Right(_Position):
    """The target is among the k likeliest classes."""

    def _judged(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        wanted = flat_classes(self.layout, targets)
        if self.k == 1:
            right: Truths = predicted_class(outputs) == wanted
            return right
        classes = np.broadcast_to(np.maximum(wanted, 0), outputs.shape[:-1])
        return rank_of(outputs, classes) < self.k


@dataclass(frozen=True)
class _Wrong(_Right):
    """The target is not the likeliest class, or there is no answer."""

    def _of(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        return ~super()._of(outputs, clean, targets)


@dataclass(frozen=True)
class _Corrupted(_Position):
    """The predicted class is not among the k likeliest without faults."""

    def _judged(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        now = predicted_class(outputs)
        if self.k == 1:
            changed: Truths = now != predicted_class(clean)
            return changed
        return rank_of(np.broadcast_to(clean, outputs.shape), now) >= self.k


@dataclass(frozen=True)
class _Changed(_Corrupted):
    """The predicted class is another than without faults, or there is no answer."""

    def _of(self, outputs: Floats, clean: Floats, targets: Targets) -> Truths:
        found = super()._of(outputs, clean, targets)
        lost = not_finite(outputs)
        return found if lost is None else found | lost[..., None]


def share(sums: Floats) -> Floats:
    """(n,) of sums (n, 2): the first over the second; 0 of nothing."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def _as_metric(name: str, layout: Layout, judged: Callable[..., Any]) -> Event | OfSums:
    if layout.positions == 1:
        return Event(name, judged)
    return OfSums(name, judged, 2, share, 0.0, 1.0)


def accuracy(name: str, layout: Layout, k: int = 1) -> Event | OfSums:
    """How many examples, or positions of all examples, have the target among the k likeliest."""
    return _as_metric(name, layout, _Right(layout, k))


def error_rate(name: str, layout: Layout) -> Event | OfSums:
    """How many examples or positions have another target than the likeliest class."""
    return _as_metric(name, layout, _Wrong(layout))


def corruption(name: str, layout: Layout, k: int = 1) -> Event | OfSums:
    """Silent data corruption: finite outputs, whose class is not among the k without faults."""
    return _as_metric(name, layout, _Corrupted(layout, k))


def changes(name: str, layout: Layout) -> Event | OfSums:
    """How many examples or positions have another class than without faults, or none."""
    return _as_metric(name, layout, _Changed(layout))


@dataclass(frozen=True)
class _Overlaps:
    """Of each class: positions of which both prediction and target are it, and one of them."""

    layout: Layout

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Floats:
        classes = self.layout.classes
        wanted = flat_classes(self.layout, targets)
        predicted = predicted_class(self.layout.split(outputs))
        lost = not_finite(outputs)
        if lost is not None:  # no class
            predicted = np.where(lost[..., None], classes, predicted)
        counts = wanted != IGNORED
        both = np.zeros((*outputs.shape[:2], classes))
        either = np.zeros_like(both)
        for c in range(classes):
            is_now, is_wanted = (predicted == c) & counts, (wanted == c) & counts
            both[..., c] = (is_now & is_wanted).sum(-1)
            either[..., c] = (is_now | is_wanted).sum(-1)
        return np.concatenate([both, either], axis=-1)


def _mean_overlap(sums: Floats) -> Floats:
    both, either = np.split(sums, 2, axis=1)
    there = either > 0
    shares = np.divide(both, either, out=np.zeros_like(both), where=there)
    found: Floats = shares.sum(1) / np.maximum(there.sum(1), 1)
    return found


def mean_iou(name: str, layout: Layout) -> OfSums:
    """Mean over classes of intersection over union, of all positions of all examples.

    Classes that neither the targets nor the predictions hold are left out, as is customary.
    """
    return OfSums(name, _Overlaps(layout), 2 * layout.classes, _mean_overlap, 0.0, 1.0)
