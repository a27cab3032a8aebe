"""What the nodes of a model read: the values of samples with faults, and those without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx

from crashsim.injection.graph import Batched, expand
from crashsim.injection.site_changes import Changes
from crashsim.injection.sparse.affected_samples import AffectedSamples, grown, is_start


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
