"""A NIR graph without subgraphs: its nodes, what leads into each, and the shape of each value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.transforms import Conv1d, Flatten, Linear, Shape, Transform, output_shape

from .file import check_room
from .transforms import transform_of, windowed

__all__ = ["FlatGraph", "flat_graph"]


@dataclass(frozen=True, eq=False)
class FlatGraph:
    """Nodes by name, those of subgraphs as "subgraph.node".

    into: the names that lead into each node.
    input, output: of the whole graph; those of subgraphs pass on what they get.
    shapes: of what each node gives.
    transforms: of the nodes without state.
    """

    nodes: dict[str, Any]
    into: dict[str, list[str]]
    input: str
    output: str
    shapes: dict[str, Shape]
    transforms: dict[str, Transform]


def flat_graph(nir: Any, graph: Any, most_bytes: int) -> FlatGraph:
    """All that leads from the Input to the Output; raises HardwareError, naming the node."""
    nodes, edges = _flattened(nir, graph, "")
    starts = [name for name in _own(graph, nir.Input) if name in nodes]
    ends = [name for name in _own(graph, nir.Output) if name in nodes]
    if len(starts) != 1 or len(ends) != 1:
        raise HardwareError(
            f"a graph needs one Input and one Output node, got {len(starts)} and {len(ends)}"
        )
    into: dict[str, list[str]] = {name: [] for name in nodes}
    after: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        for name in (source, target):
            if name not in nodes:
                raise HardwareError(f"an edge leads to or from {name!r}, and no node is called so")
        if source not in into[target]:
            into[target].append(source)
            after[source].append(target)
    forwards, backwards = _reached(starts[0], after), _reached(ends[0], into)
    if ends[0] not in forwards:
        raise HardwareError("no way leads from the Input to the Output")
    for name in nodes:
        if name in backwards and name not in forwards:
            raise HardwareError(f"node {name!r} leads to the Output, and nothing leads to it")
    kept = {name: node for name, node in nodes.items() if name in backwards}
    into = {name: [n for n in into[name] if n in kept] for name in kept}
    start, shape = starts[0], _input_shape(nodes[starts[0]])
    transforms = {
        name: transform_of(nir, name, node)
        for name, node in kept.items()
        if not isinstance(node, _with_state(nir))
    }
    shape = _without_batch(start, shape, after, transforms)
    _check_size("the Input", shape, most_bytes)
    shapes = _shapes(start, shape, into, transforms, most_bytes)
    return FlatGraph(kept, into, start, ends[0], shapes, transforms)


def _with_state(nir: Any) -> tuple[type, ...]:
    """Nodes that are more than a map of what they get, or pass it on."""
    names = ("Input", "Output", "IF", "LIF", "CubaLIF", "Threshold", "Delay", "LI", "I", "CubaLI")
    return tuple(getattr(nir, name) for name in names if hasattr(nir, name))


def _own(graph: Any, kind: type) -> list[str]:
    return [name for name, node in graph.nodes.items() if isinstance(node, kind)]


def _flattened(nir: Any, graph: Any, prefix: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    gates: dict[str, tuple[str, str]] = {}  # of a subgraph: where edges lead to, and come from
    for name, node in graph.nodes.items():
        here = f"{prefix}{name}"
        if not isinstance(node, nir.NIRGraph):
            nodes[here] = node
            continue
        ways = [_own(node, nir.Input), _own(node, nir.Output)]
        if any(len(way) != 1 for way in ways):
            raise HardwareError(f"the subgraph {here!r} needs one Input and one Output node")
        inner, within = _flattened(nir, node, f"{here}.")
        nodes.update(inner)
        edges += within
        gates[name] = f"{here}.{ways[0][0]}", f"{here}.{ways[1][0]}"
    for source, target in graph.edges:
        first = gates[source][1] if source in gates else f"{prefix}{source}"
        second = gates[target][0] if target in gates else f"{prefix}{target}"
        edges.append((first, second))
    return nodes, edges


def _reached(start: str, following: dict[str, list[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for name in following[waiting.pop()]:
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _input_shape(node: Any) -> Shape:
    return tuple(int(n) for n in np.atleast_1d(next(iter(node.input_type.values()))))


def _without_batch(
    start: str, shape: Shape, after: dict[str, list[str]], transforms: dict[str, Transform]
) -> Shape:
    """The shape of one input: some libraries write a batch axis of 1 in front of it."""
    if len(shape) < 2 or shape[0] != 1:
        return shape
    first = [transforms[name] for name in after[start] if name in transforms]
    fits = {Conv1d: 2, Linear: 1}
    wanted = [fits.get(type(transform), 3) for transform in first]
    if len(shape) == 4 or any(isinstance(transform, Linear) for transform in first):
        return shape[1:]
    if len(shape) == 3 and wanted and max(wanted) == 2:
        return shape[1:]
    if len(shape) == 2 and not any(isinstance(transform, Conv1d | Flatten) for transform in first):
        return shape[1:]
    return shape


def _check_size(what: str, shape: Shape, most_bytes: int) -> None:
    if not shape or min(shape) < 1:
        raise HardwareError(f"{what} has shape {shape}; give at least one of each")
    check_room(f"{what} of shape {shape}", math.prod(shape), most_bytes)


def _shapes(
    start: str,
    shape: Shape,
    into: dict[str, list[str]],
    transforms: dict[str, Transform],
    most_bytes: int,
) -> dict[str, Shape]:
    """What each node gives, found from the Input on; ways that meet must agree."""
    shapes = {start: shape}
    for name, before in _in_reach(start, into):
        given = after = shapes[before]
        if name in transforms:
            try:
                after = output_shape(transforms[name], given)
            except HardwareError as error:
                raise HardwareError(f"node {name!r}: {error}") from None
            _check_size(f"node {name!r}", after, most_bytes)
            numbers = windowed(transforms[name], given, after)
            check_room(f"node {name!r}, with its windows,", numbers, most_bytes)
        if shapes.setdefault(name, after) != after and math.prod(shapes[name]) != math.prod(after):
            raise HardwareError(f"node {name!r} gets values of shapes {shapes[name]} and {after}")
    return shapes


def _in_reach(start: str, into: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Each edge once, its source before its target has been seen as one."""
    after: dict[str, list[str]] = {name: [] for name in into}
    for name, sources in into.items():
        for source in sources:
            after[source].append(name)
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop(0)
        for target in after[name]:
            yield target, name
            if target not in seen:
                seen.add(target)
                waiting.append(target)
