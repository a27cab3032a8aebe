"""Finds the neurons of a model by what its modules do, whatever they are called.

A module of the user's own, or of a library of spiking networks, computes neurons' outputs where it
acts on each number by itself and is not affine (an activation function), or where it emits spikes:
whole multiples of one step, with a state that it keeps from call to call. Each such module is tried
out on copies, with its own inputs in a forward pass and with stronger ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crashsim.model.checks import rounding_slack
from crashsim.model.inputs import Inputs
from crashsim.model.nested import Names, leaves
from crashsim.model.sites.layer_kinds import is_activation, is_recurrent, is_recurrent_cell
from crashsim.model.sites.names import item_name
from crashsim.model.twins.copying import Copier

# What multiplies by weights, and so reads the outputs of the neurons before it.
_MULTIPLIES = frozenset(
    "linear bilinear matmul mm bmm addmm baddbmm addbmm mv einsum tensordot conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d lstm gru rnn_tanh rnn_relu lstm_cell "
    "gru_cell rnn_tanh_cell rnn_relu_cell __matmul__ __rmatmul__".split()
)

# An attribute of modules that are a part of what others compute, as the root in a normalisation is.
ARITHMETIC = "is_arithmetic"
_DRIVES = (1.0, 10.0, 100.0)  # times the size of a module's input
_LARGEST = 2**22  # values of an input that is tried out
_REPEATS = 5  # calls in which a state shows
_WEAKEST, _STRONGEST = 0.01, 10.0  # strengths of drives
_FACTORS = (1.0, 1.3, 1.7, 2.2, 0.3)  # times these, for tensors of few numbers
_MANY_FACTORS = (*_FACTORS, 0.1, 0.5, 0.7, 3.0, 5.0)
_BESIDE = 1.25  # a drive is beside another that is so many times as strong
_BEND = 16  # times rounding, that a second difference must exceed


@dataclass(frozen=True)
class Neurons:
    """What a module that computes neurons' outputs does.

    Attributes:
        behaviour: it emits spikes, or it is an activation function.
        steps_axis: the axis of its first argument that is time, where it runs through many steps
            in one call; None where it has none.
        feeds_back: whether it multiplies its spikes by weights again inside that call, where a
            fault of what it returns does not reach.
        item: which of the tensors that the module returns holds the spikes, as sites name it; None
            for the first.
    """

    behaviour: Literal["spiking", "activation"]
    steps_axis: int | None = None
    feeds_back: bool = False
    item: str | None = None


def neurons_of(model: nn.Module, example: Inputs, call: Callable[..., Any]) -> dict[str, Neurons]:
    """Finds the modules that compute neurons' outputs, by path, beside torch's own.

    Where such modules lie inside one another, the innermost spiking one counts, and the outermost
    activation function.

    Args:
        model: a twin, which may be run.
        example: one example.
        call: how to call the model.
    """
    modules = dict(model.named_modules())
    found: dict[str, Neurons] = {}
    tried: set[str] = set()

    def look(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path in tried:
            return
        tried.add(path)
        neurons = _neurons(module, args, kwargs)
        if neurons is not None:
            found[path] = neurons

    unknown = [
        path
        for path, module in modules.items()
        if path and not is_torchs(module) and not vars(module).get(ARITHMETIC, False)
    ]
    with torch.no_grad(), _before_each(modules, unknown, look):
        example.clone().call(call)
    spiking = [path for path, neurons in found.items() if neurons.behaviour == "spiking"]
    for path in spiking:
        if any(other.startswith(f"{path}.") for other in spiking):
            del found[path]
    return {p: n for p, n in found.items() if not any(p.startswith(f"{other}.") for other in found)}


def is_torchs(module: nn.Module) -> bool:
    """Whether the module's class is one of torch's own, or a kind of layer that torch knows."""
    known = is_activation(module) or is_recurrent(module) or is_recurrent_cell(module)
    return known or type(module).__module__.partition(".")[0] == "torch"


@contextmanager
def _before_each(
    modules: Mapping[str, nn.Module],
    paths: list[str],
    look: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None],
) -> Iterator[None]:
    """Within the block, ``look`` sees these modules before each call of them."""
    with ExitStack() as stack:
        for path in paths:

            def before(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path
            ) -> None:
                look(path, module, args, kwargs)

            handle = modules[path].register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _neurons(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Neurons | None:
    """What a module does to its first argument; None where that is not what neurons do."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or not 0 < x.numel() <= _LARGEST:
        return None
    try:
        return _Trial(module, x.detach(), args[1:], kwargs).neurons()
    except Exception:  # a module need not take values that we made up
        return None


class _Trial:
    """A module, in its present state, tried out with other inputs than its own.

    Args:
        module: of the twin; copies of it run.
        x: its first argument.
        others, keywords: the rest of the call.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, others: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._module, self._x, self._rest = module, x, (others, keywords)
        self._number = 0  # of the tensor looked at, among those that it returns
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(x.shape, generator=generator).to(x)
        self._struck = (torch.rand(x.shape, generator=generator) < 0.5).to(x.device)
        self._struck.view(-1)[0] = True
        self._size = float(x.abs().max()) or 1.0
        order = torch.randperm(x.numel(), generator=generator)
        ends = math.log10(_WEAKEST), math.log10(_STRONGEST)
        self._strengths = torch.logspace(*ends, x.numel())[order].view(x.shape).to(x)

    def neurons(self) -> Neurons | None:
        clean = self._answers(self._x)
        for number, (names, value) in enumerate(clean):
            # Beside a membrane that is returned first, spikes have its shape.
            could_be = number == 0 or value.shape == self._x.shape == clean[0][1].shape
            if could_be and value.is_floating_point() and are_multiples(value):
                self._number = number
                spiking = self._spiking(value, len(clean), item_name(self._module, names))
                if spiking is not None:
                    return spiking
        self._number = 0
        first = clean[0][1]
        if not first.is_floating_point():
            return None
        has_matrices = any(p.dim() >= 2 and p.numel() > 1 for p in self._module.parameters())
        if has_matrices or first.shape != self._x.shape:
            return None
        return Neurons("activation") if self._bends_each_number(first) else None

    def _spiking(self, clean: Tensor, returned: int, item: str | None) -> Neurons | None:
        """What it does, if it emits spikes; None if not."""
        if not self._emits_spikes(clean):
            return None
        axes = self._steps_axes(clean)  # it may keep its state inside a call alone
        if not axes and not self._keeps_state(returned):
            return None
        feeds_back = any(self._feeds_back(axis) for axis in axes)
        return Neurons("spiking", axes[0] if len(axes) == 1 else None, feeds_back, item)

    def _answers(self, value: Tensor, times: int = 1) -> list[tuple[Names, Tensor]]:
        """The tensors that a copy of the module returns, when called some times with a value.

        A state that it returns behind the first tensor, and takes there, is passed on.
        """
        copier = Copier()
        module = copier(self._module)
        others, keywords = copier(self._rest)
        output: Any = None
        for _ in range(times):
            if isinstance(output, tuple) and len(output) == 1 + len(others):
                others = output[1:]
            output = module.forward(value.clone(), *others, **keywords)
        return [(names, leaf) for names, leaf in leaves(output) if isinstance(leaf, Tensor)]

    def _answer(self, value: Tensor, times: int = 1) -> Tensor:
        """The one of them that is looked at."""
        return self._answers(value, times)[self._number][1]

    def _emits_spikes(self, clean: Tensor) -> bool:
        """Whether all that it returns are whole multiples of one step, and not always the same.

        Its first answer may be the same for all values, where these reach it a call later.
        """
        values = [clean]
        for times in (1, _REPEATS):
            for drive in _DRIVES:
                for value in (self._noise, 1 + self._noise.abs()):
                    values.append(self._answer(drive * self._size * value, times))
                if not are_multiples(torch.cat([value.flatten() for value in values])):
                    return False
            if len(torch.cat([value.flatten() for value in values]).unique()) > 1:
                return True
        return False

    def _keeps_state(self, returned: int) -> bool:
        """Whether it takes and returns a state, or answers the same value otherwise later.

        Under constant drives of many strengths, a neuron fires in some calls and not in others.
        """
        if returned > 1 and any(self._rest):
            return True
        between = (_STRONGEST / _WEAKEST) ** (1 / max(self._x.numel() - 1, 1))  # two strengths
        filling = [_BESIDE**n for n in range(math.ceil(math.log(between, _BESIDE)))]
        for factor in (*_FACTORS, *filling):
            value = factor * self._strengths
            first, *later = [self._answer(value, times) for times in range(1, _REPEATS + 1)]
            if not all(_equal(first, answer) for answer in later):
                return True
        return False

    def _steps_axes(self, clean: Tensor) -> list[int]:
        """The axes along which a change acts on what comes later alone, and does act on it.

        More than one where spikes are fed back, so rarely that the units' axis looks like time.
        """
        if clean.dim() != self._x.dim():
            return []
        found = []
        for axis, length in enumerate(self._x.shape):
            if length < 2 or clean.shape[axis] != length:
                continue
            at = length // 2 - (length == 2)
            before, after = False, False
            for factor in _MANY_FACTORS:
                base = factor * self._strengths
                usual = self._answer(base)
                for times in (0.0, 0.5, 2.0):
                    changed = base.clone()
                    changed.select(axis, at).mul_(times)
                    differs = (self._answer(changed) != usual).movedim(axis, 0).flatten(1).any(1)
                    before |= bool(differs[:at].any())
                    after |= bool(differs[at + 1 :].any())
            if after and not before:
                found.append(axis)
        return found

    def _feeds_back(self, axis: int) -> bool:
        """Whether it multiplies the spikes of a step, which are its output, in one call."""
        values = [drive * self._size * self._noise for drive in _DRIVES]
        for value in (*values, *(factor * self._strengths for factor in _MANY_FACTORS)):
            spikes = self._answer(value)
            seen = multiplied(partial(self._answer, value))
            steps = [s for s in spikes.unbind(axis) if bool(s.any()) and len(s.unique()) > 1]
            given = [v.flatten() for v in value.unbind(axis)]
            for tensor in seen:
                flat = tensor.flatten()
                is_input = any(torch.equal(flat, v) for v in given if v.shape == flat.shape)
                if not is_input and any(
                    flat.shape == s.flatten().shape and torch.equal(flat, s.flatten())
                    for s in steps
                ):
                    return True
        return False

    def _bends_each_number(self, clean: Tensor) -> bool:
        """Whether it acts on each number by itself, and not as an affine function."""
        bends = False
        for drive in _DRIVES:
            for sign in (1, -1):
                step = sign * drive * self._size * self._struck * (1 + self._noise.abs())
                one, two = (self._answer(self._x + times * step) for times in (1, 2))
                if not _equal(one[~self._struck], clean[~self._struck]):
                    return False
                bend = float((two - 2 * one + clean).abs().max())
                largest = max(float(v.abs().max()) for v in (two, one, clean, self._x, step))
                bends |= bend > _BEND * rounding_slack(self._x.dtype) * largest
        return bends


def are_multiples(values: Tensor) -> bool:
    """Whether all values are whole multiples of one step."""
    size = values.abs()
    if not bool(size.isfinite().all()):
        return False
    if not bool((size > 0).any()):
        return True
    multiples = size / size[size > 0].min()
    return bool((multiples == multiples.round()).all())


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


class _Multiplied(TorchFunctionMode):
    """Keeps what is multiplied by weights, and the weights, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "").partition(".")[0] in _MULTIPLIES:
            self.seen += [leaf.clone() for _, leaf in leaves(args) if isinstance(leaf, Tensor)]
        return func(*args, **(kwargs or {}))


def multiplied(run: Callable[[], Any]) -> list[Tensor]:
    """The tensors that a pass multiplies with one another, in order."""
    mode = _Multiplied()
    with torch.no_grad(), mode:
        run()
    return mode.seen
