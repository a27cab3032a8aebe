"""Puts the graph that a node chooses in the place of the node."""

from __future__ import annotations

from typing import Any


def put_in_place(graph: Any, output: str, taken: str) -> None:
    """Replaces an If node by the nodes of one of its branches.

    Args:
        graph: an ``onnx.GraphProto``, which is changed.
        output: the name of the node's first output.
        taken: the attribute of the branch, ``then_branch`` or ``else_branch``.
    """
    from onnx import helper

    index = next(i for i, node in enumerate(graph.node) if output in node.output)
    chooser = graph.node[index]
    branch = next(a.g for a in chooser.attribute if a.name == taken)
    names = {name for node in branch.node for name in node.output if name}
    names |= {tensor.name for tensor in branch.initializer}
    renamed = {name: f"{output}//{name}" for name in names}
    nodes = list(branch.node)
    for node in nodes:
        _rename(node, renamed, chooser.name or output)
    for tensor in branch.initializer:
        tensor.name = renamed[tensor.name]
        graph.initializer.append(tensor)
    ends = [
        helper.make_node("Identity", [renamed.get(inner.name, inner.name)], [outer])
        for inner, outer in zip(branch.output, chooser.output, strict=True)
        if outer
    ]
    kept = [*graph.node[:index], *nodes, *ends, *graph.node[index + 1 :]]
    copies = [type(chooser).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _rename(node: Any, names: dict[str, str], chooser: str) -> None:
    """Gives what a node reads and writes other names, in the graphs inside it too."""
    if node.name:
        node.name = f"{chooser}/{node.name}"
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {name for each in inner.node for name in each.output}
            own |= {tensor.name for tensor in inner.initializer}
            outer = {old: new for old, new in names.items() if old not in own}
            for each in inner.node:
                _rename(each, outer, chooser)
            for value in inner.output:
                value.name = outer.get(value.name, value.name)
