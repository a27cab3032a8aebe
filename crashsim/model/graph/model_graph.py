"""A torch model as a graph of operations, each with the site that its value is.

This is the one reading of a network. Injection takes the graph apart at the faults, layer bounds
follow errors through it, and ``crashsim.model.layers`` views it as a chain of layers for proofs,
the width law and the chip.

The graph is that of a twin of the user's model: the structure is copied, the tensors are shared.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from crashsim.errors import ModelError
from crashsim.model.graph.traceable import make_traceable
from crashsim.model.graph.tracing import Tracer, UntraceableError
from crashsim.model.graph.untraced import has_hooks, unseen
from crashsim.model.inputs import Inputs
from crashsim.model.nested import leaves as leaves_of
from crashsim.model.nested import mapped
from crashsim.model.readout import Readout
from crashsim.model.sites.layer_kinds import ACTIVATION_MODULES
from crashsim.model.sites.names import (
    ACTIVATION_FUNCTIONS,
    CallNumbers,
    SiteKey,
    activation_function,
    function_name,
    item_name,
)
from crashsim.model.twins.copying import Copier
from crashsim.model.twins.states import State, cloned
from crashsim.model.twins.twin import keep_apart, twin_of, written

NodeKind = Literal["input", "tensor", "module", "item", "function", "output"]
_KINDS: dict[str, NodeKind] = {
    "placeholder": "input",
    "get_attr": "tensor",
    "call_module": "module",
    "call_function": "function",
    "call_method": "function",
    "output": "output",
}


@dataclass(frozen=True)
class Role:
    """What a node of the graph stands for in the model.

    Attributes:
        kind: ``input`` (a tensor of the inputs), ``tensor`` (a parameter or another tensor that the
            model holds), ``module`` (what a module returns), ``item`` (one tensor of several that
            a module returns, beside the first), ``function`` (a function's or method's value) or
            ``output`` (what the model returns).
        module: dotted path of the module that is called; of a function, of the module whose
            ``forward`` calls it; of a tensor, its full name.
        name: of the function, the item or the input.
        call: number of calls of the same in the forward pass before this one.
    """

    kind: NodeKind
    module: str = ""
    name: str | None = None
    call: int = 0


class NodeValues(Protocol):
    """The values of nodes, by node."""

    def __getitem__(self, node: fx.Node, /) -> Any: ...


class ModelGraph:
    """A model's operations in order of execution, and how to compute each.

    Args:
        model: is neither run nor changed.
        example: a single example, for the shapes.
        readout: which tensor of the model's output is analysed.
        tensors: parameters and buffers by name, to compute with; None: the model's own.
        leaves: paths of modules to be kept whole, if they have no others inside.
        struck: paths of what faults strike; a fused layer with one of them inside is opened.

    Attributes:
        root: the twin of the model.
        modules: its modules by path.
        nodes: in order of execution.
        inputs: the nodes that stand for the tensors of the inputs, in order.
        output: the node of the tensor that is analysed.
        roles: what each node stands for.
        sites: the key of the site that a node's value is, for the nodes that are sites inside the
            model.
        values: what each node's value is for two examples; tensors are on the ``meta`` device,
            with a shape and a type, but no numbers.

    Raises:
        UntraceableError: torch.fx cannot follow the model, or its graph may compute something
            else than the model; the message says why.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        readout: Readout | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        leaves: Collection[str] = (),
        struck: Collection[str] = (),
    ) -> None:
        if (reason := unseen(model)) is not None:
            raise UntraceableError(reason)
        with torch.inference_mode(False), torch.no_grad():  # as it is run: forward may ask
            self.root = _twin(model, tensors, struck)
            self.modules = dict(self.root.named_modules())
            self._tried = [(example.repeat(n), dict[fx.Node, Any]()) for n in (2, 3)]
            self.nodes = list(self._trace(example, leaves, readout or Readout()).nodes)
            self._tried.clear()
            self._watched = self._watch_layers()
            output = self.nodes[-1].args[0]
            if not isinstance(output, fx.Node):
                raise UntraceableError("returns more than one tensor")
            self.output = output
            self.values = self.outline(example.repeat(2))
        self.roles = self._find_roles()
        self.sites = {
            node: SiteKey(role.module, role.name, role.call)
            for node, role in self.roles.items()
            if self._is_site(node, role)
        }

    def _trace(self, example: Inputs, leaves: Collection[str], readout: Readout) -> fx.Graph:
        """The graph from the tensors of the inputs to the one of the output that is analysed."""
        tracer = Tracer(leaves, self._number)

        def run() -> Any:
            tensors = tuple(tracer.placeholder(f"input_{i}") for i in range(len(example.tensors)))
            self.inputs = [tensor.node for tensor in tensors]
            targets = tracer.placeholder("targets") if readout.loss is not None else None
            tracer.show_parameters()
            arguments, keywords = example.of(tensors)
            return readout(self.root.forward(*arguments, **keywords), targets)

        try:
            return tracer.follow(self.root, run)
        except Exception as error:  # whatever the model's own code does with a stand-in
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UntraceableError(f"torch.fx cannot trace it ({reason})") from error

    def _number(self, node: fx.Node) -> float:
        """The number that a node of the graph so far is, whatever the batch.

        Raises:
            TypeError: it is not a number, or depends on the batch.
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

    def outline(self, x: Inputs) -> dict[fx.Node, Any]:
        """What every node's value is for some examples; tensors without their numbers.

        Raises:
            UntraceableError: the graph fails, overwrites a value that is needed later, or has a
                layer that keeps something from one call to the next.
        """
        try:
            found = {n: mapped(v, _without_numbers) for n, v in self._run(x).items()}
        except UntraceableError:
            raise
        except Exception as error:  # a branch on types, say, that a stand-in made take another way
            raise UntraceableError(f"traced by torch.fx, it fails ({error})") from error
        if reason := self.why_wrong():
            raise UntraceableError(reason)
        return found

    def _run(self, x: Inputs) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        last_use = {source: node for node in self.nodes for source in node.all_input_nodes}
        read_later: dict[fx.Node, Tensor] = {}
        for node in self.nodes:
            versions = {source: value._version for source, value in read_later.items()}
            values[node] = self.compute(node, values, x)
            for source, version in versions.items():
                if last_use[source] is node and source.op != "get_attr":
                    del read_later[source]
                elif read_later[source]._version != version:
                    what = self.describe(node)
                    raise UntraceableError(f"{what} overwrites a value that is needed later")
            if isinstance(values[node], Tensor) and node in last_use:
                read_later[node] = values[node]
        return values

    def compute(self, node: fx.Node, values: NodeValues, x: Inputs) -> Any:
        """One node's value in ``outline``, for subclasses that look at how it is computed."""
        return self.evaluate(node, values, x)

    def evaluate(
        self,
        node: fx.Node,
        values: NodeValues,
        x: Inputs | None,
        tensors: dict[str, Tensor] | None = None,
    ) -> Any:
        """One node's value, of the values of the nodes that it reads.

        Args:
            x: the model's inputs, for the nodes that stand for them.
            tensors: parameters of the node's module that differ from the model's.
        """
        if node.op == "placeholder":
            if x is None:
                return None
            if node not in self.inputs:  # what a loss compares the outputs with
                return x.targets
            # A copy: the model may change it.
            return x.tensors[self.inputs.index(node)].clone()
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

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None for a node that calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def describe(self, node: fx.Node) -> str:
        """A node in a message: ``layer 'act' (ReLU)`` or ``relu()``."""
        module = self.module_of(node)
        if module is not None:
            return f"layer {node.target!r} ({type(module).__name__})"
        return f"{function_name(node.target).rstrip('_')}()"

    def _find_roles(self) -> dict[fx.Node, Role]:
        calls = CallNumbers()
        roles: dict[fx.Node, Role] = {}
        for node in self.nodes:
            kind = _KINDS[node.op]
            if kind == "module":
                key = calls.key(str(node.target), None)
            elif kind == "function":
                roles[node] = self._item_role(node, roles) or self._function_role(node, calls)
                continue
            else:
                key = SiteKey(str(node.target) if kind == "tensor" else "")
            name = str(node.target) if kind == "input" else None
            roles[node] = Role(kind, key.module, name, key.call)
        return roles

    def _function_role(self, node: fx.Node, calls: CallNumbers) -> Role:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        name = activation_function(node.target) or function_name(node.target)
        key = calls.key(path, name)
        return Role("function", key.module, key.function, key.call)

    def _item_role(self, node: fx.Node, roles: Mapping[fx.Node, Role]) -> Role | None:
        """The role of a node that reads one of the tensors that a module returns."""
        source, names = node, list[str]()
        while source.op == "call_function" and source.target is operator.getitem:
            names.insert(0, str(source.args[1]))
            found = source.args[0]
            if not isinstance(found, fx.Node) or isinstance(self.values[found], Tensor):
                return None
            source = found
        module = self.module_of(source)
        if not names or module is None or not isinstance(self.values[node], Tensor):
            return None
        name = item_name(module, tuple(names))
        if name is None or name in ACTIVATION_FUNCTIONS:
            return None
        return Role("item", str(source.target), name, roles[source].call)

    def _is_site(self, node: fx.Node, role: Role) -> bool:
        if role.kind in ("module", "item"):
            return True
        # Inside an activation module, its output alone is a site.
        inside = isinstance(self.modules.get(role.module), ACTIVATION_MODULES)
        return (
            role.kind == "function" and activation_function(node.target) is not None and not inside
        )


def _twin(
    model: nn.Module, tensors: Mapping[str, Tensor] | None, struck: Collection[str]
) -> nn.Module:
    """A twin of the model that computes with the given tensors themselves; buffers are copied."""
    if tensors is not None:
        tensors = {**tensors, **{name: cloned(tensors[name]) for name, _ in model.named_buffers()}}
    try:
        twin = twin_of(model, tensors)
    except ModelError as error:
        raise UntraceableError(f"its structure cannot be copied ({error})") from error
    keep_apart(twin, written(model))
    make_traceable(twin, struck)
    return twin


def _without_numbers(_: Any, leaf: Any) -> Any:
    """A part of a value as it is kept: sizes and other numbers, and the shapes of tensors."""
    if isinstance(leaf, Tensor):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    return leaf if isinstance(leaf, int | float) else None


def has_tensors(value: Any) -> bool:
    """Whether a node's value is a tensor or holds one."""
    return any(isinstance(leaf, Tensor) for _, leaf in leaves_of(value))
