"""Faults attached to a model while it trains: hooks at its sites, until they are removed.

``FaultSpace`` hooks a model for one evaluation. A regulariser must instead see every forward pass
of somebody else's training loop: in training mode, of any batch, under autocast. Its hooks hold
weak references, so they die with their owner, and copies or pickles of the model carry hooks that
do nothing.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from crashsim.arguments import instance
from crashsim.coordinates.placement import Faults, Placement, check_strength, place
from crashsim.errors import ModelError
from crashsim.faults import check_independent, faults_by_site, faults_of
from crashsim.model import checkpointing
from crashsim.model.calling import call_with
from crashsim.model.checks import check_can_be_trained, check_module, dtype_of
from crashsim.model.inputs import read_inputs
from crashsim.model.recurrence import Stepwise
from crashsim.model.sites.discovery import find_sites
from crashsim.model.sites.feature_axis import marked_features
from crashsim.model.sites.layer_kinds import calls_no_activations
from crashsim.model.sites.names import ACTIVATION_FUNCTIONS, SiteKey
from crashsim.model.sites.passes import watched_values
from crashsim.model.sites.site import FunctionListener, Site, report_items
from crashsim.model.sites.time_axis import StepsAxis, with_steps_axis
from crashsim.model.twins.twin import Twin, twin_of
from crashsim.model.unread_parameters import check_read
from crashsim.noticing import notice
from crashsim.training.computed_weights import check_names, check_placements
from crashsim.training.striking import StruckCall


class _Hook:
    """A hook that lives as long as the owner of its method; a copy of it does nothing."""

    def __init__(self, method: Callable[..., Any] | None = None, *extra: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._extra = extra

    def __call__(self, *args: Any) -> Any:
        method = self._method and self._method()
        return method(*args, *self._extra) if method else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


@dataclass(frozen=True)
class Moment:
    """Where something attached stands in a forward pass.

    Attributes:
        active: whether faults strike.
        calls: of each module and function so far.
        modules: that are running, as the listener knows them.
        weights: what it takes to strike the weights as they are struck.
    """

    active: bool
    calls: Counter[tuple[str, str | None]]
    modules: list[tuple[str, bool]]
    weights: Any


class _StruckLayer(Stepwise):
    """Runs a recurrent layer by steps, and strikes the outputs of those of its last layer.

    Attributes:
        has_struck: whether it did.
    """

    def __init__(self, strike: Callable[[Tensor, int, int], Tensor], last: int) -> None:
        super().__init__()
        self.has_struck = False

        def strike_last(h: Tensor, layer: int, direction: int, step: int) -> Tensor:
            if layer < last:
                return h
            self.has_struck = True
            return strike(h, direction, step)

        self.strike = strike_last


class Attached(checkpointing.Participant, ABC):
    """Faults attached to a model; the base of regularisers and of crash training.

    The sites are found at the first forward pass, which shows the inputs' shape: a twin of the
    model runs some more times then, in evaluation mode, and random state is put back.

    Args:
        model: any module with one tensor in and one tensor out, batch first; ``torch.compile``d
            ones too.
        faults: one fault (struck at ``sites``), or a mapping from site names or globs to faults.
        sites: name or glob of the sites that a single fault strikes.
        steps_axis: the axis of the struck values that is time, as of ``FaultSpace``.
    """

    def __init__(
        self,
        model: nn.Module,
        faults: Faults,
        sites: str = "hidden",
        steps_axis: StepsAxis | None = None,
    ) -> None:
        check_can_be_trained(check_module(model))
        check_independent(faults_by_site(faults).values(), "training")
        instance("sites", sites, str, "a name or glob; several go into faults")
        self.model, self.faults, self._pattern = model, faults, sites
        self.steps_axis = steps_axis
        self._attach()

    def _attach(self) -> None:
        self.placements: list[Placement] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._calls: Counter[tuple[str, str | None]] = Counter()
        self._active = self._busy = False
        self._keeps_state = False  # from one pass to the next, such as membranes
        self._outer: list[bool] = []  # of the passes that this one runs inside of
        self._listener: FunctionListener | None = None
        self._by_key: dict[SiteKey, StruckCall] = {}
        self._usual_calls: Counter[tuple[str, str | None]] = Counter()  # those of the first pass
        self._rows: int | None = None  # examples in the batch
        self._layers: list[_StruckLayer | None] = []  # the recurrent layers that run
        self._hook_model()
        weakref.finalize(self, _remove_all, self._handles)
        checkpointing.join(self)
        self._leave_checkpointing = weakref.finalize(self, checkpointing.leave)

    def _hook_model(self) -> None:
        self._handles.append(
            self.model.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
        )
        self._handles.append(self.model.register_forward_hook(_Hook(self._after), always_call=True))

    # What subclasses do.

    @abstractmethod
    def _wanted(self) -> bool:
        """Whether faults strike in the forward pass that begins."""

    @abstractmethod
    def _strike(self, value: Tensor, call: StruckCall) -> Tensor:
        """The value (B, *shape) of one site, as the rest of the model shall see it."""

    @abstractmethod
    def _strike_step(self, h: Tensor, direction: int, step: int, call: StruckCall) -> Tensor:
        """The output (B, H) of a recurrent layer's step, as it shall be fed back."""

    @abstractmethod
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a wanted forward pass."""

    @abstractmethod
    def _end(self, output: Any) -> None:
        """Called after a wanted forward pass, with None if it raised."""

    def _check(self, placements: list[Placement]) -> None:
        """Raises CrashsimError where it can do nothing with some of the faults."""

    def _meet_compiler(self) -> None:
        """Called where the model's own forward pass is compiled, in which no hook acts."""

    # What users do.

    @property
    def sites(self) -> list[str]:
        """Names of the struck sites; empty before the first forward pass."""
        return [placement.site.name for placement in self.placements]

    def remove(self) -> None:
        """Takes every hook off the model. Calling it twice does no harm."""
        _remove_all(self._handles)
        if self._leave_checkpointing.detach():
            checkpointing.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in _TRANSIENT}
        return {**state, "_attached": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state.pop("_attached")
        self.__dict__.update(state)
        self._attach()
        if not attached:
            self.remove()

    # The hooks.

    @property
    def _original(self) -> nn.Module:
        """The module whose sites are struck: what ``torch.compile`` was given."""
        found = getattr(self.model, "_orig_mod", self.model)
        assert isinstance(found, nn.Module)
        return found

    @property
    def _is_compiled(self) -> bool:
        return self._original is not self.model

    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.compiler.is_compiling():
            self._meet_compiler()
            return None
        # A pass inside a pass is somebody else's look at the model: it is left alone.
        self._outer.append(self._active)
        nested, self._active = self._active or self._busy, False
        if nested or not checkpointing.recalled(self, self._wanted):
            return None
        if not self.placements:
            self._discover(args)
        self._active = True
        self._calls.clear()
        self._rows = len(args[0])
        self._begin(args, kwargs)
        if self._is_compiled:
            return None
        if self._listener is not None:
            self._listener.modules[:] = [("", calls_no_activations(self.model))]
            self._listener.__enter__()  # type: ignore[no-untyped-call]
        entry = self._by_key.get(_INPUT)
        return ((self._strike(args[0], entry), *args[1:]), kwargs) if entry else None

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._outer:
            return
        was_active, self._active = self._active, self._outer.pop()
        if not was_active:
            return
        if self._listener is not None and not self._is_compiled:
            self._listener.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and not self._usual_calls:
            self._usual_calls = Counter(self._calls)
        self._end(output)

    def _at_site(self, module: nn.Module, _: Any, output: Any, path: str) -> Any:
        return report_items(module, output, partial(self._report, path))

    def _enter(self, _: nn.Module, __: Any, path: str, is_activation: bool) -> None:
        if self._active and self._listener is not None:
            self._listener.modules.append((path, is_activation))

    def _leave(self, *_: Any) -> None:
        if self._active and self._listener is not None:
            self._listener.modules.pop()

    def _report(self, path: str, function: str | None, value: Any) -> Any:
        if not self._active:
            return value
        call = self._calls[path, function]
        self._calls[path, function] += 1
        struck = self._struck_at(SiteKey(path, function, call))
        if struck is None or struck.site.is_inside:
            return value
        site = struck.site
        acts_once = all(p.acts_once for p in struck.placements)

        def strike(given: Tensor) -> Tensor:
            rows = given.movedim(site.axis, 0)
            if not acts_once and self._rows is not None:
                # Neurons that act often have a coordinate for each example, the same in each call.
                rows = site.by_example(given, self._rows)
            return self._strike(rows, struck).movedim(0, site.axis)

        return site.apply(strike, value)

    def _struck_at(self, key: SiteKey) -> StruckCall | None:
        """What strikes in a call; also in one more than the first pass had, as in more steps."""
        found = self._by_key.get(key)
        usual = self._usual_calls[key.module, key.function]
        if found is not None or not usual or key.call < usual:
            return found
        others = [c for k, c in self._by_key.items() if k[:2] == key[:2]]
        placements = {p for c in others for p in c.placements}
        windows = [p.fault.window for p in placements]
        is_over = all(window is not None and window[1] <= usual for window in windows)
        if is_over or (len(others) == 1 and others[0].site.call < usual - 1):
            return None  # a single call was asked for, or steps that are over
        if not all(len(p.sites) == usual > 1 and p.fault.window is None for p in placements):
            raise ModelError(
                f"model: {SiteKey(key.module, key.function).name!r} runs more often than in the "
                f"first pass ({usual} times), and as which neurons is not known; make this anew "
                "and call the model with the longest sequence first"
            )
        last = others[-1]
        site = replace(last.site, call=key.call, name=key.name)
        self._by_key[key] = more = StruckCall(site, last.placements)
        return more

    def _enter_layer(self, module: nn.Module, _: Any, path: str) -> None:
        key = SiteKey(path, None, self._calls[path, None])
        struck = self._struck_at(key) if self._active else None
        if struck is None or not struck.site.is_inside:
            self._layers.append(None)
            return
        last = int(getattr(module, "num_layers", 1)) - 1
        layer = _StruckLayer(partial(self._strike_step, call=struck), last)
        layer.__enter__()  # type: ignore[no-untyped-call]
        self._layers.append(layer)

    def _leave_layer(self, _: nn.Module, __: Any, output: Any, path: str) -> None:
        layer = self._layers.pop() if self._layers else None
        if layer is None:
            return
        layer.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and not layer.has_struck:
            raise ModelError(
                f"model: {path!r} was called in a way that cannot be computed step by step (with "
                "a packed sequence, say), so its units cannot fail inside; call it with a plain "
                "tensor, or give other sites"
            )

    def _discover(self, args: tuple[Any, ...]) -> None:
        """Finds the sites and hooks them."""
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() == 0:
            given = ", ".join(type(a).__name__ for a in args) or "none"
            raise ModelError(
                f"model: called with ({given}); the model must take one tensor with the batch "
                "first: wrap it in a module that does"
            )
        model = self._original
        with self._undisturbed(model) as twin, torch.no_grad():
            x = args[0].detach().clone()
            check_names(model, self.faults, self._pattern)

            def run(given: Mapping[str, Tensor], v: Tensor) -> Any:
                return twin.call(lambda: call_with(twin.module, given, (v.clone(),)))

            run(twin.tensors, x)
            self._keeps_state = twin.has_changed()
            twin.looks = True
            available = find_sites(twin.module, x, lambda v: run(twin.tensors, v))
            if self.steps_axis is not None:
                available = with_steps_axis(available, self.steps_axis, read_inputs(x))
            if any(fault.is_of_features for fault in faults_of(self.faults)):
                example = read_inputs(x).part(0, 1)
                watched = partial(
                    watched_values, twin.module, example, lambda v: run(twin.tensors, v)
                )
                available = marked_features(twin.module, available, watched)
            placements = place(self.faults, self._pattern, available, dtype_of(model))
            check_strength(placements, dtype_of(model))
            self._check(placements)
            check_placements(
                twin.module, placements, twin.tensors, x, lambda v, given: run(given, v)
            )
            again = partial(run, v=x)
            unread = check_read([p.site for p in placements], twin.tensors, again, again)
        if unread:
            notice(unread, stacklevel=5)
        self.placements = placements
        for p in self.placements:
            for site in p.sites:
                call = self._by_key.setdefault(key_of(site), StruckCall(site, []))
                call.placements.append(p)
        if self._is_compiled:
            return
        self._hook_sites()

    def _hook_sites(self) -> None:
        """Hooks that see the values at the sites."""
        model = self._original
        functional = any(name in ACTIVATION_FUNCTIONS for _, name, _ in self._by_key)
        paths = {path for path, name, _ in self._by_key if name not in ACTIVATION_FUNCTIONS}
        if functional:
            self._listener = self._new_listener()
        for path, module in model.named_modules():
            if functional and module is not model:
                kind = calls_no_activations(module)
                self._handles.append(
                    module.register_forward_pre_hook(_Hook(self._enter, path, kind))
                )
                self._handles.append(
                    module.register_forward_hook(_Hook(self._leave), always_call=True)
                )
            if path and path in paths and self._has_module_site(path):
                self._handles.append(module.register_forward_hook(_Hook(self._at_site, path)))
            if any(c.site.is_inside and c.site.module == path for c in self._by_key.values()):
                self._handles.append(
                    module.register_forward_pre_hook(_Hook(self._enter_layer, path))
                )
                self._handles.append(
                    module.register_forward_hook(_Hook(self._leave_layer, path), always_call=True)
                )

    # Gradient checkpointing.

    def moment(self, reentrant: bool) -> Moment:
        modules = [] if self._listener is None else list(self._listener.modules)
        return Moment(self._active, Counter(self._calls), modules, self._weights_now())

    @contextmanager
    def resumed(self, moment: Moment, needed: bool) -> Iterator[None]:
        state = {name: getattr(self, name) for name in _OF_A_PASS}
        removed = not self._handles
        try:
            if removed and (needed or moment.active):
                self._hook_model()
                if self._by_key:
                    self._hook_sites()
            self._active, self._calls, self._outer = moment.active, Counter(moment.calls), []
            self._rows, self._layers = None, []
            with ExitStack() as stack:
                if self._listener is not None:
                    self._listener = self._new_listener()  # the other may be listening elsewhere
                    self._listener.modules[:] = moment.modules
                    if moment.active:
                        stack.enter_context(self._listener)
                if moment.active:
                    stack.enter_context(self._with_weights(moment.weights))
                yield
        finally:
            self.__dict__.update(state)
            if removed:
                _remove_all(self._handles)

    def _weights_now(self) -> Any:
        """What it takes to strike the weights once more as they are struck."""
        return None

    @contextmanager
    def _with_weights(self, weights: Any) -> Iterator[None]:
        """Within the block the weights are struck as they were."""
        yield

    def _new_listener(self) -> FunctionListener:
        """One that reports as long as no other has taken its place."""
        listener = FunctionListener(
            lambda path, name, value: (
                self._report(path, name, value) if self._listener is listener else value
            )
        )
        return listener

    def _has_module_site(self, path: str) -> bool:
        return any(
            p.site.module == path and p.site.kind in ("activation", "module")
            for p in self.placements
        )

    @contextmanager
    def _undisturbed(self, model: nn.Module) -> Iterator[Twin]:
        """A twin in evaluation mode; random state is put back."""
        origin = twin_of(model)
        for module in origin.modules():
            module.training = False
        twin = Twin(origin, None, set())
        self._busy = True
        try:
            with torch.random.fork_rng(devices=devices_of(model)), checkpointing.uncounted():
                yield twin
        finally:
            self._busy = False


_INPUT = SiteKey("<input>")
_OF_A_PASS = ("_active", "_calls", "_outer", "_listener", "_rows", "_layers")
_TRANSIENT = (
    "placements",
    "_handles",
    "_busy",
    "_by_key",
    "_keeps_state",
    "_usual_calls",
    "_leave_checkpointing",
    *_OF_A_PASS,
)


def key_of(site: Site) -> SiteKey:
    return _INPUT if site.kind == "input" else site.key


def devices_of(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices whose random state a forward pass may use."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted({d.index or 0 for d in devices})


def _remove_all(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
