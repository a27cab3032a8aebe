"""A twin of a model: modules of its own that compute with the user's parameters.

Whatever runs a model may hook it, swap its tensors and change its attributes. Here that happens to
a twin alone, so that other threads may serve or train the model meanwhile. A twin has the model's
classes and structure, and shares the memory of its parameters; buffers, tensors in attributes,
lists, dicts and other objects that a forward pass may change are copies. So are the variables that
hooks and other functions of the model close over, but not global variables.

A forward pass may leave something behind: a membrane potential, a counter, a cache. ``Twin`` puts
it back before each pass, so that every pass starts from what the model was when it was handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import local
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from crashsim.model.calling import call_with, holding
from crashsim.model.nested import mapped
from crashsim.model.twins.copying import Copier
from crashsim.model.twins.states import DictState, State, TensorState, cloned

T = TypeVar("T")

_WRITTEN = "_crashsim_written"  # of the root: names of parameters


class PerThread(Generic[T]):
    """A value for each thread, made where a thread first asks for it. Pickles without them."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = local()

    def __call__(self) -> T:
        if not hasattr(self._local, "value"):
            self._local.value = self._make()
        found: T = self._local.value
        return found

    def put(self, value: T) -> None:
        self._local.value = value

    def forget(self) -> None:
        """Drops this thread's value; the next call makes a new one."""
        self._local.__dict__.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_make"])  # type: ignore[misc]


class Twin:
    """A twin at work: what one thread runs.

    Args:
        origin: a twin that is never run.
        dtype: floating-point type to compute in; None: the model's own.
        changing: what forward passes change, as far as it is known: numbers of objects, names of
            parameters and buffers. Twins of one origin share the set.
        owned: names of the parameters to be copied; None: all.

    Attributes:
        module: the model to run.
        tensors: its parameters and buffers, to be passed in.
        looks: whether each pass is looked at for changes that are not known yet.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        origin: nn.Module,
        dtype: torch.dtype | None,
        changing: set[int | str],
        owned: Collection[str] | None = (),
    ) -> None:
        copier = Copier()
        self.module: nn.Module = copier.copied(origin)
        self.looks = self._has_run = False
        self._held: tuple[Mapping[str, Tensor], Callable[[], None]] | None = None
        self._states: dict[int | str, State] = dict(enumerate(copier.states))
        self._changing = changing
        self.tensors: dict[str, Tensor] = {}
        owned = dict(self.module.named_parameters()) if owned is None else owned
        keep_apart(self.module, owned)
        for state in copier.states:  # its note of that does not come from a pass
            if isinstance(state, DictState) and state.held is vars(self.module):
                state.keep()
        for name, parameter in self.module.named_parameters():
            is_own = type(parameter) is nn.Parameter and name in owned
            self._hold(name, parameter.detach(), dtype, is_own)
        for name, buffer in self.module.named_buffers():
            self._hold(name, buffer, dtype, type(buffer) is Tensor)

    def _hold(self, name: str, tensor: Tensor, dtype: torch.dtype | None, may_change: bool) -> None:
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if may_change:
            self._states[name] = TensorState(tensor)
        self.tensors[name] = tensor

    @property
    def keeps_tensors(self) -> bool:
        """Whether it holds tensors in attributes that are neither parameters nor buffers."""
        return any(
            isinstance(s, TensorState) for k, s in self._states.items() if isinstance(k, int)
        )

    def share(self, origin: nn.Module, owned: Collection[str]) -> None:
        """Computes with the origin's parameters from now on, but for some that stay copies."""
        origins = dict(origin.named_parameters())
        for name, parameter in self.module.named_parameters():
            if name not in owned and name in self._states:
                parameter.data = origins[name].data
                self._states.pop(name)
                was = self.tensors[name]
                self.tensors[name] = parameter.detach().to(was.dtype)
        self._changing.intersection_update(self._states)

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, passes with this very mapping find its tensors in the module already."""
        with holding(self.module, tensors) as put:
            self._held = tensors, put
            try:
                yield
            finally:
                self._held = None

    def run_with(
        self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """What the module returns with these parameters and buffers; within ``call``."""
        if self._held is None or self._held[0] is not tensors:
            return call_with(self.module, tensors, arguments, keywords)
        self._held[1]()
        return self.module(*arguments, **keywords)

    def call(self, run: Callable[[], T]) -> T:
        """What a forward pass returns that starts from the state that was handed over."""
        self._has_run = True
        changing = [self._states[key] for key in self._changing if key in self._states]
        for state in changing:
            state.restore()
        try:
            output = run()
        except Exception:
            self.has_changed()  # a pass that fails half-way may leave anything behind
            raise
        held = {id(state.held) for state in changing if isinstance(state, TensorState)}
        if held:  # the next pass puts back what may be the output itself
            output = mapped(output, lambda _, leaf: leaf.clone() if id(leaf) in held else leaf)
        if self.looks:
            self.has_changed()
        return output

    def has_changed(self) -> bool:
        """Whether passes have changed something that was not known to change; put back from now on.

        What was computed before may depend on it, and has to be computed again.
        """
        if not self._has_run:
            return False
        self._has_run = False
        found = {
            key
            for key, state in self._states.items()
            if key not in self._changing and state.has_changed()
        }
        self._changing |= found
        return bool(found)


@torch.inference_mode(False)
def twin_of(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A twin of a model.

    Args:
        model: any module.
        tensors: its parameters and buffers by name, for a twin that computes with these themselves;
            else parameters share the model's memory, and buffers are copies.

    Raises:
        ModelError: the model holds something that cannot be copied and leads back to its modules.
    """
    copier = Copier()
    if tensors is not None:
        for name, parameter in model.named_parameters():
            copier.put(parameter, nn.Parameter(tensors[name], requires_grad=False))
        for name, buffer in model.named_buffers():
            copier.put(buffer, tensors[name])
    twin: nn.Module = copier.copied(model)
    return twin


def apart(model: nn.Module) -> nn.Module:
    """A twin with parameters of its own too, for a few passes that leave the model as it is."""
    twin = twin_of(model)
    keep_apart(twin, dict(twin.named_parameters()))
    return twin


def keep_apart(twin: nn.Module, names: Collection[str]) -> None:
    """Gives a twin copies of some parameters, to which its forward writes.

    Twins of this one are to have copies too: see ``written``.
    """
    parameters = dict(twin.named_parameters())  # which a layer's attributes may hide
    for name in names:
        parameter = parameters[name]
        if type(parameter) is nn.Parameter:  # others are the user's
            parameter.data = cloned(parameter)
    vars(twin)[_WRITTEN] = tuple(names)


def written(twin: nn.Module) -> tuple[str, ...]:
    """Names of the parameters to which the forward writes, as far as it is known."""
    found: tuple[str, ...] = vars(twin).get(_WRITTEN, ())
    return found
