"""Sites: where faults may strike in a torch model, and how their values are reached.

Sites are the outputs of modules (forward hooks), the outputs of functional activations such as
``torch.relu(x)`` (a ``TorchFunctionMode``), the inputs, and the parameters. A module or function
that runs several times in one forward pass is several sites. ``crashsim.model.sites.names`` says
how they are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crashsim.arguments import nearest
from crashsim.errors import ModelError, SiteError
from crashsim.faults import Strikes
from crashsim.model.multiplied.stored_words import Words
from crashsim.model.nested import Names, mapped
from crashsim.model.recurrence import STRUCK_IN_STEPS, Stepwise
from crashsim.model.sites.layer_kinds import calls_no_activations
from crashsim.model.sites.names import (
    ACTIVATION_FUNCTIONS,
    INPUT,
    CallNumbers,
    SiteKey,
    activation_function,
    item_name,
)

SiteKind = Literal["activation", "module", "input", "parameter"]
Role = Literal["hidden", "output", "guard"]

Action = Callable[[Tensor], Tensor | None]
# Of a recurrent layer's sequence: the output (rows, H) of a step, which direction, which step.
StepAction = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Site:
    """A place where a fault may strike.

    Attributes:
        name: what the user calls it; also how reports name it.
        kind: ``activation`` (output of an activation function), ``module`` (output of another
            module), ``input`` or ``parameter``.
        module: dotted path of the module; of a parameter: its full name.
        function: the torch function, for a functional activation; which of the values that the
            module returns (``h_n``), for one beside the first; ``input``, for what it reads.
        call: which call within one forward pass, from 0.
        shape: shape without the batch axis. Where a value has several rows for each example (the
            steps of a sequence, the patches of an image, folded into the batch), the first axis
            counts them; ``axis`` is 0 where those of an example stand together, else 1.
        is_output: the site's value is the model's output itself.
        is_affine: the site is the output of a linear or convolutional layer.
        axis: the axis of the value that is the batch (1 in sequences of shape (T, B, ...)).
        is_read: whether the output depends on the value, as far as the first example shows.
        has_gradient: whether the output has a derivative in the value.
        acts_on_spikes: whether spikes of a layer behind depend on it: they have no derivative,
            whatever surrogate gradient they pass on.
        role: of an activation: that of a neuron inside the network, of an output neuron (no weight
            multiplies its value), or a guard, which reads another activation's output and leaves
            it what it is, as long as nothing fails.
        steps: the axis of ``shape`` that is time, where the value holds many steps.
        features: the axis of ``shape`` that counts features, where it was looked for and found.
        units: the name of the first call of the same neurons (its own, if it is that), where a
            module runs in several steps; calls behind other weights are other neurons.
        is_recurrent: the site is the sequence that a recurrent layer of torch returns.
        aliases: other names of a parameter that several layers share.
        words: how a quantised layer stores the parameter.
    """

    name: str
    kind: SiteKind
    shape: tuple[int, ...]
    module: str = ""
    function: str | None = None
    call: int = 0
    is_output: bool = False
    is_affine: bool = False
    axis: int = 0
    is_read: bool = True
    has_gradient: bool = True
    acts_on_spikes: bool = False
    role: Role = "hidden"
    steps: int | None = None
    features: int | None = None
    units: str = ""
    is_recurrent: bool = False
    aliases: tuple[str, ...] = ()
    words: Words | None = field(default=None, compare=False)

    @property
    def key(self) -> SiteKey:
        """Which call of which module or function it is, for a site inside the model."""
        return SiteKey(self.module, self.function, self.call)

    @property
    def first_name(self) -> str:
        """The name of the module's first call, which stands for all of them."""
        if self.kind in ("input", "parameter"):
            return self.name
        return SiteKey(self.module, self.function).name

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def is_inside(self) -> bool:
        """Whether its neurons are struck inside a recurrent layer, before their feedback."""
        return self.steps is not None and self.kind == "activation" and self.is_recurrent

    def value_axis(self, axis: int) -> int:
        """Which axis of the value, with its batch, an axis of the shape is."""
        return axis if axis < self.axis else axis + 1

    def shape_axis(self, axis: int) -> int | None:
        """Which axis of the shape an axis of the value is; None for the batch, or beyond."""
        if axis == self.axis or not 0 <= axis <= len(self.shape):
            return None
        return axis if axis < self.axis else axis - 1

    def apply(self, action: Action, value: Tensor) -> Tensor | None:
        """Applies an action to the site's value, which it sees with an axis for the batch."""
        if value.dim() == 1 + len(self.shape):
            return action(value)
        rows, *rest = self.shape
        if len(value) % rows:
            raise self._decided_by_the_model()
        unfolded = (rows, -1) if self.axis else (-1, rows)
        changed = action(value.reshape(*unfolded, *rest))
        return None if changed is None else changed.reshape(value.shape)

    def by_example(self, value: Tensor, count: int) -> Tensor:
        """The site's value, as an action sees it, with the axis for a batch of ``count`` first.

        Raises:
            ModelError: it does not hold these examples, each of them once.
        """
        rows = value.movedim(self.axis, 0)
        if len(rows) != count:
            raise self._decided_by_the_model()
        return rows

    def _decided_by_the_model(self) -> ModelError:
        return ModelError(
            f"model: decides which examples run through {self.name!r}, so a fault of one neuron "
            "there is not the same in all of them; choose other sites"
        )


class FunctionListener(TorchFunctionMode):
    """Names each functional activation after the module that calls it, and passes its output on.

    Attributes:
        modules: the modules now running: path, is activation.
        watch: if given, is called with the running module's path, each function and its arguments.
    """

    watch: Callable[[str, Callable[..., Any], tuple[Any, ...]], None] | None = None

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
        if self.watch is not None and self.modules:
            self.watch(self.modules[-1][0], func, args)
        name = activation_function(func)
        if name is not None and self.modules and not self.modules[-1][1]:
            return self._on_output(self.modules[-1][0], name, output)
        return output


@contextmanager
def listening(
    model: nn.Module,
    on_output: Callable[[SiteKey, Any], Any],
    only: Sequence[Site] | None = None,
    inputs: Collection[str] = (),
) -> Iterator[FunctionListener]:
    """Calls ``on_output(key, value)`` on every site's value in forward passes inside the block.

    What it returns, unless None, replaces the value. Hooks are removed on leaving, always.

    Args:
        model: any module.
        on_output: called with the site's key and the value.
        only: listen at these sites alone (others cost nothing).
        inputs: modules of which what they read is a site, too, if ``only`` is not given.
    """
    calls = CallNumbers()
    wanted = None if only is None else {(site.module, site.function) for site in only}
    functional = wanted is None or any(name in ACTIVATION_FUNCTIONS for _, name in wanted)
    hooked = None if wanted is None else {path for path, _ in wanted}
    read = inputs if wanted is None else {path for path, name in wanted if name == INPUT}

    def report(module: str, function: str | None, value: Any) -> Any:
        # A quantised value is seen as the numbers that it stands for.
        seen = value.dequantize() if _is_quantised(value) else value
        replacement = on_output(calls.key(module, function), seen)
        if replacement is None:
            return value
        return replacement if seen is value else _quantised_like(value, replacement)

    with ExitStack() as stack:

        def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
            stack.callback(handle.remove)

        def begin(*_: Any) -> None:
            calls.clear()

        hook(model.register_forward_pre_hook(begin, prepend=True))
        listener = FunctionListener(report)
        if functional:
            for path, module in model.named_modules():
                entry = path, calls_no_activations(module)

                def enter(*_: Any, entry: tuple[str, bool] = entry) -> None:
                    listener.modules.append(entry)

                def leave(*_: Any) -> None:
                    listener.modules.pop()

                hook(module.register_forward_pre_hook(enter))
                hook(module.register_forward_hook(leave, always_call=True))
            stack.enter_context(listener)
        for path, module in model.named_modules():
            if hooked is None or path in hooked:

                def after(module: nn.Module, _: Any, output: Any, path: str = path) -> Any:
                    return report_items(module, output, partial(report, path))

                hook(module.register_forward_hook(after))
            if path in read:

                def before(_: Any, args: tuple[Any, ...], path: str = path) -> Any:
                    if args and isinstance(args[0], Tensor):
                        return (report(path, INPUT, args[0]), *args[1:])
                    return None

                hook(module.register_forward_pre_hook(before))
        yield listener


def _is_quantised(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_quantized


def _quantised_like(value: Tensor, other: Tensor) -> Tensor:
    """Other numbers, rounded to the steps of a quantised tensor."""
    return torch.quantize_per_tensor(
        other.float(), value.q_scale(), value.q_zero_point(), value.dtype
    )


def report_items(module: nn.Module, output: Any, report: Callable[[str | None, Any], Any]) -> Any:
    """Replaces each tensor that a module returns by ``report(name, tensor)``.

    The name is None for the tensor that bears the module's own name. A tensor that is returned
    twice (spikes, and the same in the state that is fed back) is reported once. What replaces it
    does so in the module too, where that keeps it for its next step.
    """
    known: dict[int, Any] = {}

    def pass_on(names: Names, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        name = item_name(module, names)
        known[id(value)] = value if name in ACTIVATION_FUNCTIONS else report(name, value)
        if known[id(value)] is not value:
            _replace_kept(module, value, known[id(value)])
        return known[id(value)]

    return mapped(output, pass_on)


def _replace_kept(module: nn.Module, old: Tensor, new: Any) -> None:
    """Replaces a tensor that a module, or one inside it, keeps in an attribute, buffer or dict."""
    for inner in module.modules():
        own = vars(inner)
        for held in (own, *[value for value in own.values() if type(value) is dict and value]):
            for name in [name for name, value in held.items() if value is old]:
                held[name] = new


@contextmanager
def perturbing(
    model: nn.Module,
    actions: Mapping[Site, Action],
    inside: Mapping[Site, StepAction] | None = None,
) -> Iterator[None]:
    """Within the block, each site's value passes through its action in every forward pass.

    Args:
        model: any module.
        actions: for sites by their values.
        inside: for the sequences of recurrent layers, what each step's output passes through
            before it is fed back.
    """
    by_key = {site.key: partial(site.apply, action) for site, action in actions.items()}

    def act(key: SiteKey, value: Any) -> Any:
        action = by_key.get(key)
        return action(value) if action else None

    with ExitStack() as stack:
        if inside:
            stack.enter_context(_stepping(model, {s.key: a for s, a in inside.items()}))
        if actions or not inside:
            stack.enter_context(listening(model, act, only=list(actions)))
        yield


@contextmanager
def _stepping(model: nn.Module, actions: Mapping[SiteKey, StepAction]) -> Iterator[None]:
    """Within the block, recurrent layers with an action run by steps, and pass through it."""
    calls = CallNumbers()

    def begin(*_: Any) -> None:
        calls.clear()

    def enter(module: nn.Module, _: Any, path: str) -> None:
        action = actions.get(calls.key(path, None))
        last = int(getattr(module, "num_layers", 1)) - 1

        def strike(h: Tensor, layer: int, direction: int, step: int) -> Tensor:
            assert action is not None
            return action(h, direction, step) if layer == last else h

        STRUCK_IN_STEPS.set(None if action is None else strike)

    def leave(*_: Any) -> None:
        STRUCK_IN_STEPS.set(None)

    with ExitStack() as stack:

        def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
            stack.callback(handle.remove)

        hook(model.register_forward_pre_hook(begin, prepend=True))
        for path in {key.module for key in actions}:
            module = model.get_submodule(path)
            hook(module.register_forward_pre_hook(partial(enter, path=path)))
            hook(module.register_forward_hook(leave, always_call=True))
        with _OfOneLayer():
            yield


class _OfOneLayer(Stepwise):
    """Computes by steps the recurrent layer that is struck at the moment, and no other."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if STRUCK_IN_STEPS.get() is None:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def select_sites(available: Sequence[Site], pattern: str, strikes: Strikes) -> list[Site]:
    """Selects the sites that a name or glob stands for.

    - ``hidden``: outputs of activation functions and of spiking neurons. Left out are the model's
      own output, output neurons (whose spikes no weight multiplies) if there are others, guards (a
      clip behind an activation), and what the output does not depend on. A network without
      activation functions has linear neurons: the outputs of its Linear and Conv layers. Of a
      recurrent layer it is the sequence. For a fault of weights it means ``weights``.
    - ``input``: the model's inputs of floating point (``input.NAME`` is one of several).
    - ``weights``: every parameter of two or more axes.
    - a site's full name, or a glob over names (``features.*``). Where a glob matches activations
      and other modules, it stands for the activations; where a weight fault's glob matches biases
      and other vectors beside weights, for the weights. Sites that the output does not depend on
      are left out, if there are others.
    - A full name stands for all calls of a module that runs several times in a forward pass;
      ``relu#0``, ``relu#1``, ... for one of them.

    Args:
        available: what ``find_sites`` returned.
        pattern: one of the above.
        strikes: what the fault can strike; it decides between neurons and weights where a glob
            matches both (a fault that can strike both takes neurons).

    Raises:
        SiteError: nothing matches, or only what the fault cannot strike; names what there is.
    """
    called = [
        site
        for site in available
        if pattern in (site.first_name, f"{site.first_name}#0", *site.aliases)
    ]
    if pattern.endswith("#0"):
        called = [site for site in called if site.call == 0]
    called = called or [site for site in available if site.name == pattern]
    neurons = [site for site in available if site.kind in ("activation", "module")]
    if pattern == "hidden" and strikes == "weights":
        pattern = "weights"
    if pattern == "hidden":
        inner = [site for site in neurons if not site.is_output]
        read = [site for site in inner if site.is_read]
        activations = _without_repeats(
            [site for site in read if site.kind == "activation"], c_n=False
        )
        found = [site for site in activations if site.role == "hidden"]
        found = found or [site for site in activations if site.role == "output"]
        found = found or [site for site in read if site.is_affine]
        found = found or [s for s in inner if s.kind == "activation" or s.is_affine]
    elif pattern == "input":
        found = [site for site in available if site.kind == "input"]
    elif pattern == "weights":
        found = [site for site in available if site.kind == "parameter" and len(site.shape) >= 2]
    else:
        found = called or [
            site
            for site in available
            if any(fnmatchcase(name, pattern) for name in (site.name, *site.aliases))
        ]
        if not called and any(site.kind == "activation" for site in found):
            found = [site for site in found if site.kind != "module"]
        if not called:
            found = _without_repeats([site for site in found if site.is_read]) or found
    struck = [site for site in found if _can_strike(strikes, site)]
    if strikes == "weights" and not called and any(len(site.shape) >= 2 for site in struck):
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
        f"sites={pattern!r} matches no {what} site of the model"
        f"{nearest(pattern, [*names, 'hidden', 'input', 'weights'])}; "
        f"use 'hidden', 'input', 'weights', or choose among: {shown}{more}"
    )


def _without_repeats(sites: Sequence[Site], c_n: bool = True) -> list[Site]:
    """Without the final states of recurrent layers whose sequence, which ends in them, is there.

    Args:
        sites: all on which the output depends.
        c_n: keep an LSTM's memory beside its final output.
    """
    names = {(site.module, site.call, site.function) for site in sites}

    def is_repeated(site: Site) -> bool:
        place = site.module, site.call
        if site.function == "c_n" and not c_n and (*place, "h_n") in names:
            return True
        return site.function in ("h_n", "c_n") and (*place, None) in names

    return [site for site in sites if not is_repeated(site)]


def _can_strike(strikes: Strikes, site: Site) -> bool:
    return strikes == "both" or (strikes == "weights") == (site.kind == "parameter")
