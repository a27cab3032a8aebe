"""Where the batch runs in the values of a model's graph, and what each operation costs.

The batch is found by running the graph on two and on three examples: sizes that the model's own
code reads (``x.shape[0]``) are recognised in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from crashsim.injection.flops import Operations
from crashsim.model.graph.model_graph import ModelGraph, NodeValues, has_tensors
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.graph.untraced import has_hooks
from crashsim.model.inputs import Inputs
from crashsim.model.nested import children, rebuilt
from crashsim.model.readout import Readout

# Where the batch runs in a value: the axis of a tensor, "count" for a number that is proportional
# to the batch, None for what does not depend on it; a list of these for a value with parts.
Batched = Any


class TracedModel(ModelGraph):
    """The graph of a model that is run for many samples at once.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as they are computed with.
        example: a single example.
        leaves: modules to be kept whole, by path.
        struck: paths of what faults strike.
        readout: which tensor of the model's output is analysed.

    Attributes:
        batched: where the batch runs in each node's value.
        sizes: numbers in each node's value, for each example.
        operations: multiplications in layers and matrix products that each node takes, likewise.

    Raises:
        UntraceableError: says why the model cannot be taken apart.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        example: Inputs,
        leaves: Collection[str],
        struck: Collection[str],
        readout: Readout,
    ) -> None:
        self.operations: dict[fx.Node, float] = {}
        self._of_inputs: set[fx.Node] = set()  # nodes of tensors that the inputs' values are in
        super().__init__(model, example, readout, tensors, leaves=leaves, struck=struck)
        two = self.values
        with torch.inference_mode(False), torch.no_grad():
            three = self.outline(example.repeat(3))
        self.batched = {node: _batch_axis(two[node], three[node]) for node in self.nodes}
        if self.batched[self.output] != 0:
            raise UntraceableError("its output is not one tensor with the batch on its first axis")
        self.sizes = {n: two[n].numel() / 2 if isinstance(two[n], Tensor) else 0.0 for n in two}

    def compute(self, node: fx.Node, values: NodeValues, x: Inputs) -> Any:
        """One node's value, whose operations are counted."""
        with Operations() as counter:
            value = super().compute(node, values, x)
        self.operations[node] = counter.total / 2 / len(x)
        if node.op == "placeholder" or any(n in self._of_inputs for n in node.all_input_nodes):
            if counter.is_dynamic and node.op != "call_module":
                raise UntraceableError(f"{node.name} has as many rows as the values say")
            if has_tensors(value):
                self._of_inputs.add(node)
        return value

    def passes_on(self, node: fx.Node) -> bool:
        """Whether a node only flattens all but the batch axis, or does nothing."""
        if node.op == "call_function" and node.target is torch.flatten:
            return node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}
        if node.op != "call_module":
            return False
        module = self.modules[str(node.target)]
        if has_hooks(module):
            return False
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        return isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd)


def expand(value: Any, batched: Batched, count: int) -> Any:
    """A value for S samples: a copy, so that what changes it in place changes nothing else."""
    if batched is None:
        return value
    if batched == "count":
        return value * count
    if isinstance(batched, int):
        return repeat(value, count, batched)
    parts = [part for _, _, part in children(value) or ()]
    return rebuilt(value, [expand(v, b, count) for v, b in zip(parts, batched, strict=True)])


def repeat(value: Tensor, count: int, axis: int) -> Tensor:
    """The value ``count`` times along an axis."""
    times = [1] * value.dim()
    times[axis] = count
    return value.repeat(times)


def _batch_axis(two: Any, three: Any) -> Batched:
    """Where the batch runs in a value, from its values for two and three examples."""
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.dim() == three.dim():
        pairs = list(enumerate(zip(two.shape, three.shape, strict=True)))
        differing = [axis for axis, (a, b) in pairs if a != b]
        if not differing:
            return None
        if len(differing) == 1 and two.shape[differing[0]] * 3 == three.shape[differing[0]] * 2:
            return differing[0]
    elif isinstance(two, int | float) and isinstance(three, int | float):
        if two == three:
            return None
        if two * 3 == three * 2:
            return "count"
    elif type(two) is type(three):
        parts, others = children(two), children(three)
        if parts is None or others is None:
            return None
        if len(parts) == len(others):
            return [_batch_axis(a, b) for (_, _, a), (_, _, b) in zip(parts, others, strict=True)]
    raise UntraceableError("a value's shape is not proportional to the number of inputs")
