"""Shapes tried out: a network's steps run on tensors without numbers, of several sizes.

onnx works out shapes from operators alone and gives up where one is computed from another. What
comes out the same whatever the open axes of the inputs are follows from the file all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import Input, Step, argument_of

# Lengths of open axes in each trial: of the first axis, and of all others. They are far apart, so
# that nothing which depends on them is the same in all.
_LENGTHS = ((1, 33), (3, 96), (96, 1009))


class Trials:
    """What the values of a network look like for a few sizes of its inputs.

    Args:
        inputs: of the network.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._values: list[dict[str, Any]] = [
            {wanted.name: _outline(wanted, *lengths) for wanted in inputs} for lengths in _LENGTHS
        ]

    def run(self, step: Step, module: nn.Module) -> None:
        """Tries one more step."""
        for values in self._values:
            try:
                arguments = [argument_of(values, argument) for argument in step.arguments]
                if any(a is None and n is not None
                       for a, n in zip(arguments, step.arguments, strict=True)):  # fmt: skip
                    continue
                found = on_meta(module, arguments)
            except Exception:  # it needs numbers, or other sizes: then nothing is known of it
                continue
            several = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.outputs, several, strict=False))

    def sizes(self, name: str) -> tuple[int | None, ...] | None:
        """Of a value's axes; None for those that depend on the inputs, or where all failed."""
        tensors = self._tensors(name)
        if not tensors or len({t.dim() for t in tensors}) != 1:
            return None
        if len(tensors) < len(_LENGTHS) - 1:
            return (None,) * tensors[0].dim()
        return tuple(
            lengths[0] if len(set(lengths)) == 1 else None
            for lengths in zip(*(t.shape for t in tensors), strict=True)
        )

    def dtype(self, name: str) -> torch.dtype | None:
        return next((t.dtype for t in self._tensors(name)), None)

    def _tensors(self, name: str) -> list[Tensor]:
        found = (values.get(name) for values in self._values)
        return [tensor for tensor in found if isinstance(tensor, Tensor)]


def on_meta(module: nn.Module, arguments: Sequence[Any]) -> Any:
    """What a module gives, without the numbers."""
    held = {n: t.to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}
    metas = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
    with torch.no_grad():
        return torch.func.functional_call(module, held, metas)


def merged(
    own: tuple[int | None, ...] | None, tried: tuple[int | None, ...] | None
) -> tuple[int | None, ...] | None:
    """Sizes by two ways of finding them.

    Raises:
        ValueError: they contradict each other.
    """
    if own is None or tried is None:
        return tried if own is None else own
    if len(own) != len(tried):
        raise ValueError(f"onnx works out {len(own)} axes, and torch gives {len(tried)}")
    return tuple(b if a is None else a for a, b in zip(own, tried, strict=True))


def _outline(wanted: Input, first: int, other: int) -> Tensor | None:
    if wanted.sizes is None:
        return None
    sizes = [
        (first if axis == 0 else other) if n is None else n for axis, n in enumerate(wanted.sizes)
    ]
    return torch.empty(sizes, dtype=wanted.dtype, device="meta")
