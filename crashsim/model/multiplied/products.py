"""Which tensors a model multiplies its values by, found by watching a forward pass.

A weight is what reaches the weight argument of a linear layer, a convolution or an embedding, or
a product of matrices of which the other depends on the input. It need not be a parameter: forward
may quantise one first, or read a buffer or an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crashsim.model.nested import leaves

# Functions with one weight, by its number and name among the arguments.
_WEIGHT = {
    "linear": (1, "weight"),
    "bilinear": (2, "weight"),
    "embedding": (1, "weight"),
    "embedding_bag": (1, "weight"),
    **{f"conv{n}d": (1, "weight") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (1, "weight") for n in (1, 2, 3)},
}
# Products in which either side may be the weight: the numbers of the sides.
_SIDES = {
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), (1, 2)),
}
_SIDE_NAMES = ("mat1", "mat2", "other", "batch1", "batch2")


def factors(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[tuple[int | str, Tensor]], bool]:
    """The arguments of a function that may be weights, each with its number or name.

    Returns:
        the arguments, and whether one is a weight only where another one is none.
    """
    name = str(getattr(function, "__name__", "")).partition(".")[0]
    if name in _WEIGHT:
        number, key = _WEIGHT[name]
        given = {number: args[number]} if len(args) > number else kwargs
        return _tensors(given, (number, key)), False
    if name in _SIDES:
        every: dict[int | str, Any] = {n: args[n] for n in _SIDES[name] if n < len(args)}
        every.update({key: kwargs[key] for key in _SIDE_NAMES if key in kwargs})
        return _tensors(every, tuple(every)), True
    if name == "einsum":
        numbered = dict(enumerate(args))
        return _tensors(numbered, tuple(numbered)), True
    return [], False


def _tensors(
    given: Mapping[Any, Any], keys: tuple[int | str, ...]
) -> list[tuple[int | str, Tensor]]:
    found = [(key, given[key]) for key in keys if key in given]
    return [
        (key, value)
        for key, value in found
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() >= 2
        and value.numel()
    ]


@dataclass(frozen=True, eq=False)
class Product:
    """A tensor by which something that depends on the input is multiplied.

    Attributes:
        path: the module whose forward does it.
        function: which function it calls.
        value: the tensor: the very one that was passed.
    """

    path: str
    function: str
    value: Tensor


@contextmanager
def watching(
    model: nn.Module, inputs: list[Tensor], on_product: Callable[[Product], None]
) -> Iterator[None]:
    """Reports all products in forward passes inside the block.

    Args:
        model: a twin, which is hooked meanwhile.
        inputs: what the passes are given.
        on_product: called with each tensor that does not come from the inputs, as far as torch's
            functions show.
    """
    watch = _Watch(inputs, on_product)
    with ExitStack() as stack:
        for path, module in model.named_modules():

            def enter(*_: Any, path: str = path) -> None:
                watch.running.append(path)

            def leave(*_: Any) -> None:
                watch.running.pop()

            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(watch)
        yield


class _Watch(TorchFunctionMode):
    """Follows what comes from the inputs through torch's functions."""

    def __init__(self, inputs: list[Tensor], on_product: Callable[[Product], None]) -> None:
        super().__init__()
        self.running: list[str] = []
        self._on_product = on_product
        # By identity; the tensors are kept so that none of them is used again.
        self._from_inputs: dict[int, Tensor] = {id(tensor): tensor for tensor in inputs}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        output = func(*args, **given)
        found, both = factors(func, args, given)
        ours = [value for _, value in found if id(value) not in self._from_inputs]
        if found and self.running and (not both or len(ours) < len(found)):
            for value in ours:
                name = str(getattr(func, "__name__", ""))
                self._on_product(Product(self.running[-1], name, value))
        parts = (part for _, part in leaves((args, given)))
        if any(id(part) in self._from_inputs for part in parts if isinstance(part, Tensor)):
            for _, leaf in leaves(output):
                if isinstance(leaf, Tensor):
                    self._from_inputs[id(leaf)] = leaf
        return output


def with_factors(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], others: Mapping[int | str, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function with other tensors in some places, as ``factors`` names them."""
    changed = tuple(others.get(number, value) for number, value in enumerate(args))
    return changed, {name: others.get(name, value) for name, value in kwargs.items()}


def memory_of(tensor: Tensor) -> int:
    """Where a tensor's numbers are; its own identity where it does not say."""
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # a tensor of its own kind
        return id(tensor)
