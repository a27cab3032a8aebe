"""Which values of a traced model nobody else holds, so that they may be overwritten.

What is computed in the place of its input spares memory, whose first touch costs more than most
activations do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from crashsim.injection.graph import TracedModel
from crashsim.model.graph.untraced import has_hooks

# Modules whose output is a new tensor.
_FRESH = (
    nn.Linear,
    _ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
)
_IN_PLACE: dict[object, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu), torch.relu_),
    **dict.fromkeys((nn.Tanh, F.tanh, torch.tanh), torch.tanh_),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid), torch.sigmoid_),
}


@dataclass(frozen=True)
class Overwriting:
    """The values that may be overwritten.

    Attributes:
        traced: the model.
        changed: the nodes that are computed anew for every sample.
        struck: those of them whose values are copied, as a fault strikes them.
    """

    traced: TracedModel
    changed: Collection[fx.Node]
    struck: Collection[fx.Node]

    def is_fresh(self, node: fx.Node) -> bool:
        """Whether nobody else holds the memory of a changed node's value."""
        if node in self.struck or self.in_place(node) is not None:
            return True
        if node.op != "call_module":
            return False
        return returns_new(self.traced.modules[str(node.target)])

    def in_place(self, node: fx.Node) -> Callable[[Tensor], Tensor] | None:
        """What computes a node's value in the place of its input, if that may be done."""
        kind: object = node.target
        if node.op == "call_module":
            module = self.traced.modules[str(node.target)]
            kind = None if has_hooks(module) else type(module)
        if kind not in _IN_PLACE or len(node.args) != 1 or node.kwargs:
            return None
        (source,) = node.all_input_nodes
        alone = source in self.changed and len(source.users) == 1
        return _IN_PLACE[kind] if alone and self.is_fresh(source) else None


def returns_new(module: nn.Module) -> bool:
    """Whether a module's output is a tensor of its own, which nobody else holds."""
    in_place = getattr(module, "inplace", False)
    return isinstance(module, _FRESH) and not in_place and not has_hooks(module)
