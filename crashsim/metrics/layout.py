"""Which of an example's K outputs are the classes of one position: a pixel, a token, the example.

Outputs come flattened. Those of a classifier are the classes of one position; those of a network
for images have the classes on the first axis (C, H, W), as torch's losses want them; those of a
language model on the last (T, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.metrics.metric import Targets

IGNORED = -100  # the class of positions that do not count, as in torch's losses


@dataclass(frozen=True)
class Layout:
    """The axes of an example's outputs.

    Attributes:
        shape: of one example's outputs.
        axis: of ``shape``, on which the classes are.
    """

    shape: tuple[int, ...]
    axis: int

    @property
    def classes(self) -> int:
        """C."""
        return self.shape[self.axis]

    @property
    def positions(self) -> int:
        """P: the number of positions, 1 for a classifier."""
        return int(np.prod(self.shape)) // max(self.classes, 1)

    def split(self, outputs: Floats) -> Floats:
        """(..., P, C) of outputs (..., K)."""
        leading = outputs.shape[:-1]
        if self.positions == 1:
            return outputs.reshape(*leading, 1, self.classes)
        apart = outputs.reshape(*leading, *self.shape)
        moved = np.moveaxis(apart, len(leading) + self.axis, -1)
        return moved.reshape(*leading, self.positions, self.classes)


def layout_of(name: str, shape: tuple[int, ...], targets: Targets) -> Layout:
    """Where the classes are, of outputs that targets go with.

    Args:
        name: of the metric that asks, for messages.
        shape: of one example's outputs.
        targets: (B, ...) classes; None: each example has one class.

    Raises:
        ArgumentError: outputs of one number; or targets that do not say where the classes are.
    """
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    own = () if targets is None else targets.shape[1:]
    if int(np.prod(own)) == 1 and len(wide) == 1:
        return Layout(shape, wide[0])
    fits = [axis for axis in range(len(shape)) if shape[:axis] + shape[axis + 1 :] == tuple(own)]
    fits = [axis for axis in fits if axis in (0, len(shape) - 1) and shape[axis] > 1]
    if len(fits) == 1:
        return Layout(shape, fits[0])
    if targets is None and len(shape) > 1:
        return Layout(shape, 0 if len(shape) > 2 else len(shape) - 1)
    what = "none" if targets is None else f"of shape (B, {', '.join(map(str, own))})"
    why = "either axis may hold the classes" if fits else "they do not fit"
    raise ArgumentError(
        f"metrics: {name!r} compares classes; the outputs of an example have the shape {shape}, "
        f"targets are {what.replace(', )', ',)')}: {why}. Give a class for each position, or a "
        "metric of your own, a function of (outputs, targets)"
    )


def check_classes(name: str, layout: Layout, targets: Targets) -> None:
    """Raises ArgumentError unless targets are classes of the outputs, or ``IGNORED``."""
    try:
        flat_classes(layout, targets)
    except ArgumentError as error:
        raise ArgumentError(f"metrics: {name!r}: {error}") from None


def flat_classes(layout: Layout, targets: Targets) -> Floats:
    """(B, P) whole numbers: classes of the outputs, or ``IGNORED``.

    Raises:
        ArgumentError: targets are none. Those of some examples do not speak for the next ones, so
            all are looked at.
    """
    if targets is None:
        raise ArgumentError("compares outputs with targets; give targets=")
    is_real = targets.dtype.kind == "f" and bool((targets == np.round(targets)).all())
    if targets.dtype.kind not in "iub" and not is_real:
        raise ArgumentError(
            f"wants classes for targets, whole numbers; they are {targets.dtype}, and not all whole"
        )
    is_ignored = targets == IGNORED
    wrong = ~is_ignored & ((targets < 0) | (targets >= layout.classes))
    if wrong.any():
        raise ArgumentError(
            f"targets hold the class {targets[wrong].flat[0]}, and the model has "
            f"{layout.classes} (from 0); {IGNORED} marks positions that do not count"
        )
    if layout.positions == 1 and is_ignored.any():
        raise ArgumentError(
            f"targets hold {IGNORED}, which marks positions that do not count, and each example "
            "has one position; leave out the examples that have no class"
        )
    return targets.reshape(len(targets), -1).astype(np.int64)
