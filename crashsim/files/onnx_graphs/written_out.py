"""Activation functions that a graph writes out in several nodes, found by what they compute.

Exporters write GELU, SiLU or hard swish as products, sums and a sigmoid or an error function, in
any order. A group of nodes that reads one value and numbers of the file, and whose result alone is
read elsewhere, is a function of a number: where it is that of a known activation at many places, it
becomes that module, which is a site of neurons as any activation is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crashsim.files.onnx_graphs.node import Constant, Node
from crashsim.files.onnx_graphs.operators import OPERATORS

if TYPE_CHECKING:
    from crashsim.files.onnx_graphs.building import RawNode

_MOST = 12  # nodes of a group
_CLOSE = 2e-6  # by which constants of single precision may make a difference
_NEAR = 181  # places that are looked at between -9 and 9
_FAR = (12.0, 25.0, 60.0, 150.0, 1e3, 1e5, 1e10, 1e30)  # beyond them, where a limit may show
_NODES = frozenset(
    "Add Sub Mul Div Pow Neg Reciprocal Sqrt Exp Log Erf Tanh Sigmoid HardSigmoid Clip Relu "
    "Softplus Max Min Identity".split()
)
KNOWN: tuple[Callable[[], nn.Module], ...] = (
    nn.SiLU,
    nn.Hardswish,
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Mish,
    nn.Softplus,
    nn.ReLU6,
    nn.ReLU,
    nn.Tanh,
)


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that are an activation.

    Attributes:
        module: the activation.
        source: the name of the value that it reads.
        nodes: in order; the last gives the result.
    """

    module: nn.Module
    source: str
    nodes: Sequence[RawNode]


def activations(
    nodes: Sequence[RawNode],
    constants: Mapping[str, Constant],
    outputs: Sequence[str],
    spoken_for: Iterable[RawNode] = (),
) -> list[Group]:
    """The activations that are written out in more than one node; no two share one.

    Args:
        nodes: of the graph.
        constants: what it holds, by name.
        outputs: names of what it returns.
        spoken_for: nodes that are part of something else.
    """
    writers = {name: node for node in nodes for name in node.outputs}
    readers: dict[str, list[RawNode]] = defaultdict(list)
    for node in nodes:
        for name in dict.fromkeys(node.inputs):
            readers[name].append(node)
    order = {id(node): i for i, node in enumerate(nodes)}
    far = torch.tensor(_FAR, dtype=torch.float64)
    places = torch.cat([torch.linspace(-9, 9, _NEAR, dtype=torch.float64), far, -far])
    wanted = [(kind, kind()(places)) for kind in KNOWN]
    taken = {id(node) for node in spoken_for}
    found: list[Group] = []
    for last in reversed(nodes):
        if id(last) in taken or not _is_one(last, constants):
            continue
        group = {id(last): last}
        while len(group) < _MOST:
            outside = _outside(group, constants)
            if len(outside) == 1 and len(group) > 1:
                listed = sorted(group.values(), key=lambda node: order[id(node)])
                values = _values(listed, outside[0], constants, places)
                kind = next((k for k, w in wanted if _agree(values, w)), None)
                if kind is not None:
                    found.append(Group(kind(), outside[0], listed))
                    taken |= set(group)
                    break
            inner = [
                writers[name]
                for name in outside
                if name in writers
                and name not in outputs
                and id(writers[name]) not in taken
                and _is_one(writers[name], constants)
                and all(id(reader) in group for reader in readers[name])
            ]
            if not inner:
                break
            after = max(inner, key=lambda node: order[id(node)])
            group[id(after)] = after
    return found


def _is_one(node: RawNode, constants: Mapping[str, Constant]) -> bool:
    """Whether a node takes single numbers of the file beside values."""
    if node.operator not in _NODES or len(node.outputs) != 1:
        return False
    held = [constants[name] for name in node.inputs if name in constants]
    return len(held) < len(node.inputs) and all(c.tensor.numel() == 1 for c in held)


def _outside(group: Mapping[int, RawNode], constants: Mapping[str, Constant]) -> list[str]:
    """The values that a group reads."""
    inside = {name for node in group.values() for name in node.outputs}
    names = (name for node in group.values() for name in node.inputs)
    return list(dict.fromkeys(n for n in names if n and n not in inside and n not in constants))


def _values(
    nodes: Sequence[RawNode], source: str, constants: Mapping[str, Constant], places: Tensor
) -> Tensor | None:
    """What a group gives at some places; None where it cannot be run."""
    values: dict[str, Any] = {source: places}
    try:
        for raw in nodes:
            inputs = [_input(name, values, constants) for name in raw.inputs]
            node = Node(raw.operator, "", raw.version, inputs, raw.outputs, dict(raw.attributes))
            made = OPERATORS[raw.operator](node)
            held = [v.tensor for v in made.values if isinstance(v, Constant)]
            module = made.module.double()
            values[raw.outputs[0]] = module(*held)
    except Exception:  # of whatever a group may be that is no activation
        return None
    found = values[nodes[-1].outputs[0]]
    return found if isinstance(found, Tensor) else None


def _input(name: str, values: Mapping[str, Any], constants: Mapping[str, Constant]) -> Any:
    if not name:
        return None
    if name in values:
        return Constant(values[name])
    tensor = constants[name].tensor
    return Constant(tensor.double().reshape(()) if tensor.is_floating_point() else tensor)


def _agree(values: Tensor | None, wanted: Tensor) -> bool:
    """Whether values are those wanted; far away, where exponentials overflow, as far as finite."""
    if values is None or values.shape != wanted.shape:
        return False
    finite = torch.isfinite(values)
    if not bool(finite[:_NEAR].all()):
        return False
    close = (values - wanted).abs() <= _CLOSE * (1 + wanted.abs())
    return bool((close | ~finite).all())
