"""Layers through which rare faults of neurons are followed one by one, and when that pays."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from crashsim.coordinates.placement import Placement
from crashsim.injection.graph import TracedModel
from crashsim.injection.site_changes import RARE_NEURONS, Changes, is_elementwise, is_rare
from crashsim.injection.sparse.convolution import is_convolution, rare_limit
from crashsim.model.graph.untraced import has_hooks
from crashsim.model.sites.site import Site

_TYPES = (torch.float32, torch.float64)


def find_chains(
    traced: TracedModel,
    placements: Sequence[Placement],
    sites: Mapping[fx.Node, Site],
    changed: Collection[fx.Node],
    with_weights: Collection[str],
) -> dict[fx.Node, list[fx.Node]]:
    """Layers that rare faults of their inputs can be added to.

    Args:
        traced: the model.
        placements: its faults.
        sites: the struck sites by node.
        changed: the nodes whose values faults can change.
        with_weights: the layers whose own parameters are struck.

    Returns:
        for each layer, the nodes from a struck site that no other fault precedes to the layer;
        between the two, values are only passed on.
    """
    found: dict[fx.Node, list[fx.Node]] = {}
    for start, site in sites.items():
        placed = [p for p in placements if site in p.sites]
        one = len(placed) == 1 and is_elementwise(placed[0]) and traced.batched[start] == 0
        if not one or start.target in with_weights:
            continue
        if any(n in changed for n in start.all_input_nodes):
            continue
        for node in start.users:
            chain = [start, node]
            while traced.passes_on(node) and node not in sites and len(node.users) == 1:
                node = next(iter(node.users))
                chain.append(node)
            if _takes_units(traced, node, site.shape) and node.target not in with_weights:
                found[node] = chain
    return found


def _takes_units(traced: TracedModel, node: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether a node is a layer through which single units of this shape can be followed."""
    if node.op != "call_module" or len(node.all_input_nodes) != 1:
        return False
    layer = traced.modules[str(node.target)]
    if has_hooks(layer) or not (type(layer) is nn.Linear or is_convolution(layer)):
        return False
    assert isinstance(layer, nn.Linear | _ConvNd)
    if layer.weight.dtype not in _TYPES:
        return False
    if isinstance(layer, _ConvNd):
        return len(shape) == layer.weight.dim() - 1
    return layer.in_features == math.prod(shape)


def is_followed(layer: nn.Module, placement: Placement, changes: Changes | None) -> bool:
    """Whether following the faults of a layer's input costs less than computing the layer.

    Args:
        layer: linear or convolutional.
        placement: the faults.
        changes: of the points at hand; None for those that Monte Carlo samples.
    """
    limit = RARE_NEURONS
    if isinstance(layer, _ConvNd):
        limit = min(limit, rare_limit(layer))
    is_single = changes is not None and changes.is_single
    return limit > 0 and (is_rare(placement, limit) or is_single)
