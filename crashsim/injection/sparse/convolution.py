"""Sparse ways through convolutions of one, two or three dimensions, transposed ones included.

Which outputs an input feeds, through which weight, is found once for each layer and shape: an input
position reaches few of them. What a crashed input took part in is then subtracted from the output
without crashes, one row of weights for each output position it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from crashsim.faults.words.word_fault import BitSteps, WordTable
from crashsim.injection.site_changes import Changes
from crashsim.injection.sparse.linear import sum_rows

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# What a sparse delta costs, in multiplications of a dense convolution (a sixtieth of a nanosecond
# on one thread of an AVX-512 CPU): to find the weights for a crash at one output position, and to
# add them; and for every output, whether or not a crash reaches it, to put it into its place and to
# look for crashes at its position.
_FIND, _ADD, _PLACE, _LOOK = 1200, 3.3, 36, 120
_DENSE = 0.1  # changed weights per output plane from which all planes are summed at once


def is_convolution(layer: nn.Module) -> bool:
    return type(layer) in _CONVOLUTIONS


def rare_limit(layer: _ConvNd) -> float:
    """The probability of a crash up to which a sparse delta beats the convolution, if positive."""
    width = layer.out_channels // layer.groups
    depth = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if layer.transposed:
        depth //= math.prod(layer.stride)
    share = 1 - (_PLACE + _LOOK / width) / max(depth, 1)
    return share / (_FIND / width + _ADD)


@dataclass(frozen=True)
class Reach:
    """Which outputs each input position of a convolution feeds.

    Attributes:
        source: (K, P) the input position that each of K weights of a kernel reads for each of P
            output positions, -1 for zeros beyond the edge.
        weight: (C K, m / groups) the weights, for each input channel and kernel position.
        groups: of channels.
        transposed: whether the layer is.
        starts: (Q + 1,) where the pairs of each of Q input positions begin and end.
        taps, places: (n,) kernel and output position of each pair.
    """

    source: Tensor
    weight: Tensor
    groups: int
    transposed: bool
    starts: Tensor
    taps: Tensor
    places: Tensor

    @classmethod
    def of(cls, layer: _ConvNd, before: Sequence[int], after: Sequence[int]) -> Reach:
        """For inputs and outputs of these sizes, (spatial axes)."""
        axes = zip(
            before,
            after,
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            _edges(layer),
            strict=True,
        )
        source = torch.zeros(1, 1, dtype=torch.int64)
        for n, out, kernel, stride, dilation, edges in axes:
            tap, place = torch.arange(kernel)[:, None], torch.arange(out)
            if layer.transposed:
                read = place + edges[0] - tap * dilation
                inside = (read % stride == 0) & (read >= 0) & (read < n * stride)
                axis = torch.where(inside, read // stride, -1)
            else:
                axis = _padded(n, edges, layer.padding_mode)[place * stride + tap * dilation]
            joint = source[:, None, :, None] * n + axis[None, :, None, :]
            known = (source >= 0)[:, None, :, None] & (axis >= 0)[None, :, None, :]
            source = torch.where(known, joint, -1).flatten(2, 3).flatten(0, 1)
        flat = source.flatten()
        order = torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]
        counts = torch.bincount(flat[order], minlength=math.prod(before))
        tap = order // source.shape[1]
        tables = (source, F.pad(counts.cumsum(0), (1, 0)), tap, order - tap * source.shape[1])
        source, starts, taps, places = (t.to(layer.weight.device, torch.int32) for t in tables)
        rows = _weight_rows(layer)
        return cls(source, rows, layer.groups, layer.transposed, starts, taps, places)


def _edges(layer: _ConvNd) -> list[tuple[int, int]]:
    """By how much each spatial axis is padded at its start and end."""
    if layer.transposed:  # there the padding is what is cut off
        return [(int(n), 0) for n in layer.padding]
    padding = layer._reversed_padding_repeated_twice  # from the last axis on
    return [(padding[i], padding[i + 1]) for i in range(len(padding) - 2, -1, -2)]


def _padded(n: int, edges: tuple[int, int], mode: str) -> Tensor:
    """Positions 0 to n - 1 as a layer pads them, -1 for zeros."""
    positions = torch.arange(n, dtype=torch.float64)[None]
    if mode == "zeros":
        return F.pad(positions, edges, value=-1.0)[0].long()
    return F.pad(positions, edges, mode=mode)[0].long()


def _weight_rows(layer: _ConvNd) -> Tensor:
    """(C K, m / groups) weights."""
    weight = layer.weight.flatten(2)  # (m, C / groups, K), or (C, m / groups, K) if transposed
    if layer.transposed:
        rows: Tensor = weight.transpose(1, 2).flatten(0, 1).contiguous()
        return rows
    by_group = weight.unflatten(0, (layer.groups, -1))  # (g, m / g, C / g, K)
    rows = by_group.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    return rows


def add_neuron_changes(reference: Tensor, value: Tensor, change: Changes, reach: Reach) -> Tensor:
    """A convolution's output under rare faults of its input.

    Args:
        reference: (b, m, ...) its output at the base.
        value: (b, C Q) its input before any fault.
        change: what S points change.
        reach: of the layer.

    Returns:
        (S b, m, ...).
    """
    batch, width = len(value), reach.weight.shape[1]
    kernel, area = reach.source.shape
    positions = len(reach.starts) - 1
    steps = change.placement.fault.displacement(value.index_select(1, change.units))
    steps = steps.mul_(change.differences())
    # Inputs that were zero anyway, as a ReLU's often are, take no part.
    moving = steps.any(0).nonzero()[:, 0]
    steps, units = steps.index_select(1, moving), change.units.index_select(0, moving)
    channel = units // positions
    position = torch.sub(units, channel, alpha=positions)
    group = channel // (len(reach.weight) // kernel // reach.groups)
    rows = change.rows.index_select(0, moving)
    # Each change once for every output position that it reaches.
    first = reach.starts.index_select(0, position)
    counts = reach.starts.index_select(0, position + 1) - first
    ends = counts.cumsum(0, dtype=torch.int32)
    total = int(ends[-1]) if len(ends) else 0
    every = torch.arange(max(total, len(units)), device=value.device, dtype=torch.int32)
    each = torch.repeat_interleave(every[: len(units)], counts, output_size=total)
    pair = (first - ends + counts).index_select(0, each).add_(every[:total])
    bag = ((rows * reach.groups + group) * area).index_select(0, each)
    bag += reach.places.index_select(0, pair)
    source = (channel * kernel).index_select(0, each)
    source += reach.taps.index_select(0, pair)
    bags = change.count * reach.groups * area
    order = torch.argsort(bag.to(torch.int16 if bags < 2**15 else bag.dtype), stable=True)
    sizes = torch.bincount(bag, minlength=bags)
    shift = total * torch.arange(batch, device=value.device)
    sums = F.embedding_bag(
        source.index_select(0, order).repeat(batch),
        reach.weight,
        (shift[:, None] + sizes.cumsum(0) - sizes).view(-1).to(source.dtype),
        mode="sum",
        per_sample_weights=steps.index_select(1, each.index_select(0, order)).view(-1),
    ).view(batch, change.count, reach.groups, area, width)
    out = reference.new_empty(change.count, batch, reach.groups, width, area)
    torch.add(sums.permute(1, 0, 2, 4, 3), reference.view(out.shape[1:]), out=out)
    return out.view(change.count * batch, *reference.shape[1:])


def add_weight_changes(
    output: Tensor,
    value: Tensor,
    change: Changes,
    steps: Tensor | BitSteps | WordTable,
    reach: Reach,
    shared: bool,
) -> None:
    """Adds what rare faults of a convolution's weights change to its output, in place.

    Args:
        output: (S b, m, ...) at the base, contiguous.
        value: the layer's input: (b, C, ...) if ``shared`` by all samples, else (S b, C, ...).
        change: what S points change.
        steps: (coordinates,) the displacement of each; or the weights' words.
        reach: of the layer.
        shared: whether all samples have the same input.
    """
    channels, inputs = output.shape[1], value.shape[1]
    batch = len(output) // change.count
    kernel, area = reach.source.shape
    positions = len(reach.starts) - 1
    samples, plane, weight, taken = change.by_weight(steps, reach.weight.numel(), kernel)
    tap = torch.sub(weight, plane, alpha=kernel)
    if reach.transposed:  # weights are stored by input channel, then by output channel of the group
        width = channels // reach.groups
        channel = plane // width
        unit = torch.sub(plane, channel - channel // (inputs // reach.groups), alpha=width)
    else:
        width = inputs // reach.groups
        unit = plane // width
        channel = torch.sub(plane, unit - unit // (channels // reach.groups), alpha=width)
    is_finite = not isinstance(steps, WordTable)  # else zeros beyond the edge would become NaN
    if shared and is_finite and len(unit) > _DENSE * change.count * channels:
        flat = value.view(batch, inputs, positions)
        read = flat.index_select(2, reach.source.clamp(min=0).view(-1)).view(batch, -1, area)
        read = read.view(batch, inputs, kernel, area) * (reach.source >= 0)
        table = read.permute(1, 2, 0, 3).reshape(inputs * kernel, batch * area)
        bags = samples * channels + unit
        sums = sum_rows(table, bags, channel * kernel + tap, taken, change.count * channels)
        image = output.view(change.count, batch, channels, area)
        image.add_(sums.view(change.count, channels, batch, area).transpose(1, 2))
        return
    each = torch.arange(batch, device=unit.device, dtype=unit.dtype)
    target = (samples * (batch * channels) + unit)[:, None] + each * channels
    source = channel[:, None] + each * inputs
    if not shared:
        source += (samples * (batch * inputs))[:, None]
    read = reach.source.index_select(0, tap)[:, None]  # (n, 1, P)
    where = (source[..., None] * positions + read.clamp(min=0)).view(-1)
    moved = value.reshape(-1).index_select(0, where).view(-1, batch, area)
    moved = torch.where(read >= 0, moved.mul_(taken[:, None, None]), 0.0)  # which may be infinite
    place = torch.arange(area, device=unit.device, dtype=unit.dtype)
    output.view(-1).index_add_(0, (target[..., None] * area + place).view(-1), moved.view(-1))
