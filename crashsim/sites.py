"""Where faults may strike in a torch model.

Sites are found by running the model once and listening: the outputs of modules (forward hooks),
the outputs of functional activations such as ``torch.relu(x)`` (a ``TorchFunctionMode``), the
input, and the parameters. A module or function that runs several times in one forward pass is
several sites: ``layer1.0.relu`` and ``layer1.0.relu#1``. A functional site is named after the
module whose ``forward`` calls it: ``encoder:relu``. Of a module that returns a tuple (recurrent
layers, attention) the first item is the site.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crashsim.errors import SiteError
from crashsim.faults import Strikes

Kind = Literal["activation", "module", "input", "parameter"]

# Modules that are activation functions: their outputs are what hardware calls a neuron's output.
_NOT_NEURONS = (
    nn.MultiheadAttention,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.LogSoftmax,
)
ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if not issubclass(getattr(nn.modules.activation, name), _NOT_NEURONS)
)
ACTIVATION_FUNCTIONS = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish "
    "sigmoid sigmoid_ tanh tanh_ softplus softsign hardtanh hardtanh_ hardswish hardsigmoid "
    "logsigmoid prelu threshold".split()
)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)  # they end with an activation function inside
_AFFINE = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Site:
    """A place where a fault may strike.

    Attributes:
        name: what the user calls it; also how reports name it.
        kind: ``activation`` (output of an activation function), ``module`` (output of another
            module), ``input`` or ``parameter``.
        module: dotted path of the module; of a parameter: its full name.
        function: the torch function, for a functional activation.
        call: which call within one forward pass, from 0.
        shape: shape without the batch axis.
        is_output: the site's value is the model's output itself.
        is_affine: the site is the output of a linear or convolutional layer.
        axis: the axis of the value that is the batch (1 in sequences of shape (T, B, ...)).
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    module: str = ""
    function: str | None = None
    call: int = 0
    is_output: bool = False
    is_affine: bool = False
    axis: int = 0

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


Key = tuple[str, str | None, int]
Action = Callable[[Tensor], Tensor | None]


def _key(site: Site) -> Key:
    return site.module, site.function, site.call


class _Listener(TorchFunctionMode):
    """Names each functional activation after the module that calls it, and passes its output on."""

    def __init__(self, on_output: Callable[[str, str, Any], Any]) -> None:
        super().__init__()
        self._on_output = on_output
        self.modules: list[tuple[str, bool]] = []  # the modules now running: path, is activation

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").partition(".")[0]  # exported graphs: relu.default
        if name in ACTIVATION_FUNCTIONS and self.modules and not self.modules[-1][1]:
            return self._on_output(self.modules[-1][0], name.rstrip("_"), output)
        return output


@contextmanager
def listening(
    model: nn.Module, on_output: Callable[[Key, Any], Any], only: Sequence[Site] | None = None
) -> Iterator[None]:
    """Calls ``on_output(key, value)`` on every site's value in forward passes inside the block.

    What it returns, unless None, replaces the value. Hooks are removed on leaving, always.

    Args:
        model: any module.
        on_output: called with (module path, function or None, call number) and the value.
        only: listen at these sites alone (others cost nothing).
    """
    calls: Counter[tuple[str, str | None]] = Counter()
    wanted = None if only is None else {(site.module, site.function) for site in only}
    functional = wanted is None or any(function is not None for _, function in wanted)

    def report(module: str, function: str | None, value: Any) -> Any:
        call = calls[module, function]
        calls[module, function] += 1
        replacement = on_output((module, function, call), value)
        return value if replacement is None else replacement

    with ExitStack() as stack:

        def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
            stack.callback(handle.remove)

        def begin(*_: Any) -> None:
            calls.clear()

        hook(model.register_forward_pre_hook(begin, prepend=True))
        listener = _Listener(report)
        if functional:
            for path, module in model.named_modules():
                entry = path, isinstance(module, ACTIVATION_MODULES)

                def enter(*_: Any, entry: tuple[str, bool] = entry) -> None:
                    listener.modules.append(entry)

                def leave(*_: Any) -> None:
                    listener.modules.pop()

                hook(module.register_forward_pre_hook(enter))
                hook(module.register_forward_hook(leave, always_call=True))
            stack.enter_context(listener)
        for path, module in model.named_modules():
            if wanted is None or (path, None) in wanted:

                def after(_: nn.Module, __: Any, output: Any, path: str = path) -> Any:
                    if type(output) is tuple and output:
                        return report(path, None, output[0]), *output[1:]
                    return report(path, None, output)

                hook(module.register_forward_hook(after))
        yield


@contextmanager
def perturbing(model: nn.Module, actions: Mapping[Site, Action]) -> Iterator[None]:
    """Within the block, each site's value passes through its action in every forward pass."""
    by_key = {_key(site): action for site, action in actions.items()}

    def act(key: Key, value: Any) -> Any:
        action = by_key.get(key)
        return action(value) if action else None

    with listening(model, act, only=list(actions)):
        yield


def find_sites(
    model: nn.Module, inputs: Tensor, run: Callable[[Tensor], Any] | None = None
) -> list[Site]:
    """All sites of a model, in the order of execution, then its parameters.

    The model runs twice, on one and on two examples, to see which values carry the batch on their
    first axis, or on the second of three or more (sequences of shape (T, B, ...)); values that do
    not, and values that are no floating-point tensor, are no sites.

    Args:
        model: any module with one tensor in and one out, in evaluation mode.
        inputs: (B, ...) examples; the first is used.
        run: how to call the model, if not as ``model(inputs)``.
    """
    paths = dict(model.named_modules())

    def sample(batch: int) -> tuple[dict[Key, Tensor], Any]:
        seen: dict[Key, Tensor] = {}

        def record(key: Key, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 1:
                seen[key] = value

        example = inputs[:1].repeat(batch, *[1] * (inputs.dim() - 1))
        with torch.no_grad(), listening(model, record):
            return seen, (run or model)(example)

    one, _ = sample(1)
    two, output = sample(2)
    sites = []
    if inputs.is_floating_point():
        sites.append(Site("input", "input", tuple(inputs.shape[1:])))
    for key, value in two.items():
        path, function, call = key
        axis = _batch_axis(one[key], value) if key in one else None
        if axis is None or not path + (function or ""):
            continue
        name = path if function is None else f"{path}:{function}"
        module = paths[path]
        is_activation = function is not None or isinstance(
            module, (*ACTIVATION_MODULES, *_RECURRENT)
        )
        is_output = (
            isinstance(output, Tensor)
            and value.data_ptr() == output.data_ptr()
            and value.numel() == output.numel()
        )
        sites.append(
            Site(
                name=f"{name}#{call}" if call else name,
                kind="activation" if is_activation else "module",
                shape=tuple(value.movedim(axis, 0).shape[1:]),
                module=path,
                function=function,
                call=call,
                is_output=is_output,
                is_affine=isinstance(module, _AFFINE) and function is None,
                axis=axis,
            )
        )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            sites.append(Site(name, "parameter", tuple(parameter.shape), module=name))
    return sites


def _batch_axis(one: Tensor, two: Tensor) -> int | None:
    """The axis along which a value for two examples is twice as long as for one."""
    if one.dim() != two.dim():
        return None
    grown = [axis for axis in range(one.dim()) if one.shape[axis] != two.shape[axis]]
    if len(grown) != 1 or (one.shape[grown[0]], two.shape[grown[0]]) != (1, 2):
        return None
    return grown[0] if grown[0] == 0 or (grown[0] == 1 and two.dim() >= 3) else None


def select_sites(available: Sequence[Site], pattern: str, strikes: Strikes) -> list[Site]:
    """The sites that a name or glob stands for.

    - ``hidden``: outputs of activation functions, the model's own output left out. A network
      without activation functions has linear neurons: the outputs of its Linear and Conv layers.
      For a fault of weights it means ``weights``.
    - ``input``: the model's input.
    - ``weights``: every parameter of two or more axes.
    - a site's full name, or a glob over names (``features.*``). Where a glob matches activations
      and other modules, it stands for the activations; where a weight fault's glob matches biases
      and other vectors beside weights, for the weights. A full name stands for exactly that site.

    Args:
        available: what ``find_sites`` returned.
        pattern: one of the above.
        strikes: what the fault can strike; it decides between neurons and weights where a glob
            matches both (a fault that can strike both takes neurons).

    Raises:
        SiteError: nothing matches, or only what the fault cannot strike; names what there is.
    """
    exact_name = any(site.name == pattern for site in available)
    neurons = [site for site in available if site.kind in ("activation", "module")]
    if pattern == "hidden" and strikes == "weights":
        pattern = "weights"
    if pattern == "hidden":
        found = [site for site in neurons if site.kind == "activation" and not site.is_output]
        if not found:
            found = [site for site in neurons if site.is_affine and not site.is_output]
    elif pattern == "input":
        found = [site for site in available if site.kind == "input"]
    elif pattern == "weights":
        found = [site for site in available if site.kind == "parameter" and len(site.shape) >= 2]
    else:
        exact = [site for site in available if site.name == pattern]
        found = exact or [site for site in available if fnmatchcase(site.name, pattern)]
        if not exact and any(site.kind == "activation" for site in found):
            found = [site for site in found if site.kind != "module"]
    struck = [site for site in found if _can_strike(strikes, site)]
    if strikes == "weights" and not exact_name and any(len(site.shape) >= 2 for site in struck):
        struck = [site for site in struck if len(site.shape) >= 2]
    if strikes == "both" and any(site.kind != "parameter" for site in struck):
        struck = [site for site in struck if site.kind != "parameter"]
    if struck:
        return struck
    names = [site.name for site in available if _can_strike(strikes, site)]
    shown = ", ".join(repr(name) for name in names[:20]) or "none"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    what = {"neurons": "neuron", "weights": "weight", "both": ""}[strikes]
    if found:
        matched = ", ".join(repr(site.name) for site in found[:5])
        raise SiteError(
            f"sites={pattern!r} names {matched}, which a {what} fault cannot strike; "
            f"choose among: {shown}{more}"
        )
    raise SiteError(
        f"sites={pattern!r} matches no {what} site of the model; "
        f"use 'hidden', 'input', 'weights', or choose among: {shown}{more}"
    )


def _can_strike(strikes: Strikes, site: Site) -> bool:
    return strikes == "both" or (strikes == "weights") == (site.kind == "parameter")
