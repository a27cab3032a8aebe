"""What the nodes of a model read: the values of samples with faults, and those without."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from crashsim.injection.graph import Batched, expand
from crashsim.injection.site_changes import Changes
from crashsim.injection.sparse.affected_samples import AffectedSamples, grown, is_start
from crashsim.model.inputs import Inputs
from crashsim.model.nested import leaves

_KEPT = 2**22  # numbers of a reference that is kept, at most


@dataclass
class Reference:
    """A batch of inputs at the base point.

    Attributes:
        batch: number of inputs b.
        values: of the nodes before all faults.
        outputs: (b, ...) of the layers that rare faults of their inputs are added to.
        clean: of the nodes that faults can change, without faults; None where almost every sample
            is affected from the first of them on.
    """

    batch: int
    values: dict[fx.Node, Any]
    outputs: dict[fx.Node, Tensor] = field(default_factory=dict)
    clean: dict[fx.Node, Any] | None = None

    @property
    def size(self) -> int:
        """How many numbers it holds beside the model's own."""
        held = [value for node, value in self.values.items() if node.op != "get_attr"]
        held += [*self.outputs.values(), *(self.clean or {}).values()]
        tensors = (leaf for value in held for _, leaf in leaves(value))
        return sum(leaf.numel() for leaf in tensors if isinstance(leaf, Tensor))


class LastReference:
    """The reference of the inputs that were run last, without any base: for their next samples.

    A pass through all layers, for each block of samples, would read every weight once more.
    """

    def __init__(self) -> None:
        self._inputs: Inputs | None = None
        self._layers: frozenset[fx.Node] = frozenset()
        self._reference: Reference | None = None

    def of(self, x: Inputs, layers: Collection[fx.Node]) -> Reference | None:
        """Of these very numbers, if they were the last; with the outputs of these layers."""
        if self._inputs is None or self._layers != layers or not _are_equal(self._inputs, x):
            return None
        return self._reference

    def keep(self, x: Inputs, layers: Collection[fx.Node], reference: Reference) -> None:
        """Keeps one, in the place of the last; not if it is large."""
        self._inputs = self._reference = None
        if reference.size <= _KEPT:
            self._reference, self._layers = reference, frozenset(layers)
            self._inputs = x.clone()  # whoever holds the tensors may write to them


def _are_equal(one: Inputs, other: Inputs) -> bool:
    if one.arguments is not other.arguments or one.keywords is not other.keywords:
        return False
    pairs = zip(one.tensors, other.tensors, strict=True)
    return one.batch_axes == other.batch_axes and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


class NodeInputs:
    """What a node reads: values for the samples that are affected before its own faults act.

    The values of nodes that faults cannot change are repeated as they are asked for.
    """

    def __init__(
        self,
        values: Mapping[fx.Node, Any],
        reference: Reference,
        batched: Mapping[fx.Node, Batched],
        affected: AffectedSamples | None,
        count: int,
    ) -> None:
        self._values, self._reference, self._batched = values, reference, batched
        self._affected, self._count, self._want = affected, count, np.arange(count)

    def start(self, node: fx.Node) -> int:
        """Turns to a node, and returns the number of samples that it reads."""
        if self._affected is not None:
            self._want = self._affected.before[node]
        return len(self._want)

    def finish(self, node: fx.Node) -> int:
        """Turns to the node's own faults, and returns the number of samples that they act on."""
        if self._affected is not None:
            self._want = self._affected.after[node]
        return len(self._want)

    def after(self, node: fx.Node, change: Changes) -> Changes:
        """A fault among the samples that are affected once the node's faults have acted."""
        return change if self._affected is None else change.among(self._affected.after[node])

    def grow(self, node: fx.Node, value: Any) -> Any:
        """The node's value before its own faults, for the samples that they act on."""
        if self._affected is None or self._reference.clean is None:
            return value
        have, want = self._affected.before[node], self._affected.after[node]
        return grown(value, self._batched[node], have, want, self._reference.clean[node])

    def inputs_of(self, node: fx.Node, count: int) -> list[tuple[int, int, Tensor, bool]]:
        """A layer's inputs: from which sample to which, and whether they share it."""
        source = node.all_input_nodes[0]
        if source not in self._values:
            return [(0, count, self._reference.values[source], True)]
        if self._affected is None or self._reference.clean is None:
            return [(0, count, self._values[source], False)]
        have = self._affected.after[source]
        if not is_start(have, self._affected.after[node]):
            return [(0, count, self[source], False)]
        first, clean = len(have), self._reference.clean[source]
        parts = [(0, first, self._values[source], False), (first, count, clean, True)]
        return parts if first < count else parts[:1]

    def __getitem__(self, node: fx.Node) -> Any:
        if node not in self._values:
            return expand(self._reference.values[node], self._batched[node], len(self._want))
        value = self._values[node]
        if self._affected is None or self._reference.clean is None:
            return value
        have = self._affected.after[node]
        return grown(value, self._batched[node], have, self._want, self._reference.clean[node])
