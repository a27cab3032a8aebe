"""What the operations of a pass are: how many, and whether their sizes are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Operations(TorchDispatchMode):
    """Counts what torch's own counter counts, without loading torch's compiler (a second).

    Attributes:
        total: floating-point operations so far.
        is_dynamic: whether numbers decided how large a result is, as those of a mask do that
            chooses some rows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.is_dynamic = False
        self._formulas = FlopCounterMode(display=False).flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip the compiler, torch would load it

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)  # into what there are formulas for
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        self.is_dynamic = self.is_dynamic or _is_dynamic(func, args)
        formula: Callable[..., int] | None = self._formulas.get(func._overloadpacket)
        self.total += formula(*args, **kwargs, out_val=out) if formula else 0
        return out


def _is_dynamic(func: Any, args: tuple[Any, ...]) -> bool:
    if func is torch.ops.aten.index.Tensor:  # tagged for the sake of masks alone
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags
