"""The network that an ONNX graph becomes: its nodes as modules, run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from crashsim.errors import ArgumentError
from crashsim.files.onnx_graphs.sizes import Sizes, evaluated
from crashsim.model.sites.neurons import ARITHMETIC

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Input:
    """What a graph asks for.

    Attributes:
        name: in the file.
        dtype: of its numbers.
        sizes: of its axes; None where any will do.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...] | None


@dataclass(frozen=True, eq=False)
class Step:
    """One module's call.

    Attributes:
        module: its name.
        arguments: names of values, sizes to be worked out, or None.
        outputs: names of what it returns; empty where nothing reads it.
        last: values that nothing reads afterwards.
    """

    module: str
    arguments: tuple[str | Sizes | None, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """A torch network of the nodes of an ONNX graph.

    Each node is a module of its own name (dots, which torch keeps for paths, become ``_``), and
    what the file stores as weights are the modules' parameters, so that faults find both. Linear
    maps, convolutions, pools, normalisations, recurrent layers and activations are torch's own
    modules.

    Args:
        inputs: in the order of the file, which is that of positional arguments.
        steps: in an order in which they can be run.
        modules: by name.
        outputs: what is returned: a tensor, or several by name.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        steps: Sequence[Step],
        modules: Mapping[str, nn.Module],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.inputs, self.steps, self.outputs = tuple(inputs), tuple(steps), tuple(outputs)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The outputs.

        Args:
            arguments: a tensor for each input of the graph, in the file's order.
            named: or by the input's name.

        Raises:
            ArgumentError: an input is missing, or of another shape than the graph takes.
        """
        values = self._bound(arguments, named)
        for step in self.steps:
            found = self._modules[step.module](  # type: ignore[misc]
                *[argument_of(values, argument) for argument in step.arguments]
            )
            if len(step.outputs) == 1:
                values[step.outputs[0]] = found
            else:
                values.update(zip(step.outputs, found, strict=False))
            for name in step.last:
                values.pop(name, None)
        if len(self.outputs) == 1:
            return values[self.outputs[0]]
        return {name.replace(".", "_"): values[name] for name in self.outputs}

    def _bound(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        names = [wanted.name for wanted in self.inputs]
        if len(arguments) > len(names) or set(named) - set(names[len(arguments) :]):
            held = [*names[: len(arguments)], *named]
            raise ArgumentError(f"inputs: {held} are not those of the graph; give {names}")
        given = dict(zip(names, arguments, strict=False)) | dict(named)
        missing = [name for name in names if name not in given]
        if missing:
            raise ArgumentError(f"inputs: {missing} are missing; give {names}, by name or in order")
        return {wanted.name: _fitted(given[wanted.name], wanted) for wanted in self.inputs}


def argument_of(values: Mapping[str, Any], argument: str | Sizes | None) -> Any:
    """What a step is called with, of values by name."""
    if isinstance(argument, Sizes):
        if not argument.array.ndim:
            return evaluated(argument.array.item(), values)
        return [evaluated(size, values) for size in argument.array]
    return None if argument is None else values[argument]


def _fitted(tensor: Any, wanted: Input) -> Any:
    """An input in the type that the graph takes.

    Numbers of floating point keep theirs, in which the whole network is then computed.
    """
    real = wanted.dtype.is_floating_point
    if not isinstance(tensor, Tensor):
        return tensor if real else tensor.to(wanted.dtype)
    found = tuple(tensor.shape)
    if wanted.sizes is not None and (
        len(found) != len(wanted.sizes)
        or any(w is not None and n != w for n, w in zip(found, wanted.sizes, strict=True))
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in wanted.sizes)
        raise ArgumentError(
            f"inputs: {wanted.name!r} of shape {found}; the graph takes ({sizes}): give that, or "
            "export the model anew with these axes dynamic"
        )
    if real or tensor.dtype == wanted.dtype:
        return tensor.to(wanted.dtype) if real and not tensor.is_floating_point() else tensor
    kept = tensor.to(wanted.dtype)
    if not torch.equal(kept.to(tensor.dtype), tensor):
        raise ArgumentError(
            f"inputs: {wanted.name!r} holds numbers that are no {str(wanted.dtype)[6:]}; give "
            "whole numbers of its range"
        )
    return kept


class Call(nn.Module):
    """A node without a module of torch's own: a function, what it is given beside values.

    Args:
        function: of tensors and options.
        slots: for each argument, the name of the tensor that the module holds; None for values.
        tensors: what it holds, by name: parameters, and buffers for what is no weight.
        options: further arguments.
        is_arithmetic: it is a part of what others compute, and gives no neurons' outputs.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        slots: Sequence[str | None],
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        is_arithmetic: bool = False,
    ) -> None:
        super().__init__()
        vars(self)[ARITHMETIC] = is_arithmetic
        self.function, self.slots, self.options = function, tuple(slots), dict(options)
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *values: Any) -> Any:
        rest = iter(values)
        arguments = [next(rest) if slot is None else getattr(self, slot) for slot in self.slots]
        return self.function(*arguments, **self.options)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__name__", ""))


def whole(function: _F) -> _F:
    """Makes torch.fx take a function as one operation, whatever it does inside."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        stand_in = next(_stand_ins(arguments), None)
        if stand_in is None:
            return function(*arguments, **options)
        return stand_in.tracer.create_proxy("call_function", call, arguments, options)

    return call  # type: ignore[return-value]


def _stand_ins(values: Sequence[Any]) -> Any:
    for value in values:
        if isinstance(value, fx.Proxy):
            yield value
        elif isinstance(value, tuple | list):
            yield from _stand_ins(value)
