"""First and second derivatives in fault coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_of(value: Tensor, e: Tensor, create_graph: bool = False) -> Tensor:
    """d value / d e, zero where value does not depend on e."""
    if not value.requires_grad:
        return torch.zeros_like(e)
    found = torch.autograd.grad(
        value, e, retain_graph=True, create_graph=create_graph, allow_unused=True
    )[0]
    return torch.zeros_like(e) if found is None else found


def products_of(gradient: Tensor, e: Tensor, directions: Tensor, together: int) -> Tensor:
    """The Hessian's products with directions.

    Args:
        gradient: (1, b, N), a function of e.
        e: (1, b, N), a point for each of b inputs.
        directions: (V, N).
        together: how many of them at a time.

    Returns:
        (b, V, N).
    """
    found = torch.zeros(len(directions), *e.shape[1:], dtype=e.dtype, device=e.device)
    if not gradient.requires_grad:
        return found.movedim(0, 1)
    for part, some in zip(found.split(together), directions.split(together), strict=True):
        along = some[:, None, None].expand(-1, *gradient.shape)
        try:
            (several,) = torch.autograd.grad(
                gradient, e, along, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        except RuntimeError:  # an operation that cannot take several at a time
            each = [gradient_of((gradient * direction).sum(), e) for direction in some]
            several = torch.stack(each)
        if several is not None:
            part.copy_(several[:, 0])
    return found.movedim(0, 1)
