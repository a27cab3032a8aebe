"""Several nodes that are one layer: a product and its bias, an activation written out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from crashsim.files.onnx_graphs.node import Constant, Node, Value
from crashsim.files.onnx_graphs.operators.layers import linear
from crashsim.files.onnx_graphs.written_out import Group, activations

if TYPE_CHECKING:
    from crashsim.files.onnx_graphs.building import RawNode

_Made = tuple[nn.Module, Sequence[Value | None]]


@dataclass(frozen=True, eq=False)
class Pattern:
    """What nodes are together.

    Attributes:
        made: the module and the values that it is called with.
        outputs: names of what it gives.
        left_out: the nodes that are in it, beside the one where it stands.
    """

    made: Callable[[Node, Mapping[str, Value]], _Made]
    outputs: Sequence[str]
    left_out: Sequence[RawNode]


def patterns(
    nodes: Sequence[RawNode], constants: Mapping[str, Constant], outputs: Sequence[str]
) -> dict[int, Pattern]:
    """The patterns of a graph, by the identity of the node where each stands."""
    readers: dict[str, list[RawNode]] = defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            readers[name].append(node)

    def only_reader(node: RawNode) -> Any:
        found = readers[node.outputs[0]] if node.outputs else []
        is_lone = len(found) == 1 and node.outputs[0] not in outputs
        return found[0] if is_lone else None

    found: dict[int, Pattern] = {}
    for node in nodes:
        after = only_reader(node)
        if after is None:
            continue
        if pattern := _with_bias(node, after, constants):
            found[id(node)] = pattern
    biases = [node for pattern in found.values() for node in pattern.left_out]
    for group in activations(nodes, constants, outputs, biases):
        found[id(group.nodes[0])] = _activation(group)
    return found


def _activation(group: Group) -> Pattern:
    def made(_: Node, values: Mapping[str, Value]) -> _Made:
        return group.module, [values[group.source]]

    return Pattern(made, group.nodes[-1].outputs, group.nodes[1:])


def _with_bias(node: RawNode, after: RawNode, constants: Mapping[str, Constant]) -> Pattern | None:
    """A product with a matrix of the file, to which a vector of the file is added."""
    if node.operator != "MatMul" or after.operator != "Add" or len(node.inputs) != 2:
        return None
    weight = constants.get(node.inputs[1])
    others = [name for name in after.inputs if name != node.outputs[0]]
    bias = constants.get(others[0]) if len(others) == 1 else None
    if weight is None or bias is None or node.inputs[0] in constants:
        return None
    if weight.tensor.dim() != 2 or bias.tensor.shape != weight.tensor.shape[1:]:
        return None
    if not weight.tensor.dtype.is_floating_point or weight.tensor.dtype != bias.tensor.dtype:
        return None
    matrix, vector = weight.tensor.T, bias.tensor

    def made(node: Node, _: Mapping[str, Value]) -> _Made:
        return linear(node, matrix, vector), node.inputs[:1]

    return Pattern(made, after.outputs, [after])
