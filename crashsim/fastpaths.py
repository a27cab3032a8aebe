"""Sparse ways through linear and convolutional layers: the cost of a crash, not of a layer.

A layer is linear in its input and in its weights. So what a few changes do to its output is added
to the output without them, which is computed once (or, where what comes before is faulty too, by
one batched pass with the weights all samples share). Nothing of the size of a layer is built for
each sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.changes import Changes

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


class WeightChanges:
    """Rare faults of one layer's weight or bias, as additions to the layer's output.

    Args:
        layer: the layer, with its clean weights.
        name: ``weight`` or ``bias``.
        change: what S points change.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, change: Changes, steps: Tensor):
        self._layer, self._name = layer, name
        self._rows, self._count = change.rows, change.count
        size = layer.get_parameter(name).numel()
        # Several coordinates may act on one weight (its bits): their changes add up.
        each = change.placement.size // size
        self._units = change.units if each == 1 else change.units // each
        self._steps = change.differences() * steps.index_select(0, change.units)

    def add_to(self, output: Tensor, value: Tensor, shared: bool) -> None:
        """Adds what the faults change to the layer's output, in place.

        Args:
            output: (S b, ...) at the base weights.
            value: the layer's input: (b, ...) if ``shared`` by all samples, else (S b, ...).
        """
        if len(self._units) == 0:
            return
        if isinstance(self._layer, nn.Linear):
            self._add_to_linear(output, value, shared)
        else:
            self._add_to_conv(self._layer, output, value, shared)

    def _add_to_linear(self, output: Tensor, value: Tensor, shared: bool) -> None:
        width = output.shape[-1]
        rows = output.numel() // (width * self._count)  # of each sample
        if self._name == "bias":
            where = self._spread(self._rows, rows, width, self._units)
            output.view(-1).index_add_(0, where, self._steps.repeat_interleave(rows))
            return
        depth = value.shape[-1]
        unit = self._units // depth
        source = self._units - unit * depth
        if shared and rows >= _WIDE:
            table = value.reshape(rows, depth).T.contiguous()
            sums = self._sum_rows(table, unit, source, width)  # (S, m, rows)
            output.view(self._count, rows, width).add_(sums.transpose(1, 2))
            return
        first = torch.zeros_like(self._rows) if shared else self._rows
        taken = value.reshape(-1).index_select(0, self._spread(first, rows, depth, source))
        taken.view(-1, rows).mul_(self._steps[:, None])
        where = self._spread(self._rows, rows, width, unit)
        output.view(-1).index_add_(0, where, taken)

    @staticmethod
    def _spread(sample: Tensor, rows: int, width: int, unit: Tensor) -> Tensor:
        """(n rows,) where units lie in each row of their samples, in flat (S rows, width)."""
        first = torch.add(unit, sample, alpha=rows * width)
        if rows == 1:
            return first
        return (first[:, None] + width * torch.arange(rows, device=unit.device)).view(-1)

    def _sum_rows(self, table: Tensor, unit: Tensor, source: Tensor, width: int) -> Tensor:
        """(S, width, r) sums of rows of (n, r), one bag for each sample and output unit."""
        bags = self._rows * width + unit
        order = torch.argsort(bags, stable=True)
        every = torch.arange(self._count * width, device=bags.device)
        sums = F.embedding_bag(
            source[order],
            table,
            torch.searchsorted(bags[order], every),
            mode="sum",
            per_sample_weights=self._steps[order],
        )
        return sums.view(self._count, width, -1)

    def _add_to_conv(self, layer: nn.Conv2d, output: Tensor, value: Tensor, shared: bool) -> None:
        channels, height, width = output.shape[1:]
        batch, area = len(output) // self._count, height * width
        image = output.view(self._count, batch, channels, area)
        if self._name == "bias":
            # (S, C) sums, for a plane has one bias.
            sums = self._steps.new_zeros(self._count * channels)
            sums.index_add_(0, self._rows * channels + self._units, self._steps)
            image.add_(sums.view(self._count, 1, channels, 1))
            return
        _, depth, kernel_h, kernel_w = layer.weight.shape
        kernel = kernel_h * kernel_w
        unit, rest = self._units // (depth * kernel), self._units % (depth * kernel)
        # The input channel, which groups count from their own first.
        first = unit // (channels // layer.groups) * depth
        if shared:
            patches = F.unfold(
                value,
                (kernel_h, kernel_w),
                layer.dilation,
                _pair(layer.padding),
                layer.stride,
            )
            table = patches.transpose(0, 1).reshape(-1, batch * area)
            sums = self._sum_rows(table, unit, first * kernel + rest, channels)
            image.add_(sums.view(self._count, channels, batch, area).transpose(1, 2))
            return
        pad_h, pad_w = _pair(layer.padding)
        padded = F.pad(value, (pad_w, pad_w, pad_h, pad_h))
        _, inputs, padded_h, padded_w = padded.shape
        channel, offset = first + rest // kernel, rest % kernel
        start = (
            (offset // kernel_w) * layer.dilation[0] * padded_w
            + (offset % kernel_w) * layer.dilation[1]
            + channel * padded_h * padded_w
        )
        y = torch.arange(height, device=value.device) * (layer.stride[0] * padded_w)
        x = torch.arange(width, device=value.device) * layer.stride[1]
        plane = (y[:, None] + x).view(-1)  # (area,)
        samples = self._rows[:, None] * batch + torch.arange(batch, device=value.device)
        source = (samples * (inputs * padded_h * padded_w) + start[:, None])[..., None] + plane
        taken = padded.reshape(-1).index_select(0, source.view(-1))
        taken.view(-1, batch * area).mul_(self._steps[:, None])
        target = ((samples * channels + unit[:, None]) * area)[..., None]
        where = (target + torch.arange(area, device=value.device)).view(-1)
        output.view(-1).index_add_(0, where, taken)


def can_add_weight_changes(layer: nn.Module, name: str) -> bool:
    """Whether ``WeightChanges`` knows the layer: plain Linear, or Conv2d padded with zeros."""
    if name not in ("weight", "bias"):
        return False
    if type(layer) is nn.Linear:
        return True
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str)


def _pair(padding: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(padding, str)
    return padding[0], padding[1]
