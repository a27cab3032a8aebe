"""The loss of each example, read in place of a model's outputs: one question instead of K.

Cross-entropy of classes, the mean squared error of other numbers, or a function of the user's own.
It is made of torch's operations, so that derivatives and the graph of the model reach through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crashsim.arguments import shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.metrics import Targets
from crashsim.metrics.layout import IGNORED, Layout, check_classes, layout_of
from crashsim.metrics.losses import are_probabilities, distance

# A name, or a function of (outputs, targets) that returns a number for each example; None: what is
# usual for the targets.
Given = str | Callable[[Tensor, Tensor], Tensor] | None

Of = Callable[[Any, Any], Any]
NAMES = ("cross-entropy", "mse")


@dataclass(frozen=True)
class Loss:
    """A loss of each example.

    Attributes:
        name: what it is called.
        of: (B,) of outputs (B, ...) and targets (B, ...).
        low: what no loss is below; None where there is no such bound.
    """

    name: str
    of: Of
    low: float | None = None

    def __call__(self, outputs: Any, targets: Any) -> Any:
        """(B, 1) of outputs (B, ...)."""
        return self.of(outputs, targets).unsqueeze(1)


def asks_for_loss(outputs: object) -> bool:
    """Whether ``outputs`` asks for the loss of each example.

    Raises:
        ArgumentError: it is another word.
    """
    if isinstance(outputs, str) and outputs != "loss":
        raise ArgumentError(f"outputs={shown(outputs)}; give numbers of outputs, or 'loss'")
    return isinstance(outputs, str)


def check_asked(outputs: object, loss: Given, has_targets: bool) -> Literal["loss"] | None:
    """``'loss'`` where ``outputs`` asks for it; None where it does not.

    Raises:
        ArgumentError: another word, a loss that is not asked for, or no targets for it.
    """
    if not asks_for_loss(outputs):
        if loss is not None:
            raise ArgumentError(f"loss={shown(loss)}: give outputs='loss' with it")
        return None
    if not has_targets:
        raise ArgumentError(
            "outputs='loss': a loss compares outputs with targets; give targets= (labels)"
        )
    return "loss"


def loss_of(given: Given, clean: Tensor, targets: Targets) -> Loss:
    """The loss that is asked for.

    Args:
        given: as ``Given`` says.
        clean: (B, ...) the outputs of some examples without faults.
        targets: (B, ...) of these examples.

    Raises:
        ArgumentError: an unknown name; outputs and targets that the loss does not fit; or a
            function that does not return a number for each example.
    """
    shape = tuple(clean.shape[1:])
    flat: Floats = clean.flatten(1).double().cpu().numpy()
    if callable(given):
        return _own(given, clean, targets)
    if given is None:
        given = _usual(shape, targets)
    try:
        if given == "cross-entropy":
            layout = layout_of(given, shape, targets)
            check_classes(given, layout, targets)
            least = torch.finfo(clean.dtype).tiny
            probabilities = are_probabilities(layout, flat)
            of = _CrossEntropy(layout, probabilities, least)
            # Probabilities that are struck may exceed one.
            return Loss(given, of, low=None if probabilities else 0.0)
        if given == "mse":
            distance(given, 2, flat, targets)  # which checks that they fit
            return Loss(given, _squared_error, low=0.0)
    except ArgumentError as error:
        reason = str(error).replace("metrics:", "loss:").replace("a metric of", "a loss of")
        raise ArgumentError(reason) from None
    else:
        raise ArgumentError(
            f"loss={shown(given)}; give one of {', '.join(NAMES)}, or a function of (outputs, "
            "targets) that returns a number for each example"
        )


def _usual(shape: tuple[int, ...], targets: Targets) -> str:
    """Cross-entropy of classes; the mean squared error of numbers in the shape of the outputs."""
    assert targets is not None
    numbers = targets.dtype.kind == "f" and targets[:1].size == _size(shape)
    if numbers and (targets.shape[1:] == shape or _size(shape) == 1):
        return "mse"
    if _size(shape) > 1:
        return "cross-entropy"
    raise ArgumentError(
        f"loss: the model has one output, and targets are {targets.dtype}; say what the loss is: "
        "loss='mse', or a function of (outputs, targets) that returns a number for each example"
    )


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass(frozen=True)
class _CrossEntropy:
    """Minus the logarithm of the target's probability, in nats; the mean of those positions of an
    example that count.

    Attributes:
        layout: where the classes are among the outputs.
        probabilities: whether outputs are those of a softmax.
        least: probability whose logarithm is taken.
    """

    layout: Layout
    probabilities: bool
    least: float

    def __call__(self, outputs: Any, targets: Any) -> Any:
        layout = self.layout
        if layout.positions == 1:
            split = outputs.flatten(1).unsqueeze(1)
        else:  # (B, positions, classes)
            split = outputs.movedim(layout.axis + 1, -1).flatten(1, -2)
        logs = split.clamp(min=self.least).log() if self.probabilities else split.log_softmax(-1)
        wanted = targets.reshape(split.shape[0], -1).long()
        chosen = logs.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        if layout.positions == 1:
            return -chosen.squeeze(-1)
        counts = (wanted != IGNORED).to(chosen.dtype)
        return -(chosen * counts).sum(-1) / counts.sum(-1).clamp(min=1.0)


def _squared_error(outputs: Any, targets: Any) -> Any:
    """The mean of squared differences over an example's outputs."""
    wanted = targets.to(outputs).reshape(targets.shape[0], -1)
    return (outputs.flatten(1) - wanted).square().mean(-1)


@dataclass(frozen=True)
class _OwnFunction:
    """A function of the user's, given targets that are real numbers in the outputs' type."""

    function: Of

    def __call__(self, outputs: Any, targets: Any) -> Any:
        return self.function(outputs, targets.to(outputs))


def _own(function: Callable[[Tensor, Tensor], Tensor], clean: Tensor, targets: Targets) -> Loss:
    """A function of the user's, tried on the clean outputs."""
    assert targets is not None
    name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
    of: Of = _OwnFunction(function) if targets.dtype.kind == "f" else function
    try:
        found = of(clean.clone(), torch.from_numpy(np.array(targets)).to(clean.device))
    except Exception as error:
        raise ArgumentError(
            f"loss: {name!r} raised {type(error).__name__}: {error}, given outputs "
            f"{tuple(clean.shape)} and targets {targets.shape}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != clean.shape[:1]:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentError(
            f"loss: {name!r} returned {shape} for {len(clean)} examples; return a tensor with a "
            "number for each (reduction='none')"
        )
    return Loss(name, of)
