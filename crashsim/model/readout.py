"""The readout: which tensor of a model's output is analysed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from crashsim.errors import ArgumentError, ModelError
from crashsim.model.inputs import Inputs
from crashsim.model.loss import Loss
from crashsim.model.nested import Field, Names, children, leaves, step_into

_USUAL = "logits"  # what transformers call the outputs of a classifier


@dataclass(frozen=True)
class Readout:
    """The way to a tensor inside the model's output.

    Attributes:
        name: of the tensor, with dots; empty where it is the output itself.
        steps: attributes, indices and keys.
        axis: of the tensor, which is the batch; it is moved to the front.
        loss: what is read in its place, one number for each example; None: the tensor itself.
        chosen: which of the tensor's numbers are read, counted over all axes after the batch; None:
            all.
    """

    name: str = ""
    steps: tuple[Any, ...] = ()
    axis: int = 0
    loss: Loss | None = None
    chosen: tuple[int, ...] | None = None

    def __call__(self, output: Any, targets: Any = None) -> Any:
        """(B, ...) what is analysed of a model's output; with a loss, (B, 1) of these targets."""
        tensor = step_into(output, self.steps)
        tensor = tensor.movedim(self.axis, 0) if self.axis else tensor
        if self.chosen is not None:
            return tensor.flatten(1)[:, list(self.chosen)]
        return tensor if self.loss is None else self.loss(tensor, targets)


def find_readout(call: Any, inputs: Inputs, wanted: str | int | None) -> Readout:
    """Finds the tensor to be analysed, and its batch axis where that of the inputs is not first.

    The one that is asked for; or the output itself; or its only floating-point tensor with the
    batch first; or its field ``logits``.

    Args:
        call: returns what the model returns for some inputs.
        inputs: the examples, of which the first is used.
        wanted: its name, with dots for what is nested, or its number; None if not asked for.

    Raises:
        ModelError: several tensors, or none; names them and says what to do.
        ArgumentError: ``wanted`` names no part of the output.
    """
    found = _find(call, inputs, wanted)
    if not inputs.batch_axes:
        return found
    shapes = [found(call(inputs.part(0, 1).repeat(n))).shape for n in (2, 3)]
    grown = [a for a, pair in enumerate(zip(*shapes, strict=False)) if pair == (2, 3)]
    if len(grown) != 1:
        raise ModelError(
            f"model: returns shape {tuple(shapes[0])} for 2 inputs and {tuple(shapes[1])} for 3; "
            "one axis must be the batch"
        )
    return replace(found, axis=grown[0])


def _find(call: Any, inputs: Inputs, wanted: str | int | None) -> Readout:
    two = call(inputs.part(0, 1).repeat(2))
    if isinstance(two, Tensor):
        if wanted is not None:
            raise ArgumentError(
                f"readout={wanted!r}: the model returns one tensor; leave readout out"
            )
        return Readout()
    three = call(inputs.part(0, 1).repeat(3))
    start = Readout() if wanted is None else _named(two, wanted)
    part = start(two)
    if isinstance(part, Tensor):
        return start
    shapes = {names: leaf.shape for names, leaf in leaves(start(three)) if _is_real(leaf)}
    found = [
        names
        for names, leaf in leaves(part)
        if _is_real(leaf) and _grows(leaf.shape, shapes.get(names, ()), bool(inputs.batch_axes))
    ]
    usual = [names for names in found if names == (_USUAL,)]
    if len(found) == 1 or usual:
        inside = _walk(part, (usual or found)[0])
        assert inside is not None
        return Readout(
            ".".join(filter(None, (start.name, inside.name))), start.steps + inside.steps
        )
    what = type(part).__name__
    if not found:
        raise ModelError(
            f"model: returns {what}, with no floating-point tensor that has the batch first "
            f"({_list(part)}); return the outputs to be analysed as a tensor (B, ...)"
        )
    raise ModelError(
        f"model: returns {what} with several tensors ({_list(part)}); say which one is to be "
        f"analysed, such as readout={'.'.join((*start.name.split('.'), *found[0])).strip('.')!r}"
    )


def _grows(two: Sequence[int], three: Sequence[int], anywhere: bool) -> bool:
    """Whether the first axis, or any, is as long as there are examples."""
    pairs = list(zip(two, three, strict=False))
    return (2, 3) in (pairs if anywhere else pairs[:1])


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 1


def _named(output: Any, wanted: str | int) -> Readout:
    found = None
    if isinstance(wanted, str | int) and not isinstance(wanted, bool):
        found = _walk(output, tuple(str(wanted).split(".")))
    if found is None:
        raise ArgumentError(
            f"readout={wanted!r} is not a part of what the model returns, {type(output).__name__} "
            f"({_list(output)}); give a name of those"
        )
    return found


def _walk(output: Any, names: Names) -> Readout | None:
    """The way by these names: of parts, numbers of parts, or attributes of other objects."""
    steps: list[Any] = []
    value = output
    rest = list(names)
    while rest:
        parts = children(value)
        if parts is None:
            if isinstance(value, Tensor) or not hasattr(value, rest[0]):
                return None
            steps.append(Field(rest.pop(0)))
        else:
            number = int(rest[0]) if rest[0].lstrip("-").isdigit() else None
            by_name = [step for name, step, _ in parts if name == rest[0]]
            if by_name:
                steps.append(by_name[0])
            elif number is not None and -len(parts) <= number < len(parts):
                steps.append(parts[number][1])
            else:
                return None
            rest.pop(0)
        value = step_into(value, (steps[-1],))
    return Readout(".".join(names), tuple(steps))


def _list(value: Any) -> str:
    """The tensors inside a value with their shapes."""
    shown = [
        f"{'.'.join(names) or 'itself'}: {tuple(leaf.shape)}"
        for names, leaf in leaves(value)
        if isinstance(leaf, Tensor)
    ]
    more = f", and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (", ".join(shown[:12]) or "no tensor") + more
