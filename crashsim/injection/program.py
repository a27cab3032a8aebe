"""Only what lies behind a fault is computed for every sample.

The values of nodes that no fault can reach are computed once for a batch of inputs; the others, for
S samples at a time, on (S b) rows. A value that is needed on both sides of the border is repeated
along its batch axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from crashsim.coordinates.placement import Placement
from crashsim.faults.words.word_fault import WordFault, WordTable
from crashsim.injection.fault_nodes import FaultNodes
from crashsim.injection.graph import expand
from crashsim.injection.inplace import Overwriting
from crashsim.injection.node_inputs import LastReference, NodeInputs, Reference
from crashsim.injection.site_changes import (
    RARE_WEIGHTS,
    SCATTERED,
    Changes,
    is_elementwise,
    is_rare,
    strike,
    strike_all,
)
from crashsim.injection.sparse import convolution
from crashsim.injection.sparse.affected_samples import WRITE, AffectedSamples, may_be_worth
from crashsim.injection.sparse.chains import find_chains, is_followed
from crashsim.injection.sparse.convolution import Reach
from crashsim.injection.sparse.linear import (
    add_bias_changes,
    add_neuron_changes,
    add_weight_changes,
)
from crashsim.injection.weights.costs import Struck, Work
from crashsim.model.inputs import Inputs
from crashsim.model.readout import Readout


class Program:
    """The traced model with the places of its faults.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as the space computes with them.
        example: a single example.
        placements: the faults.
        readout: which tensor of the model's output is analysed.

    Raises:
        UntraceableError: says why the model cannot be taken apart.
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
        self._nodes = nodes = FaultNodes(model, tensors, example, placements, readout)
        self._traced, self._sites = nodes.traced, nodes.sites
        self._weights, self._changed = nodes.weights, nodes.changed
        self._placed = nodes.placed
        self.chains = find_chains(
            self._traced, placements, self._sites, self._changed, self._weights
        )
        self._overwriting = Overwriting(self._traced, self._changed, self._sites)
        self._tables: dict[fx.Node, Tensor] = {}
        self._reaches: dict[fx.Node, Reach] = {}
        self._last = LastReference()

    def why_wrong(self) -> str | None:
        """Why the program is not the model, if a layer has kept something since it was checked."""
        return self._traced.why_wrong()

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
        return next(p for p in self.placements if self._sites[node] in p.sites)

    def work(self) -> Work:
        """What lies behind the first fault."""
        nodes = [n for n in self._traced.nodes if n in self._changed]
        return Work(
            sum(self._traced.operations[n] for n in nodes),
            sum(self._traced.sizes[n] for n in nodes),
            sum(n.op in ("call_module", "call_function", "call_method") for n in nodes),
        )

    def struck_weights(self, changes: Mapping[Placement, Changes] | None) -> dict[str, Struck]:
        """What a sample changes in each layer's parameters; arguments as in ``sparse_layers``."""
        found = {}
        for p, node in self._struck_layers():
            number = p.size * p.fault.change_probability
            number = number if changes is None else changes[p].mean_number
            if isinstance(p.fault, WordFault):  # of which one may strike a row of words
                number *= p.site.size * len(p.fault.masks) / p.size
            layer = self._traced.modules[str(node.target)]
            positions = self._traced.sizes[node] / _planes(layer)
            if p.site.module.rpartition(".")[2] == "bias":
                positions = 1.0
            shared = not any(n in self._changed for n in node.all_input_nodes)
            found[p.site.module] = Struck(number, positions, shared)
        return found

    def _struck_layers(self) -> Iterator[tuple[Placement, fx.Node]]:
        for node in self._traced.nodes:
            if node.op == "call_module":
                for p in self._weights.get(str(node.target), ()):
                    yield p, node

    def can_add_weights(self, changes: Mapping[Placement, Changes] | None) -> bool:
        """Whether faults of weights are added to their layers' outputs; arguments as above."""
        every = [p for placed in self._weights.values() for p in placed]
        if changes is not None and any(
            changes[p].base is not None and isinstance(self._nodes.steps[p], WordTable)
            for p in every
        ):
            return False
        return all(
            is_rare(p, RARE_WEIGHTS) or (changes is not None and changes[p].is_single)
            for p in every
        )

    def why_not_added(self, changes: Mapping[Placement, Changes] | None) -> str | None:
        """Why faults of weights cannot be added to their layers' outputs; None where they can."""
        if self.can_add_weights(changes):
            return None
        common = [p for ps in self._weights.values() for p in ps if not is_rare(p, RARE_WEIGHTS)]
        share = f"at most {RARE_WEIGHTS:.1%} may be struck"
        return f"{common[0].site.name}: too many of its weights change ({share})"

    def explain(self, placement: Placement) -> str:
        """How samples are computed at a placement, and why."""
        site, share = placement.site, placement.fault.change_probability
        if site.kind == "parameter":
            how = (
                f"each struck value's effect is added to the layer's output: about "
                f"{share * placement.size:.3g} of {placement.size} are struck"
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
                    f"{share * site.size:.3g} of {site.size}"
                )
            elif is_rare(placement, SCATTERED) and is_elementwise(placement):
                how = f"struck one by one: about {share * site.size:.3g} of {site.size}"
            else:
                how = f"masked: too many of {site.size} change for anything else"
        if any(n in self._changed for n in start.all_input_nodes):
            return f"{how}; what comes before is faulty too"
        return f"{how}; what comes before is computed once"

    def reference(self, x: Inputs, changes: Mapping[Placement, Changes]) -> Reference:
        """Runs what lies before all faults on b inputs."""
        sparse = self.sparse_layers(changes)
        is_plain = all(change.base is None for change in changes.values())
        found = self._last.of(x, sparse) if is_plain else None
        if found is None:
            found = self._before_faults(x, changes, sparse)
            if is_plain:
                self._last.keep(x, sparse, found)
        count = next(iter(changes.values())).count
        if not self._leaves_out(found, changes, count):
            return replace(found, clean=None)
        if found.clean is None:
            found = replace(found, clean=self._behind_faults(x, found, changes))
            if is_plain:
                self._last.keep(x, sparse, found)
        return found

    def _before_faults(
        self, x: Inputs, changes: Mapping[Placement, Changes], sparse: Collection[fx.Node]
    ) -> Reference:
        """The values before all faults, and what rare faults are added to."""
        reference = Reference(len(x), {})
        values = reference.values
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
        return reference

    def _behind_faults(
        self, x: Inputs, reference: Reference, changes: Mapping[Placement, Changes]
    ) -> dict[fx.Node, Any]:
        """The values behind the first fault, without faults."""
        batched = self._traced.batched  # copies, which an operation may overwrite
        every = {node: expand(v, batched[node], 1) for node, v in reference.values.items()}
        for node in self._traced.nodes:
            if node in self._changed:
                at_base = self._at_base(node, changes)
                every[node] = self._traced.evaluate(node, every, x, at_base)
        return {node: every[node] for node in self._changed}

    def _leaves_out(
        self, reference: Reference, changes: Mapping[Placement, Changes], count: int
    ) -> bool:
        """Whether samples that no fault has affected so far are not to be computed."""
        costs = self._costs(reference)
        return may_be_worth(count, reference.batch, costs) and self._affected(
            changes, count
        ).is_worth(count, reference.batch, costs, self._traced.sizes, self._traced.output)

    def _affected(self, changes: Mapping[Placement, Changes], count: int) -> AffectedSamples:
        """Which samples faults touch before and after each node."""
        return AffectedSamples.of(
            self._traced.nodes,
            self._changed,
            lambda node: [changes[p] for p in self._placed.get(node, ())],
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

    def run(self, reference: Reference, changes: Mapping[Placement, Changes], count: int) -> Tensor:
        """The outputs (S b, ...) at S points, whose changes these are."""
        values: dict[fx.Node, Any] = {}
        affected, order = None, np.arange(count)
        if reference.clean is not None:
            # Samples in the order of their first faults: the affected ones come first everywhere.
            order = self._affected(changes, count).order(count)
            changes = {p: change.among(order) for p, change in changes.items()}
            affected = self._affected(changes, count)
        skipped = self._skipped(reference)
        for node in self._traced.nodes:
            if node not in self._changed or node in skipped:
                continue
            sources = NodeInputs(values, reference, self._traced.batched, affected, count)
            values[node] = self._faulty(node, reference, sources, changes)
            for done in self._nodes.last_uses.get(node, ()):
                values.pop(done, None)
        everyone = NodeInputs(values, reference, self._traced.batched, affected, count)
        output: Tensor = everyone[self._traced.output]
        if affected is None:
            return output
        back = torch.from_numpy(np.argsort(order)).to(output.device)
        output = output.unflatten(0, (count, -1)).index_select(0, back).flatten(0, 1)
        return output

    def _faulty(
        self,
        node: fx.Node,
        reference: Reference,
        sources: NodeInputs,
        changes: Mapping[Placement, Changes],
    ) -> Any:
        """A node's value for the samples that are affected once its own faults have acted."""
        if node.op == "output":
            return None
        owned, ours = (
            True,
            {p: sources.after(node, changes[p]) for p in self._placed.get(node, ())},
        )
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
        return convolution.add_neuron_changes(output, before, change, reach)

    def _add_weight_changes(
        self, node: fx.Node, output: Tensor, value: Tensor, change: Changes, shared: bool
    ) -> None:
        """Adds what faults of a layer's parameter change to its output, in place."""
        layer = self._traced.modules[str(node.target)]
        p, steps = change.placement, self._nodes.steps[change.placement]
        is_linear = isinstance(layer, nn.Linear)
        if p.site.module.rpartition(".")[2] == "bias":
            add_bias_changes(output, change, steps, -1 if is_linear else 1)
        elif is_linear:
            add_weight_changes(output, value, change, steps, shared)
        else:
            reach = self._reach(node, value.shape[2:], output.shape[2:])
            convolution.add_weight_changes(output, value, change, steps, reach, shared)

    def _reach(self, node: fx.Node, before: Sequence[int], after: Sequence[int]) -> Reach:
        """What each input of a convolution feeds, kept for the next chunk."""
        if node not in self._reaches:
            layer = self._traced.modules[str(node.target)]
            assert isinstance(layer, _ConvNd)
            self._reaches[node] = Reach.of(layer, before, after)
        return self._reaches[node]


def _planes(layer: nn.Module) -> int:
    """Outputs of a layer in each position."""
    assert isinstance(layer, _ConvNd | nn.Linear)
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features


def _strike_base(value: Tensor, change: Changes) -> Tensor:
    """Activations (b, ...) at the base point."""
    if change.base is None:
        return value
    base = change.base.view(value.shape[1:])
    return value + base * change.placement.fault.displacement(value)
