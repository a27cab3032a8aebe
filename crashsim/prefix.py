"""A model as a graph, of which only what lies behind a fault is computed for every sample.

The model is traced by ``torch.fx``. The values of nodes that no fault can reach are computed once
for a batch of inputs; the others, for S samples at a time, on (S b) rows. A value that is needed on
both sides of the border is repeated along its batch axis, which is found by running the graph on
two and on three examples: sizes that the model's own code reads (``x.shape[0]``) are recognised in
the same way.

The traced model is a twin of the user's: its structure is copied, its tensors are shared.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from crashsim.changes import (
    RARE_NEURONS,
    RARE_WEIGHTS,
    SCATTERED,
    Changes,
    is_elementwise,
    is_rare,
    strike,
)
from crashsim.fastpaths import (
    WeightChanges,
    add_neuron_changes,
    can_add_weight_changes,
)
from crashsim.points import Placement
from crashsim.sites import ACTIVATION_FUNCTIONS, Site


class NotTraceable(Exception):
    """Why a model cannot be taken apart; it is then run as a whole."""


# Where the batch runs in a value: the axis of a tensor, "count" for a number that is proportional
# to the batch, None for what does not depend on it; nested as the value is.
Batched = Any

# Modules whose output is a new tensor, which may be changed in place.
_FRESH = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
)


@dataclass
class Reference:
    """A batch of inputs at the base point.

    Attributes:
        batch: number of inputs b.
        values: of the nodes before all faults.
        outputs: (b, m) of the linear layers that rare neuron faults are added to.
    """

    batch: int
    values: dict[fx.Node, Any]
    outputs: dict[fx.Node, Tensor] = field(default_factory=dict)


class Program:
    """The traced model with the places of its faults.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as the space computes with them.
        example: (1, ...) an input.
        placements: the faults.

    Raises:
        NotTraceable: says why the model cannot be taken apart.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        example: Tensor,
        placements: Sequence[Placement],
    ) -> None:
        self.placements = placements
        self._model = _twin(model, tensors)
        self._modules = dict(self._model.named_modules())
        defaults = _defaults(self._model)
        self._nodes = list(self._trace(defaults).nodes)
        arguments = [node for node in self._nodes if node.op == "placeholder"]
        self._given = dict(zip(arguments[1:], defaults.values(), strict=False))
        self._output = next(n for n in self._nodes if n.op == "output").args[0]
        self._batched = self._find_batch_axes(example)
        self._sites = self._find_sites()
        self._weights = self._find_weights(tensors)
        self._changed = self._find_changed()
        self.linear_after = self._find_linear_layers()
        self._tables: dict[fx.Node, Tensor] = {}
        reached = self._output in self._changed if isinstance(self._output, fx.Node) else False
        if self.not_additive:
            raise NotTraceable(self.not_additive)
        if not isinstance(self._output, fx.Node) or self._batched[self._output] != 0:
            raise NotTraceable("its output is not one tensor with the batch on its first axis")
        if not reached:
            raise NotTraceable("no fault reaches its output")

    # -- Taking the model apart ---------------------------------------------------------------

    def _trace(self, defaults: dict[str, Any]) -> fx.Graph:
        struck = {p.site.module for p in self.placements if p.site.kind in ("activation", "module")}

        class Tracer(fx.Tracer):
            def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
                usual = super().is_leaf_module(m, module_qualified_name)
                return usual or (module_qualified_name in struck and not any(m.children()))

        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                return Tracer().trace(self._model, defaults)
        except Exception as error:  # whatever the model's own code does with a stand-in
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise NotTraceable(f"torch.fx cannot trace it ({reason})") from error

    def _find_batch_axes(self, example: Tensor) -> dict[fx.Node, Batched]:
        two, three = (self._run_all(_repeat(example, n, 0)) for n in (2, 3))
        return {node: _batch_axis(two[node], three[node]) for node in self._nodes}

    def _run_all(self, x: Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            values[node] = self._evaluate(node, values, x)
        return values

    def _find_sites(self) -> dict[fx.Node, Site]:
        """The node of each struck site."""
        wanted = {
            (p.site.kind == "input", p.site.module, p.site.function, p.site.call): p.site
            for p in self.placements
            if p.site.kind != "parameter"
        }
        found: dict[fx.Node, Site] = {}
        calls: Counter[tuple[str, str | None]] = Counter()
        is_first = True
        for node in self._nodes:
            if node.op == "placeholder":
                if is_first and (True, "", None, 0) in wanted:
                    found[node] = wanted[True, "", None, 0]
                is_first = False
                continue
            key = self._key(node)
            if key is None:
                continue
            site = wanted.get((False, *key, calls[key]))
            calls[key] += 1
            if site is not None:
                found[node] = site
        missing = set(wanted.values()) - set(found.values())
        if missing:
            name = min(site.name for site in missing)
            raise NotTraceable(f"site {name!r} lies inside a layer that torch.fx does not enter")
        for node, site in found.items():
            batched = self._batched[node]
            if (batched[0] if isinstance(batched, list) else batched) != site.axis:
                raise NotTraceable(f"site {site.name!r} changes shape between calls")
        return found

    def _key(self, node: fx.Node) -> tuple[str, str | None] | None:
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

    def _find_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, list[Placement]]:
        """The faults of each layer's parameters, if all of them can be added to its output."""
        found: dict[str, list[Placement]] = {}
        self.not_additive: str | None = None
        placed = [p for p in self.placements if p.site.kind == "parameter"]
        read = {str(node.target) for node in self._nodes if node.op == "get_attr"}
        called = {node.target for node in self._nodes if node.op == "call_module"}
        owners = Counter(id(t) for _, t in self._model.named_parameters(remove_duplicate=False))
        for p in placed:
            path, _, name = p.site.module.rpartition(".")
            layer = self._modules.get(path)
            reason = None
            if sum(q.site.module == p.site.module for q in placed) > 1:
                reason = "several faults act on it one after the other"
            elif layer is None or path not in called or not can_add_weight_changes(layer, name):
                reason = "it is no weight or bias of a Linear or Conv2d layer that is called"
            elif p.site.module in read or owners[id(layer.get_parameter(name))] > 1:
                reason = "other parts of the model read it too"
            if reason:
                self.not_additive = self.not_additive or f"{p.site.name}: {reason}"
            else:
                found.setdefault(path, []).append(p)
        self._steps = {
            p: p.fault.displacement(tensors[p.site.module]).reshape(-1)
            for placed in found.values()
            for p in placed
        }
        return found

    def _find_changed(self) -> set[fx.Node]:
        """The nodes whose values faults can change, be it by a site of their own."""
        changed: set[fx.Node] = set()
        for node in self._nodes:
            struck = node in self._sites or node.target in self._weights
            if struck or any(n in changed for n in node.all_input_nodes):
                changed.add(node)
        return changed

    def _find_linear_layers(self) -> dict[fx.Node, fx.Node]:
        """Linear layers alone to read a struck site that no other fault precedes: site by layer."""
        found: dict[fx.Node, fx.Node] = {}
        for start, site in self._sites.items():
            placed = [p for p in self.placements if p.site == site]
            one = len(placed) == 1 and is_elementwise(placed[0]) and self._batched[start] == 0
            if not one or any(n in self._changed for n in start.all_input_nodes):
                continue
            node = start
            while len(node.users) == 1:
                node = next(iter(node.users))
                if self._is_flat_linear(node, site.size) and node.target not in self._weights:
                    found[node] = start
                if node in self._sites or not self._passes_on(node):
                    break
        return found

    def _is_flat_linear(self, node: fx.Node, size: int) -> bool:
        if node.op != "call_module":
            return False
        layer = self._modules[str(node.target)]
        plain = type(layer) is nn.Linear and not _has_hooks(layer)
        return plain and layer.in_features == size and layer.weight.dtype in _BAG_TYPES

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether a node only flattens all but the batch axis, or does nothing."""
        if node.op == "call_function" and node.target is torch.flatten:
            return node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}
        if node.op != "call_module":
            return False
        module = self._modules[str(node.target)]
        if _has_hooks(module):
            return False
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        return isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd)

    # -- Running it ---------------------------------------------------------------------------

    def sparse_layers(self, changes: Mapping[Placement, Changes] | None) -> set[fx.Node]:
        """The linear layers to be computed from their changes.

        Args:
            changes: of the points at hand; None for those that Monte Carlo samples.
        """
        chosen = set()
        for layer, start in self.linear_after.items():
            site = self._sites[start]
            placement = next(p for p in self.placements if p.site == site)
            if is_rare(placement, RARE_NEURONS) or (
                changes is not None and changes[placement].is_single
            ):
                chosen.add(layer)
        return chosen

    def can_add_weights(self, changes: Mapping[Placement, Changes] | None) -> bool:
        """Whether faults of weights are added to their layers' outputs; arguments as above."""
        return self.not_additive is None and all(
            is_rare(p, RARE_WEIGHTS) or (changes is not None and changes[p].is_single)
            for placed in self._weights.values()
            for p in placed
        )

    def why_not_added(self) -> str:
        """Why faults of weights are not added to their layers' outputs."""
        common = [p for ps in self._weights.values() for p in ps if not is_rare(p, RARE_WEIGHTS)]
        share = f"at most {RARE_WEIGHTS:.1%} may be struck"
        return f"{common[0].site.name}: too many of its weights change ({share})"

    def explain(self, placement: Placement) -> str:
        """How samples are computed at a placement, and why."""
        fault, site = placement.fault, placement.site
        if site.kind == "parameter":
            how = (
                f"each struck value's effect is added to the layer's output: about "
                f"{fault.rate * placement.size:.3g} of {placement.size} are struck"
            )
            start = next(
                n
                for n in self._nodes
                if n.op == "call_module" and n.target == site.module.rpartition(".")[0]
            )
        else:
            start = next(n for n, s in self._sites.items() if s == site)
            layer = next(
                (n for n in self.sparse_layers(None) if self.linear_after[n] is start), None
            )
            if layer is not None:
                how = (
                    f"struck inputs alone are subtracted in {layer.target}: about "
                    f"{fault.rate * site.size:.3g} of {site.size}"
                )
            elif is_rare(placement, SCATTERED) and is_elementwise(placement):
                how = f"struck one by one: about {fault.rate * site.size:.3g} of {site.size}"
            else:
                how = f"masked: too many of {site.size} change for anything else"
        if any(n in self._changed for n in start.all_input_nodes):
            return f"{how}; what comes before is faulty too"
        return f"{how}; what comes before is computed once"

    def reference(self, x: Tensor, changes: Mapping[Placement, Changes]) -> Reference:
        """Runs what lies before all faults on inputs (b, ...)."""
        reference = Reference(len(x), {})
        values = reference.values
        sparse = self.sparse_layers(changes)
        for node in self._nodes:
            if any(n in self._changed for n in node.all_input_nodes):
                continue
            values[node] = self._evaluate(node, values, x, self._at_base(node, changes))
            for layer in sparse:
                if self.linear_after[layer] is node:
                    site = self._sites[node]
                    at_base = [changes[p].part(0, 0) for p in self.placements if p.site == site]
                    value = values[node].reshape(len(x), -1)
                    struck = _strike_base(value, at_base[0], site)
                    reference.outputs[layer] = self._modules[str(layer.target)](struck)
        return reference

    def run(self, reference: Reference, changes: Mapping[Placement, Changes], count: int) -> Tensor:
        """The outputs (S b, ...) at S points, whose changes these are."""
        values: dict[fx.Node, Any] = {}
        skipped: set[fx.Node] = set()
        for layer in reference.outputs:
            node = layer
            while node is not self.linear_after[layer]:
                node = node.all_input_nodes[0]
                skipped.add(node)
        last_use = self._last_uses()
        for node in self._nodes:
            if node not in self._changed or node in skipped:
                continue
            values[node] = self._faulty(node, reference, values, changes, count)
            for done in last_use.get(node, ()):
                values.pop(done, None)
        assert isinstance(self._output, fx.Node)
        output: Tensor = values[self._output]
        return output

    def _faulty(
        self,
        node: fx.Node,
        reference: Reference,
        values: dict[fx.Node, Any],
        changes: Mapping[Placement, Changes],
        count: int,
    ) -> Any:
        if node.op == "output":
            return None
        owned = True
        if node in reference.outputs:
            start = self.linear_after[node]
            site = self._sites[start]
            change = next(changes[p] for p in self.placements if p.site == site)
            before = reference.values[start].reshape(reference.batch, -1)
            layer = self._modules[str(node.target)]
            assert isinstance(layer, nn.Linear)
            value: Any = add_neuron_changes(
                reference.outputs[node], before, change, self._transposed(node)
            )
        elif node in reference.values:
            value = _expand(reference.values[node], self._batched[node], count)
        else:
            every = _Expanding(values, reference.values, self._batched, count)
            value = self._evaluate(node, every, None, self._at_base(node, changes))
            owned = node.op == "call_module" and _is_fresh(self._modules[str(node.target)])
        for p in self._weights.get(str(node.target), []) if node.op == "call_module" else []:
            layer = self._modules[str(node.target)]
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            source = node.all_input_nodes[0]
            shared = source not in values
            value = value.contiguous()
            WeightChanges(
                layer, p.site.module.rpartition(".")[2], changes[p], self._steps[p]
            ).add_to(value, (reference.values if shared else values)[source], shared)
        site = self._sites.get(node)  # type: ignore[assignment]
        if site is not None:
            struck = [changes[p] for p in self.placements if p.site == site]
            if isinstance(value, tuple):
                value = strike(value[0], site, struck, count), *value[1:]
            else:
                value = strike(value, site, struck, count, owned)
        return value

    def _at_base(
        self, node: fx.Node, changes: Mapping[Placement, Changes]
    ) -> dict[str, Tensor] | None:
        """A layer's parameters at the base point, where that is not zero."""
        if node.op != "call_module":
            return None
        found = {}
        for p in self._weights.get(str(node.target), []):
            base = changes[p].base
            if base is not None:
                name = p.site.module.rpartition(".")[2]
                weight = self._modules[str(node.target)].get_parameter(name)
                found[name] = p.fault.perturb(weight, base, p.site.shape)
        return found or None

    def _transposed(self, node: fx.Node) -> Tensor:
        """A linear layer's weights with rows for its inputs, kept for the next chunk."""
        if node not in self._tables:
            layer = self._modules[str(node.target)]
            assert isinstance(layer, nn.Linear)
            self._tables[node] = layer.weight.T.contiguous()
        return self._tables[node]

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes that can be forgotten after each node."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self._nodes:
            for source in node.all_input_nodes:
                if node.op != "output":
                    last[source] = node
        found: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            if source is not self._output:
                found.setdefault(node, []).append(source)
        return found

    def _evaluate(
        self,
        node: fx.Node,
        values: _Values,
        x: Tensor | None,
        tensors: dict[str, Tensor] | None = None,
    ) -> Any:
        """One node's value, of its inputs' values."""
        if node.op == "placeholder":
            if node is self._nodes[0]:
                return None if x is None else x.clone()  # a copy: the model may change it
            return self._given[node]
        if node.op == "output":
            return None
        if node.op == "get_attr":
            owner: Any = self._model
            for name in str(node.target).split("."):
                owner = getattr(owner, name)
            return owner
        args = fx.node.map_arg(node.args, lambda n: values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            if tensors:
                return functional_call(module, tensors, args, kwargs)
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class _Values(Protocol):
    """The values of nodes."""

    def __getitem__(self, node: fx.Node, /) -> Any: ...


class _Expanding:
    """Values for S samples: the faulty ones, and the others repeated as they are asked for."""

    def __init__(
        self,
        faulty: Mapping[fx.Node, Any],
        clean: Mapping[fx.Node, Any],
        batched: Mapping[fx.Node, Batched],
        count: int,
    ) -> None:
        self._faulty, self._clean, self._batched, self._count = faulty, clean, batched, count

    def __getitem__(self, node: fx.Node) -> Any:
        if node in self._faulty:
            return self._faulty[node]
        return _expand(self._clean[node], self._batched[node], self._count)


_BAG_TYPES = (torch.float32, torch.float64)


def _twin(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model's structure that computes with the given tensors themselves."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = nn.Parameter(tensors[name], requires_grad=False)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = tensors[name]
    try:
        return deepcopy(model, memo)
    except Exception as error:
        raise NotTraceable(f"its structure cannot be copied ({error})") from error


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The forward's arguments after the first, at their defaults."""
    rest = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty}


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_fresh(module: nn.Module) -> bool:
    in_place = getattr(module, "inplace", False)
    return isinstance(module, _FRESH) and not in_place and not _has_hooks(module)


def _strike_base(value: Tensor, change: Changes, site: Site) -> Tensor:
    """(b, n) activations at the base point."""
    if change.base is None:
        return value
    return value + change.base * change.placement.fault.displacement(value)


def _batch_axis(two: Any, three: Any) -> Batched:
    """Where the batch runs in a value, from its values for two and three examples."""
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.dim() == three.dim():
        pairs = list(enumerate(zip(two.shape, three.shape, strict=True)))
        differing = [axis for axis, (a, b) in pairs if a != b]
        if not differing:
            return None
        if len(differing) == 1 and two.shape[differing[0]] * 3 == three.shape[differing[0]] * 2:
            return differing[0]
    elif isinstance(two, tuple | list) and type(two) is type(three) and len(two) == len(three):
        return [_batch_axis(a, b) for a, b in zip(two, three, strict=True)]
    elif isinstance(two, int) and isinstance(three, int):
        if two == three:
            return None
        if two * 3 == three * 2:
            return "count"
    elif type(two) is type(three):
        return None
    raise NotTraceable("a value's shape is not proportional to the number of inputs")


def _expand(value: Any, batched: Batched, count: int) -> Any:
    """A value for S samples: a copy, so that what changes it in place changes nothing else."""
    if batched is None:
        return value
    if batched == "count":
        return value * count
    if isinstance(batched, int):
        return _repeat(value, count, batched)
    items = [_expand(v, b, count) for v, b in zip(value, batched, strict=True)]
    return torch.Size(items) if isinstance(value, torch.Size) else type(value)(items)


def _repeat(value: Tensor, count: int, axis: int) -> Tensor:
    times = [1] * value.dim()
    times[axis] = count
    return value.repeat(times)
