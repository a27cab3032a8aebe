"""How large the error of a value is, and how it passes what a layer does: b1 and b2 in steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.errors import NotApplicableError


@dataclass(frozen=True)
class ErrorSize:
    """Bounds carried along the graph for one value a of shape (B, ...).

    Attributes:
        size: E|Delta a|, elementwise (b2).
        square: the sum of p W^2 h^2 over paths, elementwise (b2's variance).
        norms: (B, 3) the 1-, 2- and infinity-norm of the error (b1).
    """

    size: Tensor
    square: Tensor
    norms: Tensor


def struck(error: ErrorSize | None, value: Tensor, p: float) -> ErrorSize:
    """After crashes with probability p of each element of ``value``."""
    crashed = ErrorSize(p * value.abs(), p * value**2, p * norms_of(value))
    if error is None:
        return crashed
    return ErrorSize(
        (1 - p) * error.size + crashed.size,
        error.square + crashed.square,
        error.norms + crashed.norms,
    )


def nothing(value: Tensor) -> ErrorSize:
    zero = torch.zeros_like(value)
    return ErrorSize(zero, zero, norms_of(zero))


def through_max_pool(
    pool: nn.modules.pooling._MaxPoolNd, again: Callable[[Tensor], Tensor], error: ErrorSize
) -> ErrorSize:
    """Through a max pool: |Delta max| is at most the largest |Delta| of the window.

    The expectation of the largest may be as much as the sum of the expectations. Where windows
    overlap, a value is in several of them.

    Args:
        pool: its size, stride, padding and dilation.
        again: the pool itself.
        error: before it.

    Raises:
        NotApplicableError: the pool is dilated.
    """
    axes = error.size.dim() - 2
    kernel, stride, padding, dilation = (
        (value,) * axes if isinstance(value, int) else tuple(value)
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    if set(dilation) != {1}:
        raise NotApplicableError("no bound is known for a max pool with dilation")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    count = math.prod(kernel)
    windows = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    total = count * average(error.size, kernel, stride, padding, pool.ceil_mode)
    # Column and row sums of the windows' incidence matrix; by Schur's test, the 2-norm.
    growth = torch.tensor([windows, math.sqrt(windows * count), count]).to(error.norms)
    return ErrorSize(total, again(error.square), growth * error.norms)


def norms_of(value: Tensor) -> Tensor:
    """1-, 2- and infinity-norm of each example, (B, 3)."""
    flat = value.reshape(len(value), -1)
    return torch.stack([flat.norm(q, dim=1) for q in (1, 2, math.inf)], dim=1)


def through(
    absolute: Callable[[Tensor], Tensor], error: ErrorSize, matrix: Tensor | None
) -> Tensor:
    """Norms after a linear layer, given by its absolute value |A| as an operator.

    The largest row and column sums of |A| are its infinity- and 1-norm. The 2-norm is that of |A|,
    if the matrix is given, else at most their geometric mean (Schur's test). The 2-norm of A itself
    is no bound: crashes that pull a kink in opposite ways add up where A's entries cancel.
    """
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones_like(error.size[:1], requires_grad=True)
        rows = absolute(one)
        (columns,) = torch.autograd.grad(rows.sum(), one)
    norm_inf, norm_1 = rows.detach().max(), columns.max()
    norm_2 = (norm_inf * norm_1).sqrt()
    if matrix is not None:
        norm_2 = torch.linalg.matrix_norm(matrix.abs().double(), 2).to(norm_1)
    return error.norms * torch.stack([norm_1, norm_2, norm_inf])
