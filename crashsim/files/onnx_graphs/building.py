"""From the nodes of a graph to a network: constants are worked out, the rest becomes modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from crashsim.errors import CrashsimError, FileError
from crashsim.files.limits import check_size, most_bytes
from crashsim.files.onnx_graphs.fusing import Pattern, patterns
from crashsim.files.onnx_graphs.network import Input, OnnxNetwork, Step
from crashsim.files.onnx_graphs.node import Constant, Made, Node, Runtime, UnsupportedError, Value
from crashsim.files.onnx_graphs.operators import OPERATORS
from crashsim.files.onnx_graphs.operators.quantised import stored_words
from crashsim.files.onnx_graphs.operators.shaping import as_tensor
from crashsim.files.onnx_graphs.sizes import Sizes
from crashsim.files.onnx_graphs.sizing import settled, sized
from crashsim.files.onnx_graphs.trials import Trials, merged, on_meta

_NAME = re.compile(r"[^A-Za-z0-9_/\-]")
# Inputs that may be sizes which depend on the batch; others are made tensors.
_SIZES: dict[str, set[int]] = {
    "ConstantOfShape": {0},
    "Expand": {1},
    "Pad": {1},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Resize": {3},
    "Slice": {1, 2, 3, 4},
    "Tile": {1},
    "TopK": {1},
}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
           "RandomUniformLike"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Graph:
    """What a network is built of.

    Attributes:
        subject: what errors call the model.
        nodes: each with its operator, version, names of inputs and outputs, attributes.
        inputs: what the network takes.
        outputs: names of what it returns.
        constants: what the file holds.
        known: sizes and type of each value, as far as they follow from the file.
        batch: the number of examples for which the file was made, and which is any now.
    """

    subject: str
    nodes: Sequence[RawNode]
    inputs: Sequence[Input]
    outputs: Sequence[str]
    constants: Mapping[str, Constant]
    known: Mapping[str, tuple[tuple[int | None, ...] | None, torch.dtype | None]]
    batch: int | None = None


@dataclass(frozen=True, eq=False)
class RawNode:
    """A node as the file has it."""

    operator: str
    name: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def called(self, subject: str) -> str:
        return f"{subject}: node {self.name or self.outputs[0]!r} ({self.operator})"


class Branch(Exception):
    """A node that chooses between graphs, and which one it chooses.

    Attributes:
        name: of the node's first output.
        taken: the attribute that holds the graph.
    """

    def __init__(self, name: str, taken: str) -> None:
        super().__init__(name)
        self.name, self.taken = name, taken


def build(graph: Graph) -> OnnxNetwork:
    """The network of a graph.

    Raises:
        FileError: a node's operator is not supported, or the node is damaged.
        Branch: a node chooses a graph, which is to be put in its place.
    """
    return _Builder(graph).network()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values: dict[str, Value] = dict(graph.constants)
        self._trials = Trials(graph.inputs)
        for wanted in graph.inputs:
            self._values[wanted.name] = self._runtime(wanted.name)
        self._parameters: dict[Any, nn.Parameter] = {}
        self._modules: dict[str, nn.Module] = {}
        self._steps: list[Step] = []
        self._names = Counter[str]()

    def network(self) -> OnnxNetwork:
        graph = self._graph
        fused = patterns(graph.nodes, graph.constants, graph.outputs)
        left_out = {id(node) for pattern in fused.values() for node in pattern.left_out}
        for raw in graph.nodes:
            if id(raw) in left_out:
                continue
            try:
                self._visit(raw, fused.get(id(raw)))
            except UnsupportedError as error:
                raise FileError(f"{raw.called(graph.subject)}: {error}") from error
            except (CrashsimError, Branch):
                raise
            except Exception as error:  # whatever a damaged node makes torch or Python raise
                told = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise FileError(
                    f"{raw.called(graph.subject)} cannot be made ({told}); is the file damaged?"
                ) from error
        for name in graph.outputs:
            if name not in self._values:
                raise FileError(f"{graph.subject}: nothing computes its output {name!r}")
            self._as_output(name)
        steps = _needed(self._steps, graph.outputs)
        used = {step.module for step in steps}
        modules = {name: module for name, module in self._modules.items() if name in used}
        network = OnnxNetwork(graph.inputs, steps, modules, graph.outputs)
        return network.eval()

    def _as_output(self, name: str) -> None:
        """Has a step compute an output that is known before the network runs."""
        value = self._values[name]
        if isinstance(value, Sizes):
            self._values[name] = self._tensor(value, name)
        elif isinstance(value, Constant):
            raise FileError(
                f"{self._graph.subject}: its output {name!r} does not depend on the inputs; there "
                "is nothing to analyse"
            )
        elif value.name != name:  # an input that is passed on
            self._add("Identity", nn.Identity(), [value], [name])

    def _visit(self, raw: RawNode, fused: Pattern | None) -> None:
        missing = [name for name in raw.inputs if name and name not in self._values]
        if missing:
            raise UnsupportedError(f"its input {missing[0]!r} is computed nowhere before it")
        inputs = [self._values[name] if name else None for name in raw.inputs]
        if raw.operator == "If":
            self._choose(raw, inputs)
        if raw.operator in _RANDOM:
            raise UnsupportedError("it draws at random; export the model for inference")
        node = Node(
            raw.operator, self._named(raw), raw.version, inputs, raw.outputs,
            dict(raw.attributes), self._parameters, self._graph.batch,
        )  # fmt: skip
        if (found := sized(node)) is not None:
            self._values[raw.outputs[0]] = found
            return
        node.inputs = [
            self._settled(value, i in _SIZES.get(raw.operator, ()), raw)
            for i, value in enumerate(inputs)
        ]
        if fused is not None:
            self._add(node.name, *fused.made(node, self._values), fused.outputs)
            return
        if raw.operator not in OPERATORS:
            raise UnsupportedError(
                "this operator is not supported; export the model without it, or write the network "
                "in torch and name it as path.py:factory"
            )
        made = OPERATORS[raw.operator](node)
        if all(isinstance(value, Constant) or value is None for value in node.inputs):
            self._fold(node, made)
        else:
            self._add(node.name, made.module, made.values, raw.outputs)

    def _choose(self, raw: RawNode, inputs: Sequence[Value | None]) -> None:
        condition = inputs[0] if inputs else None
        if isinstance(condition, Sizes):
            condition = settled(condition)
        if not isinstance(condition, Constant) or condition.tensor.numel() != 1:
            raise UnsupportedError(
                "its condition depends on the inputs; fix the input that decides it, or export the "
                "model for one case"
            )
        raise Branch(raw.outputs[0], "then_branch" if bool(condition.tensor) else "else_branch")

    def _settled(self, value: Value | None, may_be_sizes: bool, raw: RawNode) -> Value | None:
        """A value as operators take it: sizes as a tensor, where they expect one."""
        if not isinstance(value, Sizes):
            return value
        known = settled(value)
        if isinstance(known, Constant) or may_be_sizes:
            return known
        return self._tensor(value, f"{raw.outputs[0]}//sizes{len(self._steps)}")

    def _tensor(self, value: Sizes, name: str) -> Runtime:
        made = Node("Sizes", name, 1, [value], [name]).call(as_tensor, value)
        self._add(self._unique("sizes"), made.module, made.values, [name])
        return Runtime(name, value.array.shape, torch.int64)

    def _fold(self, node: Node, made: Made) -> None:
        """Works out what depends on the file alone."""
        is_weight = any(isinstance(v, Constant) and v.is_weight for v in node.inputs)
        tensors = [v.tensor if isinstance(v, Constant) else _listed(v) for v in made.values]
        with torch.no_grad():
            self._check_fold(made.module, tensors)
            found = made.module(*tensors)
        several = found if isinstance(found, tuple) else (found,)
        words = stored_words(node) if node.operator == "DequantizeLinear" else None
        for name, tensor in zip(node.outputs, several, strict=False):
            if name:
                self._values[name] = Constant(tensor.detach(), is_weight, words)

    def _check_fold(self, module: nn.Module, tensors: Sequence[Any]) -> None:
        """Raises FileError, before it is made, where a constant would be too large."""
        try:
            found = on_meta(module, tensors)
        except Exception:  # it needs its numbers: then it is no larger than they are, or fails so
            return
        for tensor in found if isinstance(found, tuple) else (found,):
            check_size(
                f"{self._graph.subject}: a constant of shape {tuple(tensor.shape)}",
                tensor.numel() * tensor.dtype.itemsize, "give a smaller one", allowed=most_bytes(),
            )  # fmt: skip

    def _add(
        self,
        name: str,
        module: nn.Module,
        values: Sequence[Value | None],
        outputs: Sequence[str],
    ) -> None:
        arguments = tuple(
            v.name if isinstance(v, Runtime) else v if isinstance(v, Sizes) else None
            for v in values
        )
        for i, value in enumerate(values):
            if isinstance(value, Constant):
                raise UnsupportedError(f"its input {i} is a constant, which is not expected there")
        name = self._unique(name) if name in self._modules else name
        self._modules[name] = module
        step = Step(name, arguments, tuple(outputs))
        self._steps.append(step)
        self._trials.run(step, module)
        for output in outputs:
            if output:
                self._values[output] = self._runtime(output)

    def _runtime(self, name: str) -> Runtime:
        """A value with what is known of it, by onnx and as tried out."""
        sizes, dtype = self._graph.known.get(name, (None, None))
        sizes = merged(sizes, self._trials.sizes(name))
        return Runtime(name, sizes, dtype or self._trials.dtype(name))

    def _named(self, raw: RawNode) -> str:
        """The node's own name, as far as modules may bear it; else its operator and a number."""
        return self._unique(_NAME.sub("_", raw.name)) if raw.name else self._numbered(raw.operator)

    def _numbered(self, operator: str) -> str:
        self._names[operator] += 1
        return self._unique(f"{operator}_{self._names[operator] - 1}")

    def _unique(self, name: str) -> str:
        found, count = name, 1
        while found in self._modules or hasattr(OnnxNetwork, found) or found in _TAKEN:
            count += 1
            found = f"{name}_{count}"
        return found


_TAKEN = {"inputs", "steps", "outputs", "training", *vars(nn.Module())}


def _listed(value: Any) -> Any:
    return value.array.tolist() if isinstance(value, Sizes) else None


def _needed(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps that outputs depend on, each with what nothing reads after it."""
    wanted, kept = set(outputs), list[Step]()
    for step in reversed(steps):
        if not wanted & set(step.outputs):
            continue
        read = {name for argument in step.arguments for name in _names(argument)}
        last = tuple(sorted(read - wanted))
        wanted |= read
        kept.append(replace(step, last=last))
    return kept[::-1]


def _names(argument: str | Sizes | None) -> list[str]:
    if isinstance(argument, Sizes):
        return argument.read()
    return [] if argument is None else [argument]
