"""Linear maps and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, UnsupportedError
from crashsim.model.multiplied.stored_words import WORDS, Words

_CONV: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[Any]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class PaddedFirst(nn.Module):
    """A layer whose input is padded unequally, which torch's own does not.

    Args:
        layer: without padding.
        pads: before and after each axis, the last axis first.
        value: that is put there.
    """

    def __init__(self, layer: nn.Module, pads: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.pads, self.value, self.layer = tuple(pads), value, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.pad(x, self.pads, value=self.value))  # type: ignore[no-any-return]


def spatial(node: Node, name: str, count: int, default: int = 1) -> list[int]:
    """An attribute with a number for each axis of the image."""
    found = [int(n) for n in node.attribute(name, [default] * count)]
    if len(found) != count:
        raise UnsupportedError(f"{name} has {len(found)} numbers for {count} axes")
    return found


def begins_and_ends(
    node: Node, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each axis."""
    count, auto = len(kernel), node.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID", ""):
        pads = (
            [0] * (2 * count) if auto == "VALID" else list(node.attribute("pads", [0] * 2 * count))
        )
        if len(pads) != 2 * count:
            raise UnsupportedError(f"pads has {len(pads)} numbers for {count} axes")
        return pads[:count], pads[count:]
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"its auto_pad {auto!r} is not known")
    sizes = node.sizes()
    if all(s == 1 for s in stride):
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    elif sizes is None or len(sizes) != count + 2 or None in sizes[2:]:
        raise UnsupportedError(
            f"it pads by {auto} what its input's sizes ask for, which do not follow from the file; "
            "export the model with pads, or with fixed sizes of images"
        )
    else:
        totals = [
            max((-(-(n or 0) // s) - 1) * s + d * (k - 1) + 1 - (n or 0), 0)
            for n, k, s, d in zip(sizes[2:], kernel, stride, dilation, strict=True)
        ]
    less = [t // 2 for t in totals]
    more = [t - n for t, n in zip(totals, less, strict=True)]
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def flat_pads(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """As torch's pad takes them."""
    return [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]


@whole
def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, pads: list[int], **options: Any
) -> Tensor:
    return _FUNCTIONS[weight.dim() - 2](F.pad(x, pads), weight, bias, **options)


def _conv(node: Node) -> Made:
    weight = node.needed(1)
    shape = node.sizes(1)
    if shape is None or len(shape) - 2 not in _CONV or None in shape:
        raise UnsupportedError("its weights' shape is not that of one to three axes of an image")
    kernel = [int(n or 0) for n in shape[2:]]
    stride, dilation = (
        spatial(node, "strides", len(kernel)),
        spatial(node, "dilations", len(kernel)),
    )
    groups = int(node.attribute("group", 1))
    begins, ends = begins_and_ends(node, kernel, stride, dilation)
    bias = node.input(2)
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        return node.call(
            convolved, node.needed(0), weight, bias, pads=flat_pads(begins, ends), stride=stride,
            dilation=dilation, groups=groups,
        )  # fmt: skip
    outputs, inputs = weight.tensor.shape[:2]
    layer = _CONV[len(kernel)](
        inputs * groups, outputs, tuple(kernel), stride=tuple(stride), dilation=tuple(dilation),
        groups=groups, bias=bias is not None, padding=tuple(begins) if begins == ends else 0,
        device="meta",
    )  # fmt: skip
    _take(node, layer, weight, bias)
    if begins == ends:
        return Made(layer, node.inputs[:1])
    return Made(PaddedFirst(layer, flat_pads(begins, ends)), node.inputs[:1])


def _take(node: Node, layer: nn.Module, weight: Constant, bias: Constant | None) -> None:
    layer.weight = node.parameter(weight.tensor)
    store(layer, weight.words)
    if bias is not None:
        layer.bias = node.parameter(bias.tensor)


def store(layer: nn.Module, words: Words | None) -> None:
    """Says of a layer that its weight is stored in words, whose bits are then what is struck."""
    if words is not None:
        vars(layer)[WORDS] = {"weight": words}


def _conv_transposed(node: Node) -> Made:
    weight, bias = node.needed(1), node.input(2)
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise UnsupportedError("its weights are computed, and must be in the file")
    kernel = list(weight.tensor.shape[2:])
    count = len(kernel)
    if count not in _TRANSPOSED:
        raise UnsupportedError("its weights' shape is not that of one to three axes of an image")
    stride, dilation = spatial(node, "strides", count), spatial(node, "dilations", count)
    more = spatial(node, "output_padding", count, 0)
    begins, ends = _transposed_pads(node, kernel, stride, dilation, more)
    groups = int(node.attribute("group", 1))
    inputs, outputs = weight.tensor.shape[0], weight.tensor.shape[1] * groups
    layer = _TRANSPOSED[count](
        inputs, outputs, tuple(kernel), stride=tuple(stride), dilation=tuple(dilation),
        groups=groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    _take(node, layer, weight, bias)
    cut = [(-b, m - e) for b, e, m in zip(begins, ends, more, strict=True)]
    if begins == ends and all(
        m < max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)
    ):
        layer.padding, layer.output_padding = tuple(begins), tuple(more)
        return Made(layer, node.inputs[:1])
    if any(more):
        raise UnsupportedError("unequal padding with output_padding")
    flat = [n for pair in reversed(cut) for n in pair]
    return Made(CutAfterwards(layer, flat), node.inputs[:1])


class CutAfterwards(nn.Module):
    """A transposed convolution whose output is cut unequally."""

    def __init__(self, layer: nn.Module, pads: Sequence[int]) -> None:
        super().__init__()
        self.pads, self.layer = tuple(pads), layer

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.layer(x), self.pads)


def _transposed_pads(
    node: Node, kernel: list[int], stride: list[int], dilation: list[int], more: list[int]
) -> tuple[list[int], list[int]]:
    count, wanted = len(kernel), node.attribute("output_shape")
    auto = node.attribute("auto_pad", "NOTSET")
    if wanted is None and auto in ("NOTSET", "VALID", ""):
        return begins_and_ends(node, kernel, stride, dilation)
    sizes = node.sizes()
    if sizes is None or len(sizes) != count + 2 or None in sizes[2:]:
        raise UnsupportedError("its padding asks for sizes that do not follow from the file")
    lengths = [int(n or 0) for n in sizes[2:]]
    if wanted is None:
        wanted = [n * s for n, s in zip(lengths, stride, strict=True)]
    wanted = list(wanted)[-count:]
    totals = [
        s * (n - 1) + m + d * (k - 1) + 1 - w
        for n, s, m, d, k, w in zip(lengths, stride, more, dilation, kernel, wanted, strict=True)
    ]
    for i, total in enumerate(totals):  # what the kernel does not reach is added at the end
        more[i], totals[i] = more[i] + max(-total, 0), max(total, 0)
    less = [t // 2 for t in totals]
    rest = [t - n for t, n in zip(totals, less, strict=True)]
    return (less, rest) if auto == "SAME_UPPER" else (rest, less)


def linear(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer with these weights (out, in).

    Where another one has them the other way round, it is a product with that one's parameter: they
    are stored once, and a fault in them strikes both.
    """
    if node.is_parameter(weight.T) and not node.is_parameter(weight):
        held = [Constant(t, is_weight=True) for t in (weight.T, bias) if t is not None]
        return node.call(product_and_sum, node.needed(0), *held).module
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = node.parameter(weight)
    if bias is not None:
        layer.bias = node.parameter(bias)
    return layer


def _matmul(node: Node) -> Made:
    """A linear layer where what it multiplies by is a matrix of the file."""
    right = node.needed(1)
    held = isinstance(right, Constant) and right.tensor.dim() == 2
    if held and node.sizes() is not None and node.rank() >= 2:
        assert isinstance(right, Constant)
        if right.tensor.dtype.is_floating_point:
            layer = linear(node, right.tensor.T, None)
            store(layer, _turned(right.words))
            return Made(layer, node.inputs[:1])
    return node.call(torch.matmul, *node.inputs)


def _turned(words: Words | None) -> Words | None:
    """The words of the transposed matrix."""
    if words is None or words.axis is None:
        return words
    return replace(words, axis=1 - words.axis)


@whole
def product_and_sum(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = x @ weight
    return found if bias is None else found + bias


@whole
def general_product(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, turns: tuple[bool, bool]
) -> Tensor:
    found = (a.T if turns[0] else a) @ (b.T if turns[1] else b)
    found = found * alpha if alpha != 1 else found
    return found if c is None else found + (c * beta if beta != 1 else c)


def _gemm(node: Node) -> Made:
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    turns = bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0))
    weight, bias = node.needed(1), node.input(2)
    # Words of floating point are struck as the file stores them, not as alpha and beta scale them.
    is_stored = isinstance(weight, Constant) and (weight.words is not None or alpha == beta == 1)
    if isinstance(bias, Constant | None) and not turns[0] and is_stored:
        assert isinstance(weight, Constant)
        matrix = weight.tensor if turns[1] else weight.tensor.T
        vector = None if bias is None else bias.tensor
        if vector is not None and vector.dim() <= 2 and vector.numel() in (1, len(matrix)) and (
            vector.dim() < 2 or vector.shape[0] == 1
        ):  # fmt: skip
            vector = vector.reshape(-1).expand(len(matrix))
            vector = vector.contiguous() if vector.stride() == (0,) else vector
        if matrix.dim() == 2 and matrix.dtype.is_floating_point and (
            vector is None or vector.shape == (len(matrix),)
        ):  # fmt: skip
            scaled = None if vector is None else vector if beta == 1 else vector * beta
            layer = linear(node, matrix if alpha == 1 else matrix * alpha, scaled)
            words = weight.words if turns[1] else _turned(weight.words)
            if words is not None and alpha != 1:
                words = replace(words, scale=words.scale * alpha)
            store(layer, words)
            return Made(layer, node.inputs[:1])
    return node.call(
        general_product, node.needed(0), weight, bias, alpha=alpha, beta=beta, turns=turns
    )


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
