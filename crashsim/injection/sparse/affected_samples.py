"""Only samples that a fault has reached so far are computed: the others still hold clean values.

Where faults are rare, a sample's first fault often lies deep in the model. Up to there its values
are those without faults, which are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from crashsim.coordinates.points import Listed
from crashsim.injection.graph import Batched, repeat
from crashsim.injection.site_changes import Changes

Samples = NDArray[np.int64]

_ROUNDED = 8  # sizes of batches that a chunk of samples is computed in: each is prepared for once
_FEW = 16  # samples that are computed in one go anyway
# In multiplications of a matrix product: to write a number, to keep account of the samples.
WRITE, _ACCOUNT = 20, 2**25


@dataclass(frozen=True)
class AffectedSamples:
    """Which of S samples faults have changed, or may have, at each node of a traced model.

    Attributes:
        before: numbers of the samples, before the node's own faults act.
        after: once they have.
    """

    before: Mapping[fx.Node, Samples]
    after: Mapping[fx.Node, Samples]

    @classmethod
    def of(
        cls,
        nodes: Sequence[fx.Node],
        changed: Collection[fx.Node],
        changes_at: Callable[[fx.Node], Sequence[Changes]],
        count: int,
    ) -> AffectedSamples:
        """Follows the faults at some nodes of a graph, in order of execution."""
        masks: dict[fx.Node, NDArray[np.bool_]] = {}
        before: dict[fx.Node, Samples] = {}
        after: dict[fx.Node, Samples] = {}
        for node in nodes:
            if node not in changed:
                continue
            sources = [n for n in node.all_input_nodes if n in changed]
            own = [_affected(change) for change in changes_at(node)]
            if len(sources) == 1 and not own:
                before[node] = after[node] = after[sources[0]]
                masks[node] = masks[sources[0]]
                continue
            mask = _union([masks[n] for n in sources], count)
            mask = _rounded(mask) if sources else mask
            before[node] = np.flatnonzero(mask)
            masks[node] = _rounded(_union([mask, *own], count)) if own else mask
            after[node] = np.flatnonzero(masks[node])
        return cls(before, after)

    def order(self, count: int) -> Samples:
        """The samples in the order in which they are affected first."""
        rank = np.full(count, len(self.after))
        for number, samples in enumerate(self.after.values()):
            rank[samples] = np.minimum(rank[samples], number)
        return np.argsort(rank, kind="stable")

    def is_worth(
        self,
        count: int,
        batch: int,
        costs: Mapping[fx.Node, float],
        sizes: Mapping[fx.Node, float],
        output: fx.Node,
    ) -> bool:
        """Whether leaving out unaffected samples spares more than it costs.

        Args:
            count: number of samples S.
            batch: number of inputs b.
            costs: of each node that is computed, for a sample of one input.
            sizes: numbers in each node's value, likewise.
            output: the node that is read in the end, for all samples.
        """
        spared = 0.0
        for node, cost in costs.items():
            rows, after = len(self.before[node]), len(self.after[node])
            spared += (count - (rows or after)) * cost
            # Values of some samples are copied among those of more of them.
            spared -= WRITE * sizes[node] * after * (0 < rows < after)
            for source in node.all_input_nodes:
                if source in costs and len(self.after[source]) < rows:
                    spared -= WRITE * sizes[source] * rows
        spared -= 2 * WRITE * sizes[output] * count
        return spared * batch > _ACCOUNT


def may_be_worth(count: int, batch: int, costs: Mapping[fx.Node, float]) -> bool:
    """Whether finding out which samples are affected can pay; arguments as in ``is_worth``."""
    return count >= _FEW and count * batch * sum(costs.values()) > _ACCOUNT


def _affected(change: Changes) -> NDArray[np.bool_]:
    if change.base is not None or not isinstance(change.found, Listed):
        return np.ones(change.count, dtype=np.bool_)
    return np.diff(change.found.edges) > 0


def _union(masks: Sequence[NDArray[np.bool_]], count: int) -> NDArray[np.bool_]:
    union: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
    for mask in masks:
        union |= mask
    return union


def _rounded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With some more samples, so that few batch sizes occur; never none."""
    step = max(1, len(mask) // _ROUNDED)
    wanted = min(len(mask), max(1, -(-int(mask.sum()) // step)) * step)
    others = np.flatnonzero(~mask)[: wanted - int(mask.sum())]
    mask = mask.copy()
    mask[others] = True
    return mask


def is_start(have: Samples, want: Samples) -> bool:
    """Whether some samples are the first of others, which include them; both in order."""
    return len(have) == 0 or bool(have[-1] == want[len(have) - 1])


def grown(value: Any, batched: Batched, have: Samples, want: Samples, clean: Any) -> Any:
    """A value of some samples as that of more, of which the others are clean.

    Args:
        value: a node's value, for samples ``have``.
        batched: where the batch runs in it.
        have, want: numbers of samples; the latter include the former.
        clean: the value for a single sample without faults.
    """
    if batched is None or len(have) == len(want):
        return value
    if batched == "count":
        return value // len(have) * len(want)
    if isinstance(batched, int):
        if is_start(have, want):
            return torch.cat([value, repeat(clean, len(want) - len(have), batched)], batched)
        out: Tensor = repeat(clean, len(want), batched)
        rows = out.movedim(batched, 0).unflatten(0, (len(want), -1))
        where = torch.from_numpy(np.searchsorted(want, have)).to(out.device)
        known = value.movedim(batched, 0).unflatten(0, (len(have), -1))
        rows.index_copy_(0, where, known.to(rows.dtype))
        return out
    items = [grown(v, b, have, want, c) for v, b, c in zip(value, batched, clean, strict=True)]
    return torch.Size(items) if isinstance(value, torch.Size) else type(value)(items)
