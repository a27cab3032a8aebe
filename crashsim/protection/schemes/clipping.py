"""Clipping: activations to ranges that clean data showed, and impossible weights to zero."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from crashsim.arguments import number, shown
from crashsim.errors import ArgumentError
from crashsim.faults import WordFault
from crashsim.model.inputs import read_inputs
from crashsim.model.nested import leaves
from crashsim.model.sites.layer_kinds import is_activation
from crashsim.model.sites.site import Site
from crashsim.model.twins.protected_module import Limiter
from crashsim.protection.schemes.scheme import COMPARISON, Cost, Part, Scheme

Per = Literal["layer", "channel"]


class Clip(Limiter):
    """Values between bounds; those that are no numbers become the number of them nearest to 0.

    Args:
        low, high: that broadcast to a value, batch first.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, value: Tensor) -> Tensor:
        numbers = torch.where(torch.isnan(value), torch.zeros_like(value), value)
        return torch.minimum(torch.maximum(numbers, self.low), self.high)


@dataclass(frozen=True)
class ClipActivations(Scheme):
    """Outputs of activation functions are cut off at the least and the largest of clean data.

    What faults do before is limited by that; the clean network is as it was on those data, and may
    be another on others, which is measured. NaN becomes 0, as far as 0 is within the range.

    Costs two comparisons for each value, each a sixteenth of a multiply-accumulate, and a step:
    ``macs = 2 / 16 * values``, ``latency = 1``; and two stored words of 32 bits for each range:
    ``bits = 64 * ranges``.

    Args:
        per: a range for each ``"layer"``, or for each ``"channel"`` (the first axis after the
            batch).
        margin: by which share of its length a range is wider, on either side.
        sites: name or glob of the activation modules.
    """

    name: ClassVar[str] = "clip"
    per: Per = "layer"
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("layer", "channel"):
            raise ArgumentError(
                f"ClipActivations: per={shown(self.per)}; give 'layer' or 'channel'"
            )
        margin = number("ClipActivations: margin", self.margin, "a share, such as 0.1", least=0)
        object.__setattr__(self, "margin", margin)

    def applies(self, site: Site) -> bool:
        return False  # to faults: it acts on what is computed

    def harden(self, model: nn.Module, inputs: Any) -> nn.Module:
        if inputs is None:
            raise ArgumentError(
                "data=None: ClipActivations learns its ranges on clean data; give Protected(model, "
                "schemes, data=x)"
            )
        ranges = self.learned(model, inputs)
        for path, (low, high) in ranges.items():
            owner, _, last = path.rpartition(".")
            parent = model.get_submodule(owner)
            inner = model.get_submodule(path)
            setattr(parent, last, nn.Sequential(inner, Clip(low, high)))
        return model

    def learned(self, model: nn.Module, inputs: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """The range of each activation module, by path: its bounds, shaped to broadcast.

        Raises:
            ArgumentError: the model has no such module.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def look(path: str, module: nn.Module, args: Any, output: Any) -> None:
            for _, value in leaves(output):
                low, high = self._range(value)
                if path in found:
                    low = torch.minimum(low, found[path][0])
                    high = torch.maximum(high, found[path][1])
                found[path] = low, high

        model = deepcopy(model)  # which may keep a state
        chosen = {
            path: module
            for path, module in model.named_modules(remove_duplicate=False)
            if path and is_activation(module) and fnmatchcase(path, self.sites)
        }
        if not chosen:
            raise ArgumentError(
                f"ClipActivations: sites={shown(self.sites)}: the model has no such activation "
                "module; give 'act*', say, or put activations into modules of their own"
            )
        hooks = [m.register_forward_hook(_hook(partial(look, p))) for p, m in chosen.items()]
        parameter = next(model.parameters(), torch.zeros(()))
        examples = read_inputs(inputs, 0).to(parameter.device, parameter.dtype)
        try:
            with torch.no_grad():
                for start in range(0, len(examples), 256):
                    examples.part(start, min(start + 256, len(examples))).call(model)
        finally:
            for hook in hooks:
                hook.remove()
        widened = {}
        for path, (low, high) in found.items():
            room = self.margin * (high - low)
            widened[path] = low - room, high + room
        return widened

    def _range(self, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.per == "layer" or value.dim() < 2:
            return value.amin(), value.amax()
        flat = value.transpose(0, 1).flatten(1)
        shape = (-1, *[1] * (value.dim() - 2))
        return flat.amin(1).view(shape), flat.amax(1).view(shape)

    def cost(self, part: Part) -> Cost:
        return Cost(bits=64.0 * part.groups, macs=2 * COMPARISON * part.units, latency=1.0)


def _hook(look: Callable[[nn.Module, Any, Any], None]) -> Any:
    def call(module: nn.Module, args: Any, output: Any) -> None:
        look(module, args, output)

    return call


@dataclass(frozen=True)
class ClipWeights(Scheme):
    """Weights that are read with an impossible exponent, or as no number, are taken for 0.

    Impossible is what lies at or above the power of two that is larger than all clean weights of
    the tensor: a comparison of exponents.

    Costs a comparison of exponents for each weight that is read, a sixteenth of a
    multiply-accumulate, and the largest exponent of each tensor: ``macs = words / 16``,
    ``bits = 8 * tensors``, ``latency = 1``.
    """

    name: ClassVar[str] = "clip-weights"

    @property
    def clips_words(self) -> bool:
        return True

    def guarded(self, fault: Any, site: Site, shape: tuple[int, ...]) -> Any:
        if isinstance(fault, WordFault) or site.kind != "parameter":
            return None
        raise ArgumentError(
            f"ClipWeights: {type(fault).__name__} at {site.name!r}: it looks at stored words; give "
            "BitFlip or BitStuck"
        )

    def cost(self, part: Part) -> Cost:
        return Cost(bits=8.0, macs=COMPARISON * part.words, latency=1.0)
