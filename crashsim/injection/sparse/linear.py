"""Sparse ways through linear and convolutional layers: the cost of a crash, not of a layer.

A layer is linear in its input and in its weights. So what a few changes do to its output is added
to the output without them, which is computed once (or, where what comes before is faulty too, by
one batched pass with the weights all samples share). Nothing of the size of a layer is built for
each sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crashsim.faults.words.word_fault import BitSteps, WordTable
from crashsim.injection.site_changes import Changes

_WIDE = 16  # numbers per row from which whole rows are summed rather than single numbers


def add_neuron_changes(reference: Tensor, value: Tensor, change: Changes, weight: Tensor) -> Tensor:
    """A linear layer's output under rare faults of its input.

    Args:
        reference: (b, m) its output at the base.
        value: (b, n) its input before any fault.
        change: what S points change.
        weight: (n, m), the transposed weights, contiguous.

    Returns:
        (S b, m).
    """
    batch, width = reference.shape
    struck = value.index_select(1, change.units)  # (b, changes)
    change_of_input = change.placement.fault.displacement(struck).mul_(change.differences())
    starts = change.edges[:-1]
    # Bags in the order (b, S), which needs no sorting.
    shift = len(change.rows) * torch.arange(batch, device=starts.device)
    sums = F.embedding_bag(
        change.units.repeat(batch),
        weight,
        (shift[:, None] + starts).view(-1).to(change.units.dtype),
        mode="sum",
        per_sample_weights=change_of_input.reshape(-1),
    ).view(batch, change.count, width)
    if batch == 1:
        return sums[0].add_(reference)
    out = reference.new_empty(change.count, batch, width)
    torch.add(sums.transpose(0, 1), reference, out=out)
    return out.view(-1, width)


def add_bias_changes(
    output: Tensor, change: Changes, steps: Tensor | BitSteps | WordTable, channel_axis: int
) -> None:
    """Adds what rare faults of a bias change to its layer's output, in place.

    Args:
        output: (S b, ...) at the base.
        change: what S points change.
        steps: (units,) the displacement of each coordinate; or the numbers' words.
        channel_axis: of the output, along which the bias lies.
    """
    width = output.shape[channel_axis]
    samples, _, unit, taken = change.by_weight(steps, width, width)
    sums = output.new_zeros(change.count * width)
    sums.index_add_(0, samples * width + unit, taken)
    shape = [change.count, *[1] * output.dim()]
    shape[1 + channel_axis % output.dim()] = -1
    output.view(change.count, -1, *output.shape[1:]).add_(sums.view(shape))


def add_weight_changes(
    output: Tensor,
    value: Tensor,
    change: Changes,
    steps: Tensor | BitSteps | WordTable,
    shared: bool,
) -> None:
    """Adds what rare faults of a linear layer's weights change to its output, in place.

    Args:
        output: (S b, ..., m) at the base, contiguous.
        value: the layer's input: (b, ..., n) if ``shared`` by all samples, else (S b, ..., n).
        change: what S points change.
        steps: (coordinates,) the displacement of each; or the weights' words.
    """
    width, depth = output.shape[-1], value.shape[-1]
    rows = output.numel() // (width * change.count)  # of each sample
    samples, unit, weight, taken = change.by_weight(steps, width * depth, depth)
    source = torch.sub(weight, unit, alpha=depth)
    if shared and rows >= _WIDE:
        table = value.reshape(rows, depth).T.contiguous()
        sums = sum_rows(table, samples * width + unit, source, taken, change.count * width)
        sums = sums.view(change.count, width, rows)
        output.view(change.count, rows, width).add_(sums.transpose(1, 2))
        return
    target = torch.add(unit, samples, alpha=rows * width)
    if not shared:
        source = torch.add(source, samples, alpha=rows * depth)
    if rows > 1:
        row = torch.arange(rows, device=unit.device, dtype=unit.dtype)
        source = (source[:, None] + depth * row).view(-1)
        target = (target[:, None] + width * row).view(-1)
    taken = value.reshape(-1).index_select(0, source).view(-1, rows).mul_(taken[:, None])
    output.view(-1).index_add_(0, target, taken.view(-1))


def sum_rows(table: Tensor, bags: Tensor, source: Tensor, steps: Tensor, count: int) -> Tensor:
    """(count, r) sums of rows of a table (n, r), each times its step, in their bags."""
    order = torch.argsort(bags, stable=True)
    sizes = torch.bincount(bags, minlength=count)
    return F.embedding_bag(
        source.index_select(0, order),
        table,
        (sizes.cumsum(0) - sizes).to(source.dtype),
        mode="sum",
        per_sample_weights=steps.index_select(0, order),
    )
