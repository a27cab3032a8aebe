"""A model as a graph of operations, traced by ``torch.fx``.

The traced model is a twin of the user's: its structure is copied, its tensors are shared. Where the
batch runs in each value is found by running the graph on two and on three examples: sizes that the
model's own code reads (``x.shape[0]``) are recognised in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from crashsim.errors import ModelError
from crashsim.injection.flops import Operations
from crashsim.injection.traceable import make_traceable
from crashsim.model.inputs import Inputs
from crashsim.model.nested import children, leaves, rebuilt
from crashsim.model.readout import Readout
from crashsim.model.site_names import ACTIVATION_FUNCTIONS, item_name
from crashsim.model.tracing import Tracer
from crashsim.model.twins.copying import Copier
from crashsim.model.twins.states import State, cloned
from crashsim.model.twins.twin import twin_of


class NotTraceable(Exception):
    """Why a model cannot be taken apart; it is then run as a whole."""


# Where the batch runs in a value: the axis of a tensor, "count" for a number that is proportional
# to the batch, None for what does not depend on it; a list of these for a value with parts.
Batched = Any

_ITEM = "crashsim_item"  # marks nodes that read a part of what a module returns


class Values(Protocol):
    """The values of nodes."""

    def __getitem__(self, node: fx.Node, /) -> Any: ...


class TracedModel:
    """The nodes of a model in order of execution, and how to evaluate each.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as they are computed with.
        example: a single example.
        leaves: modules to be kept whole, by path.
        struck: paths of what faults strike.
        readout: which tensor of the model's output is analysed.

    Attributes:
        root: the twin of the model, whose parameters are ``tensors``.
        modules: its modules by path.
        nodes: in order of execution.
        inputs: the nodes that stand for the tensors of the inputs, in order.
        output: the node of the tensor that is analysed.
        batched: where the batch runs in each node's value.
        sizes: numbers in each node's value, for each example.
        operations: multiplications in layers and matrix products that each node takes, likewise.

    Raises:
        NotTraceable: says why the model cannot be taken apart.
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
        self.root = twin(model, tensors, struck)
        self.modules = dict(self.root.named_modules())
        self._tried = [(example.repeat(n), dict[fx.Node, Any]()) for n in (2, 3)]
        self.nodes = list(self._trace(example, leaves, readout).nodes)
        self._tried.clear()
        self._watched = self._watch_layers()
        output = next(n for n in self.nodes if n.op == "output").args[0]
        with torch.inference_mode(False), torch.no_grad():
            self.operations: dict[fx.Node, float] = {}
            two, three = (self._try_all(example.repeat(n)) for n in (2, 3))
        self.batched = {node: _batch_axis(two[node], three[node]) for node in self.nodes}
        if not isinstance(output, fx.Node) or self.batched[output] != 0:
            raise NotTraceable("its output is not one tensor with the batch on its first axis")
        self.output = output
        self.sizes = {n: two[n].numel() / 2 if isinstance(two[n], Tensor) else 0.0 for n in two}
        for node in self.nodes:
            if isinstance(two[node], Tensor):
                self._name_item(node)
        if reason := self.why_wrong():
            raise NotTraceable(reason)

    def _watch_layers(self) -> dict[str, list[State]]:
        """What the user's own layers that are run as a whole hold, and those with hooks.

        A graph does not say when a layer starts anew, so that none may keep anything.
        """
        watched = {}
        paths = [str(node.target) for node in self.nodes if node.op == "call_module"]
        for path in dict.fromkeys(paths):
            layer = self.modules[path]
            if has_hooks(layer) or not type(layer).__module__.startswith("torch."):
                copier = Copier()
                self.modules[path] = copier.copied(layer)
                watched[path] = copier.states
        return watched

    def why_wrong(self) -> str | None:
        """Why the graph is not the model: a layer keeps something from one call to the next."""
        for path, states in self._watched.items():
            if any(state.has_changed() for state in states):
                return f"{path!r} keeps something from one call to the next"
        return None

    def _trace(self, example: Inputs, leaves: Collection[str], readout: Readout) -> fx.Graph:
        """The graph from the tensors of the inputs to the one of the output that is analysed."""
        tracer = Tracer(leaves, self._number)

        def run() -> Any:
            tensors = tuple(tracer.placeholder(f"input_{i}") for i in range(len(example.tensors)))
            self.inputs = [tensor.node for tensor in tensors]
            tracer.show_parameters()
            arguments, keywords = example.of(tensors)
            return readout(self.root.forward(*arguments, **keywords))

        try:
            return tracer.follow(self.root, run)
        except Exception as error:  # whatever the model's own code does with a stand-in
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise NotTraceable(f"torch.fx cannot trace it ({reason})") from error

    def _number(self, node: fx.Node) -> float:
        """The number that a node of the graph so far is, whatever the batch.

        Raises:
            TypeError: it is no number, or one that depends on the batch.
        """
        with torch.inference_mode(False), torch.no_grad():
            for x, values in self._tried:
                for earlier in node.graph.nodes:
                    if earlier not in values:
                        values[earlier] = self.evaluate(earlier, values, x)
        two, three = (values[node] for _, values in self._tried)
        if not isinstance(two, int | float) or two != three:
            raise TypeError("the model's code needs a number that depends on its inputs")
        return float(two)

    def _try_all(self, x: Inputs) -> dict[fx.Node, Any]:
        """The value of every node, of some examples."""
        try:
            return self._run_all(x)
        except NotTraceable:
            raise
        except Exception as error:  # a branch on types, say, that a stand-in made take another way
            raise NotTraceable(f"traced by torch.fx, it fails ({error})") from error

    def _run_all(self, x: Inputs) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        last_use = {source: node for node in self.nodes for source in node.all_input_nodes}
        read_later: dict[fx.Node, Tensor] = {}
        of_inputs: set[fx.Node] = set()  # nodes of tensors that the inputs' values are in
        for node in self.nodes:
            versions = {source: value._version for source, value in read_later.items()}
            with Operations() as counter:
                values[node] = self.evaluate(node, values, x)
            self.operations[node] = counter.total / 2 / len(x)
            if node.op == "placeholder" or any(n in of_inputs for n in node.all_input_nodes):
                if counter.is_dynamic and node.op != "call_module":
                    raise NotTraceable(f"{node.name} has as many rows as the values say")
                if any(isinstance(leaf, Tensor) for _, leaf in leaves(values[node])):
                    of_inputs.add(node)
            for source, version in versions.items():
                if last_use[source] is node and source.op != "get_attr":
                    del read_later[source]
                elif read_later[source]._version != version:
                    raise NotTraceable(f"{node.name} changes in place what is read again later")
            if isinstance(values[node], Tensor) and node in last_use:
                read_later[node] = values[node]
        return values

    def _name_item(self, node: fx.Node) -> None:
        """Marks a node that reads one of the tensors that a module returns, where it is a site."""
        source, names = node, list[str]()
        while source.op == "call_function" and source.target is operator.getitem:
            names.insert(0, str(source.args[1]))
            found = source.args[0]
            if not isinstance(found, fx.Node):
                return
            source = found
        if names and source.op == "call_module":
            item = item_name(self.modules[str(source.target)], tuple(names))
            if item is not None:
                node.meta[_ITEM] = str(source.target), item

    def evaluate(
        self,
        node: fx.Node,
        values: Values,
        x: Inputs | None,
        tensors: dict[str, Tensor] | None = None,
    ) -> Any:
        """One node's value, of its inputs' values.

        Args:
            x: the model's inputs, for the nodes that stand for them.
            tensors: parameters of the node's module that differ from the model's.
        """
        if node.op == "placeholder":
            # A copy: the model may change it.
            return None if x is None else x.tensors[self.inputs.index(node)].clone()
        if node.op == "output":
            return None
        if node.op == "get_attr":
            owner: Any = self.root
            for name in str(node.target).split("."):
                owner = getattr(owner, name)
            return owner
        args = fx.node.map_arg(node.args, lambda n: values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if tensors:
                return functional_call(module, tensors, args, kwargs)
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

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


def called_as(node: fx.Node) -> tuple[str, str | None] | None:
    """The module, and the function or item of what it returns, of a node that may be a site."""
    if _ITEM in node.meta:
        found: tuple[str, str] = node.meta[_ITEM]
        return found
    if node.op == "call_module":
        return str(node.target), None
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = str(name).partition(".")[0]
    if name not in ACTIVATION_FUNCTIONS:
        return None
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path, name.rstrip("_")


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


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


def twin(
    model: nn.Module, tensors: Mapping[str, Tensor], struck: Collection[str] | None = None
) -> nn.Module:
    """A twin of the model that computes with the given tensors themselves; buffers are copied.

    Its layers can be traced: all, or those in which something is struck.
    """
    buffers = {name: cloned(tensors[name]) for name, _ in model.named_buffers()}
    try:
        found = twin_of(model, {**tensors, **buffers})
    except ModelError as error:
        raise NotTraceable(f"its structure cannot be copied ({error})") from error
    make_traceable(found, struck)
    return found


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
    raise NotTraceable("a value's shape is not proportional to the number of inputs")
