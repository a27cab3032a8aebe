"""What a fault does to values, found by trying it out, where its class makes no claim.

The engine follows rare faults one by one where each acts on its own unit alone. A class that says
so is taken at its word; any other is tried on numbers of all sizes.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


class Acting(Hashable, Protocol):
    """What a fault does, as it is tried out here."""

    def displacement(self, value: Tensor) -> Tensor: ...

    def coordinate_count(self, shape: tuple[int, ...]) -> int: ...

    def group_size(self, shape: tuple[int, ...]) -> int: ...

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor: ...


@lru_cache(maxsize=256)
def acts_on_each(fault: Acting) -> bool:
    """Whether a fault's coordinates each act on a unit of their own, by that unit's value alone."""
    value = _numbers()
    try:
        shape = tuple(value.shape)
        if fault.coordinate_count(shape) != value.numel() or fault.group_size(shape) != 1:
            return False
        displacement = fault.displacement(value)
        if displacement.shape != value.shape:
            return False
        alone = torch.stack([fault.displacement(each)[0] for each in value.reshape(-1, 1)])
        e = torch.arange(value.numel(), dtype=value.dtype) % 3
        struck = fault.perturb(value, e, shape)
        plain = value + e.view(shape) * displacement
        return _is_same(alone.view(shape), displacement) and _is_same(struck, plain)
    except Exception:  # whatever the user's code minds
        return False


@lru_cache(maxsize=256)
def sets_to_zero(fault: Acting) -> bool:
    """Whether a unit that is struck with e = 1 becomes 0, whatever it was."""
    value = _numbers()
    try:
        return acts_on_each(fault) and _is_same(fault.displacement(value), -value)
    except Exception:  # whatever the user's code minds
        return False


def _numbers() -> Tensor:
    """(4, 6) numbers of either sign and of many sizes, zeros among them."""
    signs = torch.tensor([1.0, -1.0]).repeat(12)
    sizes = torch.logspace(-6, 6, 24)
    sizes[[5, 18]] = 0.0
    return (signs * sizes).view(4, 6)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)
