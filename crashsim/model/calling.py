"""Calls a model with other parameters and buffers than its own (a functional call)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any] | None = None,
) -> Any:
    """What a model returns with these tensors in the place of its own, which stay as they are.

    A tensor that several modules hold is replaced in all of them. Torch's own way to do so
    (``tie_weights``) leaves its replacement behind in a module that the model holds under two
    names, which it visits twice; here each module is visited once.

    Args:
        tensors: by name, as ``named_parameters`` and ``named_buffers`` give them.
    """
    every = {**tensors, **{name: tensors[first] for name, first in _tied(model, tensors)}}
    return functional_call(model, every, arguments, dict(keywords or {}), tie_weights=False)


@contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """Puts tensors in the place of a model's own for many calls, which then cost no more for it.

    Args:
        model: nobody else runs it meanwhile.
        tensors: as in ``call_with``; others stay.

    Yields:
        puts them there again, where a forward pass has replaced one.
    """
    every = {**tensors, **{name: tensors[first] for name, first in _tied(model, tensors)}}
    places = [
        (own, key, own[key], every[f"{path}.{key}" if path else key])
        for path, module in model.named_modules()
        for own in (module._parameters, module._buffers)
        for key in own
        if (f"{path}.{key}" if path else key) in every
    ]

    def put() -> None:
        for own, key, _, given in places:
            if own.get(key) is not given:
                own[key] = given

    try:
        yield put
    finally:
        for own, key, before, _ in places:
            own[key] = before


def _tied(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Further names of the model's tensors, each with the name among those given."""
    names: dict[int, str] = {}
    tied = []
    for path, module in model.named_modules():  # each once
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is None:
                    continue
                name = f"{path}.{key}" if path else key
                first = names.setdefault(id(tensor), name)
                if first != name and first in tensors:
                    tied.append((name, first))
    return tied
