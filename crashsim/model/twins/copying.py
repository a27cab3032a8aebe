"""Copies of models: nothing in a copy leads back to the original."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from contextvars import ContextVar
from copyreg import dispatch_table
from functools import _lru_cache_wrapper, lru_cache, partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from crashsim.errors import ModelError
from crashsim.model.inputs import plain
from crashsim.model.twins.states import (
    MISSING,
    PLAIN,
    ArrayState,
    CacheState,
    DictState,
    FieldsState,
    HooksState,
    SequenceState,
    State,
    TensorState,
    cloned,
)

# What no forward pass changes, or what has no second self.
_SHARED = (
    *PLAIN,
    ModuleType,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    np.generic,
    torch.ScriptObject,
    torch.jit.ScriptModule,
    fx.Graph,
    fx.Node,
    torch.optim.Optimizer,
    torch.utils.data.Dataset,
    torch.utils.data.DataLoader,
    threading.local,
    ContextVar,
)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_KEPT = "_crashsim_kept"  # of the twin's root: what is otherwise held by weak references alone
_FOLLOWED = 10_000  # objects that are looked through for a way back to the user's modules


class Copier:
    """Copies an object with all that it leads to; what is met again is the same copy again.

    What cannot be copied (a lock, an open file, a generator) is shared. So are classes, modules of
    Python, functions that close over nothing, data sets and optimisers.

    Attributes:
        memo: copies by the ``id`` of what they are copies of, as ``copy.deepcopy`` keeps them.
        states: what the copied objects held, for those that may change.
    """

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}
        self.states: list[State] = []
        self._alive: list[Any] = []  # so that no id is used again
        self._given_up: list[Any] = []
        self._weakly_held: list[Any] = []
        self._modules: set[int] = set()

    def put(self, original: Any, copy: Any) -> None:
        """Settles what an object's copy is."""
        self.memo[id(original)] = copy
        self._alive.append(original)

    def copied(self, model: nn.Module) -> Any:
        """The copy of a model.

        Raises:
            ModelError: what was not copied leads back to the model's own modules.
        """
        with torch.no_grad():
            try:
                for module in model.modules():
                    if not isinstance(module, torch.jit.ScriptModule):
                        self.put(module, _shell(module))
                        self._modules.add(id(module))
                for module in model.modules():
                    self._fill(module)
            except RecursionError as error:
                raise ModelError(
                    "model: its attributes are nested too deeply to be copied; hold modules in "
                    "nn.ModuleList and data in lists or tensors"
                ) from error
        for thing in self._given_up:
            if _leads_to(thing, self._modules):
                raise ModelError(
                    f"model: holds {type(thing).__name__} ({str(thing)[:80]}), which cannot be "
                    "copied and leads back to the model's own modules; take it off the model"
                )
        twin = self.memo[id(model)]
        if self._weakly_held:
            twin.__dict__[_KEPT] = self._weakly_held
        return twin

    def __call__(self, value: Any) -> Any:
        """The copy of any object; the object itself where there is none."""
        if issubclass(type(value), _SHARED):
            return value
        found = self.memo.get(id(value), MISSING)
        if found is MISSING:
            try:
                found = self._new(value)
            except RecursionError:
                raise
            except Exception:  # whatever an object minds about being copied
                self._given_up.append(value)
                found = value
            self.put(value, found)
        return found

    def _new(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, nn.Module):
            self.put(value, _shell(value))
            self._modules.add(id(value))
            self._fill(value)
            return self.memo[id(value)]
        if issubclass(kind, Tensor):
            return self._tensor(value)
        make = _MAKERS.get(kind)
        return self._by_reduction(value) if make is None else make(self, value)

    # Modules and tensors.

    def _fill(self, module: nn.Module) -> None:
        """Gives the shell of a module copies of its attributes."""
        shell = self.memo[id(module)]
        attributes = shell.__dict__
        for name, value in list(module.__dict__.items()):
            if name == "_compiled_call_impl" or (type(shell) is Uncompiled and name not in _OWN):
                continue
            # What came with a graph says how it was made, and is not read when it runs.
            shared = name == "meta" and isinstance(module, fx.GraphModule)
            copy = attributes[name] = value if shared else self(value)
            if name in _HOOKS:
                self._note_hooks(copy)
        for name in _slots(type(shell)):
            if hasattr(module, name):
                object.__setattr__(shell, name, self(getattr(module, name)))
        self._note(shell)

    def _note(self, copy: Any) -> None:
        """Remembers the attributes of a copied object."""
        if isinstance(getattr(copy, "__dict__", None), dict):
            self.states.append(DictState(copy.__dict__))
        if slots := _slots(type(copy)):
            self.states.append(FieldsState(copy, slots))

    def _note_hooks(self, copy: dict[Any, Any]) -> None:
        for number in reversed(range(len(self.states))):  # the last, but for hooks held elsewhere
            state = self.states[number]
            if isinstance(state, DictState) and state.held is copy:
                self.states[number] = HooksState(copy)
                return

    def _tensor(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            if type(tensor) is not nn.Parameter:  # of a class of its own, which is left alone
                return tensor
            copy: Tensor = nn.Parameter(plain(tensor), requires_grad=tensor.requires_grad)
            self.put(tensor, copy)
        else:
            copy = cloned(tensor)
            self.put(tensor, copy)
            self.states.append(TensorState(copy))
        for name, value in tensor.__dict__.items():
            setattr(copy, name, self(value))
        return copy

    # Containers.

    def _dict(self, value: Any) -> Any:
        copy = type(value)()
        if isinstance(value, defaultdict):
            copy.default_factory = self(value.default_factory)
        self.put(value, copy)
        for key, part in list(value.items()):
            copy[self(key)] = self(part)
        self.states.append(DictState(copy))
        return copy

    def _list(self, value: Any) -> Any:
        copy = deque(maxlen=value.maxlen) if isinstance(value, deque) else type(value)()
        self.put(value, copy)
        add = copy.add if isinstance(copy, set) else copy.append
        for part in list(value):
            add(self(part))
        self.states.append(SequenceState(copy))
        return copy

    def _tuple(self, value: Any) -> Any:
        parts = [self(part) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return self.memo.get(id(value), value if same else type(value)(parts))

    def _bytearray(self, value: bytearray) -> bytearray:
        copy = bytearray(value)
        self.states.append(SequenceState(copy))
        return copy

    def _array(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        copy = value.copy()
        if value.dtype.hasobject:
            for number, part in enumerate(value.flat):
                copy.flat[number] = self(part)
        else:
            self.states.append(ArrayState(copy))
        return copy

    # What can be called.

    def _function(self, value: FunctionType) -> Any:
        if (inner := value.__dict__.get("_torchdynamo_orig_callable")) is not None:
            return self(inner)  # as it was written: nothing is compiled here
        cells = value.__closure__ or ()
        defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        if not cells and all(isinstance(default, _SHARED) for default in defaults):
            return value
        copy = FunctionType(
            value.__code__, value.__globals__, value.__name__, None, tuple(map(self._cell, cells))
        )
        self.put(value, copy)
        copy.__defaults__, copy.__kwdefaults__ = (
            self(value.__defaults__),
            self(value.__kwdefaults__),
        )
        copy.__qualname__, copy.__module__ = value.__qualname__, value.__module__
        copy.__doc__, copy.__annotations__ = value.__doc__, value.__annotations__
        copy.__dict__.update({name: self(part) for name, part in value.__dict__.items()})
        for old, new in zip(cells, copy.__closure__ or (), strict=True):
            if _is_empty(new) and not _is_empty(old):
                new.cell_contents = self(old.cell_contents)
                self.states.append(FieldsState(new, ("cell_contents",)))
        return copy

    def _cell(self, cell: CellType) -> CellType:
        if id(cell) not in self.memo:
            self.put(cell, CellType())
        found: CellType = self.memo[id(cell)]
        return found

    def _method(self, value: MethodType) -> MethodType:
        return MethodType(self(value.__func__), self(value.__self__))

    def _builtin(self, value: Any) -> Any:
        owner = value.__self__
        copy = self(owner)
        return value if copy is owner else getattr(copy, value.__name__)

    def _partial(self, value: partial[Any]) -> partial[Any]:
        keywords = {name: self(part) for name, part in value.keywords.items()}
        return partial(self(value.func), *map(self, value.args), **keywords)

    def _cached(self, value: Any) -> Any:
        inner = self(value.__wrapped__)
        if inner is value.__wrapped__:
            return value
        copy = lru_cache(**value.cache_parameters())(inner)
        self.states.append(CacheState(copy))
        return copy

    # References that keep nothing alive.

    def _reference(self, value: weakref.ref[Any]) -> Any:
        target = value()
        copy = self(target)
        if copy is target:
            return value
        self._weakly_held.append(copy)
        kind = weakref.WeakMethod if isinstance(value, weakref.WeakMethod) else weakref.ref
        return kind(copy)

    def _proxy(self, value: Any) -> Any:
        target = value.__repr__.__self__
        copy = self(target)
        if copy is target:
            return value
        self._weakly_held.append(copy)
        return weakref.proxy(copy)

    # Anything else.

    def _generator(self, value: torch.Generator) -> torch.Generator:
        copy = torch.Generator(value.device)
        copy.set_state(value.get_state())
        return copy

    def _by_reduction(self, value: Any) -> Any:
        """An object of any other class, taken apart as ``pickle`` does."""
        kind = type(value)
        if hasattr(kind, "__del__"):  # it may own what it gives back when it dies
            raise TypeError(f"{kind.__name__} has a finaliser")
        if hasattr(kind, "__deepcopy__"):
            copy = kind.__deepcopy__(value, self.memo)
            self._note(copy)
            return copy
        reduce = dispatch_table.get(kind)
        parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(parts, str):  # what is found by its name is one of a kind
            self._given_up.append(value)
            return value
        make, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        copy = make(*map(self, arguments))
        self.put(value, copy)
        self._set_state(copy, state)
        for item in items or ():
            copy.append(self(item))
        for key, part in pairs or ():
            copy[self(key)] = self(part)
        if isinstance(copy, dict):
            self.states.append(DictState(copy))
        elif isinstance(copy, list | set | deque):
            self.states.append(SequenceState(copy))
        self._note(copy)
        return copy

    def _set_state(self, copy: Any, state: Any) -> None:
        if state is None:
            return
        state = self(state)
        if hasattr(copy, "__setstate__"):
            copy.__setstate__(state)
            return
        in_slots = None
        if isinstance(state, tuple) and len(state) == 2:
            state, in_slots = state
        if state:
            copy.__dict__.update(state)
        for name, part in (in_slots or {}).items():
            object.__setattr__(copy, name, part)


_MAKERS: dict[type, Callable[[Copier, Any], Any]] = {
    dict: Copier._dict,
    OrderedDict: Copier._dict,
    defaultdict: Copier._dict,
    list: Copier._list,
    set: Copier._list,
    deque: Copier._list,
    tuple: Copier._tuple,
    bytearray: Copier._bytearray,
    np.ndarray: Copier._array,
    FunctionType: Copier._function,
    MethodType: Copier._method,
    BuiltinMethodType: Copier._builtin,
    partial: Copier._partial,
    _lru_cache_wrapper: Copier._cached,
    weakref.ref: Copier._reference,
    weakref.WeakMethod: Copier._reference,
    weakref.ProxyType: Copier._proxy,
    weakref.CallableProxyType: Copier._proxy,
    torch.Generator: Copier._generator,
}


class Uncompiled(nn.Module):
    """Takes the place of what ``torch.compile`` returned, in a twin: the function as written."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_mod":
            return self._modules[name]
        return getattr(self._orig_mod, name)


_OWN = vars(nn.Module()).keys()  # what every module has


def _shell(module: nn.Module) -> nn.Module:
    """A module of the same class without attributes."""
    kind = type(module)
    if "_orig_mod" in module.__dict__.get("_modules", {}) and _is_compiled(kind):
        kind = Uncompiled
    try:
        shell: nn.Module = object.__new__(kind)
    except TypeError:  # a class that is also one of C's
        shell = kind.__new__(kind)
    return shell


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is MISSING
    except ValueError:
        return True


def _is_compiled(kind: type) -> bool:
    return kind.__module__.startswith("torch._dynamo")


def _slots(kind: type) -> list[str]:
    """Names of the attributes that are in slots."""
    names = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name in ("__dict__", "__weakref__"):
                continue
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return names


def _leads_to(thing: Any, wanted: Collection[int]) -> bool:
    """Whether some objects, by their ids, are reached from another one."""
    seen, waiting = {id(thing)}, [thing]
    while waiting and len(seen) < _FOLLOWED:
        held = waiting.pop()
        if id(held) in wanted:
            return True
        if isinstance(held, FunctionType):  # without the global variables that it can see
            inner: list[Any] = [held.__closure__, held.__defaults__, held.__kwdefaults__]
        else:
            inner = gc.get_referents(held)
        for part in inner:
            if id(part) not in seen and not issubclass(type(part), (type, ModuleType)):
                seen.add(id(part))
                waiting.append(part)
    return False
