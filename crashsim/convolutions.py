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

from crashsim.changes import Changes

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
        starts: (Q + 1,) where the pairs of each of Q input positions begin and end.
        taps, places: (n,) kernel and output position of each pair.
    """

    source: Tensor
    weight: Tensor
    groups: int
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
        device = layer.weight.device
        flat = source.flatten()
        order = torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]
        counts = torch.bincount(flat[order], minlength=math.prod(before))
        return cls(
            source.to(device),
            _weight_rows(layer),
            layer.groups,
            F.pad(counts.cumsum(0), (1, 0)).to(device),
            (order // source.shape[1]).to(device),
            (order % source.shape[1]).to(device),
        )


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
    position = (units - channel * positions).long()
    group = channel // (len(reach.weight) // kernel // reach.groups)
    rows = change.rows.index_select(0, moving)
    first_bag = (rows * reach.groups + group) * area
    # Each change once for every output position that it reaches.
    first = reach.starts.index_select(0, position)
    counts = reach.starts.index_select(0, position + 1) - first
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    device = value.device
    each = torch.repeat_interleave(
        torch.arange(len(units), device=device), counts, output_size=total
    )
    pair = torch.arange(total, device=device) + (first - ends + counts).index_select(0, each)
    bag = first_bag.index_select(0, each) + reach.places.index_select(0, pair)
    source = (channel * kernel).index_select(0, each) + reach.taps.index_select(0, pair)
    bags = change.count * reach.groups * area
    order = torch.argsort(bag.to(torch.int16 if bags < 2**15 else torch.int32), stable=True)
    sizes = torch.bincount(bag, minlength=bags)
    starts = sizes.cumsum(0) - sizes
    shift = total * torch.arange(batch, device=device)
    sums = F.embedding_bag(
        source.index_select(0, order).repeat(batch),
        reach.weight,
        (shift[:, None] + starts).view(-1),
        mode="sum",
        per_sample_weights=steps.index_select(1, each.index_select(0, order)).view(-1),
    ).view(batch, change.count, reach.groups, area, width)
    out = reference.new_empty(change.count, batch, reach.groups, width, area)
    torch.add(sums.permute(1, 0, 2, 4, 3), reference.view(out.shape[1:]), out=out)
    return out.view(change.count * batch, *reference.shape[1:])
