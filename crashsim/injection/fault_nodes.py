"""Where a traced model is struck, and what faults there can change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from crashsim.coordinates.placement import Placement
from crashsim.injection.graph import TracedModel
from crashsim.injection.site_changes import steps_of
from crashsim.injection.sparse import convolution
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.inputs import Inputs
from crashsim.model.readout import Readout
from crashsim.model.sites.names import ACTIVATION_FUNCTIONS, INPUT
from crashsim.model.sites.site import Site


class FaultNodes:
    """The nodes of a model at which its faults act.

    Args:
        model: the user's model.
        tensors: its parameters and buffers, as the space computes with them.
        example: a single example.
        placements: the faults.
        readout: which tensor of the model's output is analysed.

    Attributes:
        traced: the model.
        sites: the struck site of a node.
        weights: the faults of each layer's parameters, all of which can be added to its output.
        steps: what each coordinate adds, as a tensor or to be looked up; or the words struck.
        changed: the nodes whose values faults can change, be it by a site of their own.
        placed: the faults that act on a node's value.
        last_uses: the nodes that can be forgotten after each node.

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
        self._placements = placements
        if many := next((p for p in placements if p.tied or p.site.is_inside), None):
            raise UntraceableError(f"{many.site.name!r} holds many values of the same neurons")
        if read := next((s for p in placements for s in p.sites if s.function == INPUT), None):
            raise UntraceableError(f"{read.name!r} is what a layer reads, computed by no module")
        sites = [
            site for p in placements for site in p.sites if site.kind in ("activation", "module")
        ]
        leaves = {site.module for site in sites if site.function not in ACTIVATION_FUNCTIONS}
        struck = {".".join(filter(None, (p.site.module, p.site.function))) for p in placements}
        self.traced = TracedModel(model, tensors, example, leaves, struck, readout)
        self.sites = self._find_sites(example.site_names)
        self.weights = self._find_weights()
        self.steps = {
            p: steps_of(p, tensors[p.site.module])
            for placed in self.weights.values()
            for p in placed
        }
        self.changed = self._find_changed()
        if self.traced.output not in self.changed:
            raise UntraceableError("no fault reaches its output")
        self.placed = {node: self._placed_at(node) for node in self.changed}
        self.last_uses = self._find_last_uses()

    def _find_sites(self, names: Sequence[str]) -> dict[fx.Node, Site]:
        """The node of each struck site."""
        wanted = {
            (site.kind == "input", *site.key): site
            for p in self._placements
            if p.site.kind != "parameter"
            for site in p.sites
        }
        found: dict[fx.Node, Site] = {}
        for node, name in zip(self.traced.inputs, names, strict=True):
            if (True, name, None, 0) in wanted:
                found[node] = wanted[True, name, None, 0]
        for node, key in self.traced.sites.items():
            if (False, *key) in wanted:
                found[node] = wanted[False, *key]
        missing = set(wanted.values()) - set(found.values())
        if missing:
            name = min(site.name for site in missing)
            raise UntraceableError(
                f"site {name!r} lies inside a layer that torch.fx does not enter"
            )
        for node, site in found.items():
            batched = self.traced.batched[node]
            if (batched[0] if isinstance(batched, list) else batched) != site.axis:
                raise UntraceableError(f"site {site.name!r} changes shape between calls")
        return found

    def _find_weights(self) -> dict[str, list[Placement]]:
        """The faults of each layer's parameters.

        Raises:
            UntraceableError: one of them cannot be added to its layer's output.
        """
        found: dict[str, list[Placement]] = {}
        placed = [p for p in self._placements if p.site.kind == "parameter"]
        read = {str(node.target) for node in self.traced.nodes if node.op == "get_attr"}
        called = {node.target for node in self.traced.nodes if node.op == "call_module"}
        owners = Counter(
            id(t) for _, t in self.traced.root.named_parameters(remove_duplicate=False)
        )
        for p in placed:
            path, _, name = p.site.module.rpartition(".")
            layer = self.traced.modules.get(path)
            reason = None
            if sum(q.site.module == p.site.module for q in placed) > 1:
                reason = "several faults act on it one after the other"
            elif layer is None or path not in called or not _is_additive(layer, name):
                reason = "it is no weight or bias of a linear or convolutional layer that is called"
            elif p.site.module in read or owners[id(layer.get_parameter(name))] > 1:
                reason = "other parts of the model read it too"
            if reason:
                raise UntraceableError(f"{p.site.name}: {reason}")
            found.setdefault(path, []).append(p)
        return found

    def _find_changed(self) -> set[fx.Node]:
        changed: set[fx.Node] = set()
        for node in self.traced.nodes:
            struck = node in self.sites or node.target in self.weights
            if struck or any(n in changed for n in node.all_input_nodes):
                changed.add(node)
        return changed

    def _placed_at(self, node: fx.Node) -> list[Placement]:
        weights = self.weights.get(str(node.target), []) if node.op == "call_module" else []
        site = self.sites.get(node)
        return [*weights, *(p for p in self._placements if site in p.sites)]

    def _find_last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        last: dict[fx.Node, fx.Node] = {}
        for node in self.traced.nodes:
            for source in node.all_input_nodes:
                if node.op != "output":
                    last[source] = node
        found: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            if source is not self.traced.output:
                found.setdefault(node, []).append(source)
        return found


def _is_additive(layer: nn.Module, name: str) -> bool:
    """Whether a changed value of a parameter can be added to its layer's output."""
    known = type(layer) is nn.Linear or convolution.is_convolution(layer)
    return known and name in ("weight", "bias")
