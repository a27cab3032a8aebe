"""Weights that a layer computes inside its ``forward`` (a quantised one), held by its twin.

The twin's layer holds the tensor that is multiplied under the name that the user knows, and what
it was computed from as a plain attribute that only its own code sees. Its forward runs as it is;
where it multiplies by what it has computed, it is given what is held instead, faults included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crashsim.model.multiplied.products import factors, with_factors

_ALIKE = 1e-2  # of a weight's size: by how much computing it in another type may move it


@dataclass(eq=False)
class HeldWeight:
    """A weight that stands in for what a forward computes.

    Attributes:
        owner, name: the layer of the twin that holds it, and under which name.
        clean: what the forward computes, to be known again.
        transposed: whether the forward multiplies by its transpose.
    """

    owner: nn.Module
    name: str
    clean: Tensor
    transposed: bool

    def value(self) -> Tensor:
        """What is to be multiplied, in the shape in which the forward passes it."""
        found = self.owner._parameters[self.name]
        assert found is not None
        return found.mT if self.transposed else found

    def distance(self, value: Tensor) -> float:
        """How far a tensor is from the clean weight, relative to its size."""
        if value.shape != self.clean.shape:
            return torch.inf
        clean = self.clean.to(value.dtype)
        off, size = (value.detach() - clean).abs().max(), clean.abs().max()
        return float(off / size) if size > 0 else float(off)


class Multiplying:
    """The forward of a layer, in which held weights take the place of those that it computes.

    Args:
        forward: the layer's own.
        held: the weights that it computes.
    """

    why_unseen = "multiplies a weight that its forward computes, which is not in the traced graph"

    def __init__(self, forward: Callable[..., Any], held: list[HeldWeight]) -> None:
        self._forward, self._held = forward, held

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Replacing(self._held):
            return self._forward(*args, **kwargs)


class _Replacing(TorchFunctionMode):
    def __init__(self, held: list[HeldWeight]) -> None:
        super().__init__()
        self._held = held

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        others = {}
        for place, value in factors(func, args, given)[0]:
            nearest = min(self._held, key=lambda held: held.distance(value))
            if nearest.distance(value) <= _ALIKE:
                others[place] = nearest.value()
        if others:
            args, given = with_factors(args, given, others)
        return func(*args, **given)
