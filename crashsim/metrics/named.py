"""Metrics by name, and functions of one's own as metrics.

Names: ``accuracy``, ``top-5`` (any number), ``error-rate``, ``class-change``, ``sdc-1``, ``sdc-5``,
``due``, ``cross-entropy``, ``perplexity``, ``mse``, ``mae``, ``mean-iou``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim.arguments import nearest, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.metrics import classes, losses
from crashsim.metrics.layout import Layout, check_classes, layout_of
from crashsim.metrics.metric import Event, Mean, OfSums, Targets

NAMES = (
    "accuracy",
    "top-5",
    "error-rate",
    "class-change",
    "sdc-1",
    "sdc-5",
    "due",
    "cross-entropy",
    "perplexity",
    "mse",
    "mae",
    "mean-iou",
)
_NUMBERED = re.compile(r"(top|sdc)-([1-9][0-9]{0,5})")
Made = Event | Mean | OfSums


def metric_of(given: Any, clean: Floats, shape: Sequence[int], targets: Targets) -> Made:
    """A metric from its name, or from a function of (outputs, targets); metrics stay themselves.

    Args:
        given: what a user gave.
        clean: (B, K) outputs of some examples without faults.
        shape: of one example's outputs, before they are flattened.
        targets: (B, ...) of these examples, or None.

    Raises:
        ArgumentError: an unknown name, or outputs and targets that the metric does not fit.
    """
    if isinstance(given, Event | Mean | OfSums):
        return given
    if isinstance(given, str):
        return _named(given, clean, tuple(shape), targets)
    if callable(given):
        return _of_function(given, clean, tuple(shape), targets)
    raise ArgumentError(
        f"metrics: {shown(given)}; give a name ({', '.join(NAMES)}), a crashsim.Event or "
        "crashsim.Mean, or a function of (outputs, targets)"
    )


def check_name(name: str) -> str:
    """The name of a metric. Raises ArgumentError where there is none of that name."""
    if name not in NAMES and _NUMBERED.fullmatch(name) is None:
        raise ArgumentError(
            f"metrics: {name!r} is not known{nearest(name, NAMES)}; choose among {', '.join(NAMES)}"
        )
    return name


def _named(name: str, clean: Floats, shape: tuple[int, ...], targets: Targets) -> Made:
    if name == "due":
        return classes.DUE
    if name in ("mse", "mae"):
        return losses.distance(name, 2 if name == "mse" else 1, clean, targets)
    numbered = _NUMBERED.fullmatch(check_name(name))
    k = int(numbered[2]) if numbered else 1
    if name == "class-change" or name.startswith("sdc"):
        layout = _layout(name, shape, targets if _has_positions(targets) else None)
        if name == "class-change" and layout.positions == 1:
            return classes.CLASS_CHANGE
        if name.startswith("sdc"):
            return classes.corruption(name, layout, k)
        return classes.changes(name, layout)
    layout = _layout(name, shape, targets)
    check_classes(name, layout, targets)
    match name:
        case "error-rate":
            return classes.error_rate(name, layout)
        case "cross-entropy":
            return losses.cross_entropy(name, layout, clean)
        case "perplexity":
            return losses.perplexity(name, layout, clean)
        case "mean-iou":
            return classes.mean_iou(name, layout)
    return classes.accuracy(name, layout, k)


def _has_positions(targets: Targets) -> bool:
    return targets is not None and targets.dtype.kind in "iub" and targets[:1].size > 1


def _layout(name: str, shape: tuple[int, ...], targets: Targets) -> Layout:
    if int(np.prod(shape)) < 2:
        raise ArgumentError(
            f"metrics: {name!r} compares classes, and the model has one output; give a metric of "
            "your own, a function of (outputs, targets)"
        )
    return layout_of(name, shape, targets)


def usual(clean: Floats, shape: Sequence[int], targets: Targets) -> tuple[Made, ...]:
    """The metrics of labelled data that were not asked for by name.

    Of classes: accuracy, silent corruption and DUE; of other numbers, the mean squared error.
    """
    if targets is None:
        return ()
    try:
        found = [metric_of(n, clean, shape, targets) for n in ("accuracy", "sdc-1", "due")]
    except ArgumentError as error:
        try:
            return (metric_of("mse", clean, shape, targets),)
        except ArgumentError:
            raise error from None
    return tuple(found)


@dataclass(frozen=True)
class _OwnFunction:
    """A user's function of the outputs of one chip, (B, ...) in the model's shape, and targets.

    It is given tensors and called for each chip.
    """

    function: Callable[[Any, Any], Any]
    shape: tuple[int, ...]
    name: str

    def __call__(self, outputs: Floats, clean: Floats, targets: Targets) -> Any:
        import torch

        with_targets = None if targets is None else torch.from_numpy(np.array(targets))
        found = []
        for each in outputs:
            given = torch.from_numpy(each.reshape(len(each), *self.shape).copy())
            result = np.asarray(self.function(given, with_targets))
            if result.shape != (len(each),):
                raise ArgumentError(
                    f"metrics: {self.name!r} returned shape {result.shape} for {len(each)} "
                    "examples; return a number for each (reduction='none')"
                )
            found.append(result)
        return np.stack(found)


def _of_function(
    function: Callable[..., Any], clean: Floats, shape: tuple[int, ...], targets: Targets
) -> Made:
    name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
    own = _OwnFunction(function, shape, name)
    try:
        tried = own(clean[None], clean, targets)
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"metrics: {name!r} raised {type(error).__name__}: {error}, given outputs "
            f"{(len(clean), *shape)} and targets "
            f"{'None' if targets is None else targets.shape}"
        ) from error
    return Event(name, own) if tried.dtype.kind == "b" else Mean(name, own)
