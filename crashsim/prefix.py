"""Only what lies behind a fault is computed for every sample.

The values of nodes that no fault can reach are computed once for a batch of inputs; the others, for
S samples at a time, on (S b) rows. A value that is needed on both sides of the border is repeated
along its batch axis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from crashsim import convolutions
from crashsim.chains import find_chains, is_followed
from crashsim.changes import (
    RARE_WEIGHTS,
    SCATTERED,
    Changes,
    is_elementwise,
    is_rare,
    strike,
    strike_all,
)
from crashsim.convolutions import Reach
from crashsim.fastpaths import add_bias_changes, add_neuron_changes, add_weight_changes
from crashsim.graph import NotTraceable, TracedModel, called_as, expand
from crashsim.inputs import Inputs
from crashsim.overwriting import Overwriting
from crashsim.points import Placement
from crashsim.readout import Readout
from crashsim.sites import ACTIVATION_FUNCTIONS, Site
from crashsim.sources import Reference, Sources
from crashsim.touched import WRITE, Touched


class Program:
    """The traced model with the places of its faults.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as the space computes with them.
        example: a single example.
        placements: the faults.
        readout: which tensor of the model's output is analysed.

    Raises:
        NotTraceable: says why the model cannot be taken apart.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        example: Inputs,
        placements: Sequence[Placement],
        readout: Readout,
    ) -> None:
        self.placements = placements
        sites = [p.site for p in placements if p.site.kind in ("activation", "module")]
        struck = {site.module for site in sites if site.function not in ACTIVATION_FUNCTIONS}
        self._traced = TracedModel(model, tensors, example, struck, readout)
        self._names = example.site_names
        self._sites = self._find_sites()
        self._weights = self._find_weights(tensors)
        self._changed = self._find_changed()
        self.chains = find_chains(
            self._traced, placements, self._sites, self._changed, self._weights
        )
        self._overwriting = Overwriting(self._traced, self._changed, self._sites)
        self._tables: dict[fx.Node, Tensor] = {}
        self._reaches: dict[fx.Node, Reach] = {}
        if self.not_additive:
            raise NotTraceable(self.not_additive)
        if self._traced.output not in self._changed:
            raise NotTraceable("no fault reaches its output")

    # -- Where the faults are -----------------------------------------------------------------

    def _find_sites(self) -> dict[fx.Node, Site]:
        """The node of each struck site."""
        wanted = {
            (p.site.kind == "input", p.site.module, p.site.function, p.site.call): p.site
            for p in self.placements
            if p.site.kind != "parameter"
        }
        found: dict[fx.Node, Site] = {}
        for node, name in zip(self._traced.inputs, self._names, strict=True):
            if (True, name, None, 0) in wanted:
                found[node] = wanted[True, name, None, 0]
        calls: Counter[tuple[str, str | None]] = Counter()
        for node in self._traced.nodes:
            key = called_as(node)
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
            batched = self._traced.batched[node]
            if (batched[0] if isinstance(batched, list) else batched) != site.axis:
                raise NotTraceable(f"site {site.name!r} changes shape between calls")
        return found

    def _find_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, list[Placement]]:
        """The faults of each layer's parameters, if all of them can be added to its output."""
        found: dict[str, list[Placement]] = {}
        self.not_additive: str | None = None
        placed = [p for p in self.placements if p.site.kind == "parameter"]
        read = {str(node.target) for node in self._traced.nodes if node.op == "get_attr"}
        called = {node.target for node in self._traced.nodes if node.op == "call_module"}
        owners = Counter(
            id(t) for _, t in self._traced.root.named_parameters(remove_duplicate=False)
        )
        for p in placed:
            path, _, name = p.site.module.rpartition(".")
            layer = self._traced.modules.get(path)
            reason = None
            if sum(q.site.module == p.site.module for q in placed) > 1:
                reason = "several faults act on it one after the other"
            elif layer is None or path not in called or not _is_additive(layer, name):
                reason = "it is no weight or bias of a linear or convolutional layer that is called"
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
        for node in self._traced.nodes:
            struck = node in self._sites or node.target in self._weights
            if struck or any(n in changed for n in node.all_input_nodes):
                changed.add(node)
        return changed

    # -- Running it ---------------------------------------------------------------------------

    def sparse_layers(self, changes: Mapping[Placement, Changes] | None) -> set[fx.Node]:
        """The layers to be computed from the changes of their inputs.

        Args:
            changes: of the points at hand; None for those that Monte Carlo samples.
        """
        chosen = set()
        for node, chain in self.chains.items():
            placement = self._placement_at(chain[0])
            layer = self._traced.modules[str(node.target)]
            ours = None if changes is None else changes[placement]
            if is_followed(layer, placement, ours):
                chosen.add(node)
        return chosen

    def _placement_at(self, node: fx.Node) -> Placement:
        """The first fault at a struck site."""
        return next(p for p in self.placements if p.site == self._sites[node])

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
                for n in self._traced.nodes
                if n.op == "call_module" and n.target == site.module.rpartition(".")[0]
            )
        else:
            start = next(n for n, s in self._sites.items() if s == site)
            sparse = [n for n in self.sparse_layers(None) if self.chains[n][0] is start]
            layers = sorted(str(n.target) for n in sparse)
            if layers:
                how = (
                    f"struck inputs alone are subtracted in {' and '.join(layers)}: about "
                    f"{fault.rate * site.size:.3g} of {site.size}"
                )
            elif is_rare(placement, SCATTERED) and is_elementwise(placement):
                how = f"struck one by one: about {fault.rate * site.size:.3g} of {site.size}"
            else:
                how = f"masked: too many of {site.size} change for anything else"
        if any(n in self._changed for n in start.all_input_nodes):
            return f"{how}; what comes before is faulty too"
        return f"{how}; what comes before is computed once"

    def reference(self, x: Inputs, changes: Mapping[Placement, Changes]) -> Reference:
        """Runs what lies before all faults on b inputs."""
        reference = Reference(len(x), {})
        values = reference.values
        sparse = self.sparse_layers(changes)
        for node in self._traced.nodes:
            if any(n in self._changed for n in node.all_input_nodes):
                continue
            values[node] = self._traced.evaluate(node, values, x, self._at_base(node, changes))
            for layer in sparse:
                chain = self.chains[layer]
                if chain[0] is node:
                    passed = {node: _strike_base(values[node], changes[self._placement_at(node)])}
                    for link in chain[1:]:
                        passed[link] = self._traced.evaluate(link, passed, None)
                    reference.outputs[layer] = passed[layer]
        count = next(iter(changes.values())).count
        costs, sizes = self._costs(reference), self._traced.sizes
        touched = self._touched(changes, count)
        if touched.is_worth(count, len(x), costs, sizes, self._traced.output):
            every = dict(values)
            for node in self._traced.nodes:
                if node in self._changed:
                    every[node] = self._traced.evaluate(node, every, x)
            reference.clean = {node: every[node] for node in self._changed}
        return reference

    def _touched(self, changes: Mapping[Placement, Changes], count: int) -> Touched:
        """Which samples faults touch before and after each node."""
        return Touched.of(
            self._traced.nodes,
            self._changed,
            lambda node: [changes[p] for p in self._placed_at(node)],
            count,
        )

    def _skipped(self, reference: Reference) -> set[fx.Node]:
        """What none but sparse layers would read."""
        skipped: set[fx.Node] = set()
        for layer in reference.outputs:
            for node in reversed(self.chains[layer][:-1]):
                if all(user in skipped or user in reference.outputs for user in node.users):
                    skipped.add(node)
        return skipped

    def _costs(self, reference: Reference) -> dict[fx.Node, float]:
        """What each node that is computed costs for a sample of one input."""
        costs: dict[fx.Node, float] = {}
        for node in self._changed - self._skipped(reference):
            dense = node not in reference.values and node not in reference.outputs
            operations = self._traced.operations[node] if dense else 0.0
            costs[node] = operations + WRITE * self._traced.sizes[node]
        return costs

    def _placed_at(self, node: fx.Node) -> list[Placement]:
        """The faults that act on a node's value."""
        weights = self._weights.get(str(node.target), []) if node.op == "call_module" else []
        site = self._sites.get(node)
        return [*weights, *(p for p in self.placements if p.site == site)]

    def run(self, reference: Reference, changes: Mapping[Placement, Changes], count: int) -> Tensor:
        """The outputs (S b, ...) at S points, whose changes these are."""
        values: dict[fx.Node, Any] = {}
        touched, order = None, np.arange(count)
        if reference.clean is not None:
            # Samples in the order of their first faults: the touched ones come first everywhere.
            order = self._touched(changes, count).order(count)
            changes = {p: change.among(order) for p, change in changes.items()}
            touched = self._touched(changes, count)
        skipped = self._skipped(reference)
        last_use = self._last_uses()
        for node in self._traced.nodes:
            if node not in self._changed or node in skipped:
                continue
            sources = Sources(values, reference, self._traced.batched, touched, count)
            values[node] = self._faulty(node, reference, sources, changes)
            for done in last_use.get(node, ()):
                values.pop(done, None)
        everyone = Sources(values, reference, self._traced.batched, touched, count)
        output: Tensor = everyone[self._traced.output]
        if touched is None:
            return output
        back = torch.from_numpy(np.argsort(order)).to(output.device)
        output = output.unflatten(0, (count, -1)).index_select(0, back).flatten(0, 1)
        return output

    def _faulty(
        self,
        node: fx.Node,
        reference: Reference,
        sources: Sources,
        changes: Mapping[Placement, Changes],
    ) -> Any:
        """A node's value for the samples that are touched once its own faults have acted."""
        if node.op == "output":
            return None
        owned, ours = True, {p: sources.after(node, changes[p]) for p in self._placed_at(node)}
        count = sources.start(node)
        if node in reference.outputs:
            start = self.chains[node][0]
            change = sources.after(start, changes[self._placement_at(start)])
            value: Any = self._sparse_output(node, reference, change)
        elif node in reference.values:
            value, count = reference.values[node], sources.finish(node)
            alone = all(p.site.kind != "parameter" for p in ours)
            if node in self._sites and alone and isinstance(value, Tensor):
                return strike_all(value, self._sites[node], list(ours.values()), count)
            value = expand(value, self._traced.batched[node], count)
        elif (act := self._overwriting.in_place(node)) is not None:
            value = act(sources[node.all_input_nodes[0]])
        else:
            value = self._traced.evaluate(node, sources, None, self._at_base(node, changes))
            owned = self._overwriting.is_fresh(node)
        if ours and node not in reference.values:
            value = sources.grow(node, value)
            count = sources.finish(node)
        for p in ours:
            if p.site.kind == "parameter":
                value = value.contiguous()
                rows = len(value) // count
                for first, last, before, shared in sources.inputs_of(node, count):
                    part, output = ours[p].part(first, last), value[first * rows : last * rows]
                    self._add_weight_changes(node, output, before, part, shared)
        if node in self._sites:
            struck = [change for p, change in ours.items() if p.site.kind != "parameter"]
            if isinstance(value, tuple):
                value = strike(value[0], self._sites[node], struck, count), *value[1:]
            else:
                value = strike(value, self._sites[node], struck, count, owned)
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
                weight = self._traced.modules[str(node.target)].get_parameter(name)
                found[name] = p.fault.perturb(weight, base, p.site.shape)
        return found or None

    def _sparse_output(self, node: fx.Node, reference: Reference, change: Changes) -> Tensor:
        """(S b, ...) a layer's output, from the changes of its input."""
        start = self.chains[node][0]
        before = reference.values[start].reshape(reference.batch, -1)
        output = reference.outputs[node]
        layer = self._traced.modules[str(node.target)]
        if isinstance(layer, nn.Linear):
            if node not in self._tables:  # kept for the next chunk
                self._tables[node] = layer.weight.T.contiguous()
            return add_neuron_changes(output, before, change, self._tables[node])
        reach = self._reach(node, self._sites[start].shape[1:], output.shape[2:])
        return convolutions.add_neuron_changes(output, before, change, reach)

    def _add_weight_changes(
        self, node: fx.Node, output: Tensor, value: Tensor, change: Changes, shared: bool
    ) -> None:
        """Adds what faults of a layer's parameter change to its output, in place."""
        layer = self._traced.modules[str(node.target)]
        p, steps = change.placement, self._steps[change.placement]
        is_linear = isinstance(layer, nn.Linear)
        if p.site.module.rpartition(".")[2] == "bias":
            add_bias_changes(output, change, steps, -1 if is_linear else 1)
        elif is_linear:
            add_weight_changes(output, value, change, steps, shared)
        else:
            reach = self._reach(node, value.shape[2:], output.shape[2:])
            convolutions.add_weight_changes(output, value, change, steps, reach, shared)

    def _reach(self, node: fx.Node, before: Sequence[int], after: Sequence[int]) -> Reach:
        """What each input of a convolution feeds, kept for the next chunk."""
        if node not in self._reaches:
            layer = self._traced.modules[str(node.target)]
            assert isinstance(layer, _ConvNd)
            self._reaches[node] = Reach.of(layer, before, after)
        return self._reaches[node]

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes that can be forgotten after each node."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self._traced.nodes:
            for source in node.all_input_nodes:
                if node.op != "output":
                    last[source] = node
        found: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            if source is not self._traced.output:
                found.setdefault(node, []).append(source)
        return found


def _is_additive(layer: nn.Module, name: str) -> bool:
    """Whether a changed value of a parameter can be added to its layer's output."""
    known = type(layer) is nn.Linear or convolutions.is_convolution(layer)
    return known and name in ("weight", "bias")


def _strike_base(value: Tensor, change: Changes) -> Tensor:
    """Activations (b, ...) at the base point."""
    if change.base is None:
        return value
    base = change.base.view(value.shape[1:])
    return value + base * change.placement.fault.displacement(value)
