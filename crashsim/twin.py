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

import gc
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from copyreg import dispatch_table
from functools import _lru_cache_wrapper, lru_cache, partial
from operator import is_
from threading import local
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from crashsim.errors import ModelError
from crashsim.inputs import plain
from crashsim.structure import mapped

T = TypeVar("T")

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type)
# What no forward pass changes, or what has no second self.
_SHARED = (
    *_PLAIN,
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
)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_KEPT = "_crashsim_kept"  # of the twin's root: what is otherwise held by weak references alone
_WRITTEN = "_crashsim_written"  # of the root: names of parameters
_MISSING = object()
_FOLLOWED = 10_000  # objects that are looked through for a way back to the user's modules


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
        """Has this thread's value made anew when it is asked for again."""
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
        self._states: dict[int | str, State] = dict(enumerate(copier.states))
        self._changing = changing
        self.tensors: dict[str, Tensor] = {}
        owned = dict(self.module.named_parameters()) if owned is None else owned
        keep_apart(self.module, owned)
        for name, parameter in self.module.named_parameters():
            self._hold(name, parameter.detach(), dtype, name in owned)
        for name, buffer in self.module.named_buffers():
            self._hold(name, buffer, dtype, True)

    def _hold(self, name: str, tensor: Tensor, dtype: torch.dtype | None, may_change: bool) -> None:
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if may_change:
            self._states[name] = _Numbers(tensor)
        self.tensors[name] = tensor

    def share(self, origin: nn.Module, owned: Collection[str]) -> None:
        """Computes with the origin's parameters from now on, but for some that stay copies."""
        for name, parameter in self.module.named_parameters():
            if name not in owned:
                parameter.data = origin.get_parameter(name).data
                self._states.pop(name)
                was = self.tensors[name]
                self.tensors[name] = parameter.detach().to(was.dtype)
        self._changing.intersection_update(self._states)

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
        held = {id(state.held) for state in changing if isinstance(state, _Numbers)}
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
    for name in names:
        parameter = twin.get_parameter(name)
        parameter.data = cloned(parameter)
    vars(twin)[_WRITTEN] = tuple(names)


def written(twin: nn.Module) -> tuple[str, ...]:
    """Names of the parameters to which the forward writes, as far as it is known."""
    found: tuple[str, ...] = vars(twin).get(_WRITTEN, ())
    return found


def cloned(tensor: Tensor) -> Tensor:
    """A copy that needs no more memory than the tensor, and has no graph."""
    with torch.no_grad():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.clone()
        repeated = [s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)]
        if not any(repeated):
            return tensor.detach().clone()
        once = tuple(slice(0, 1) if again else slice(None) for again in repeated)
        return tensor.detach()[once].clone().expand(tensor.shape)


class State(Protocol):
    """What an object of the twin held when it was made."""

    def has_changed(self) -> bool: ...

    def restore(self) -> None: ...


def _is_same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, Tensor):
        alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
        return alike and not old.is_meta and torch.equal(old, new)
    return isinstance(old, _PLAIN) and old == new


class _Dict:
    """The contents of a dict, which may be that of an object's attributes."""

    def __init__(self, held: dict[Any, Any]) -> None:
        self.held, self._saved = held, dict(held)

    def _is_untouched(self) -> bool:
        held, saved = self.held, self._saved
        return held.keys() == saved.keys() and all(map(is_, held.values(), saved.values()))

    def has_changed(self) -> bool:
        if self._is_untouched():
            return False
        held = self.held
        return len(held) != len(self._saved) or any(
            not _is_same(value, held.get(key, _MISSING)) for key, value in self._saved.items()
        )

    def restore(self) -> None:
        if not self._is_untouched():
            self.held.clear()
            self.held.update(self._saved)


class _Hooks(_Dict):
    """A module's hooks, to which ours may have been added; they stay."""

    def has_changed(self) -> bool:
        return any(key not in self.held for key in self._saved)

    def restore(self) -> None:
        if self.has_changed():
            added = dict(self.held)
            self.held.clear()
            self.held.update({**self._saved, **added})


class _Sequence:
    """The contents of a list, a deque or a set."""

    def __init__(self, held: Any) -> None:
        self._held, self._saved = held, list(held)

    def has_changed(self) -> bool:
        held = list(self._held)
        return len(held) != len(self._saved) or not all(map(_is_same, self._saved, held))

    def restore(self) -> None:
        held = list(self._held)
        same = len(held) == len(self._saved) and all(map(is_, held, self._saved))
        if not same:
            self._held.clear()
            add = self._held.update if isinstance(self._held, set) else self._held.extend
            add(self._saved)


class _Fields:
    """Attributes that are not in an object's dict: its slots, or what is in a cell."""

    def __init__(self, held: Any, names: Collection[str]) -> None:
        self._held = held
        self._saved = {name: getattr(held, name, _MISSING) for name in names}

    def has_changed(self) -> bool:
        return not all(
            _is_same(value, getattr(self._held, name, _MISSING))
            for name, value in self._saved.items()
        )

    def restore(self) -> None:
        for name, value in self._saved.items():
            if value is not _MISSING:
                setattr(self._held, name, value)
            elif hasattr(self._held, name):
                delattr(self._held, name)


class _Numbers:
    """The numbers of a tensor."""

    def __init__(self, held: Tensor) -> None:
        self.held, self._saved = held, cloned(held)

    def has_changed(self) -> bool:
        held, saved = self.held.detach(), self._saved
        if held.shape != saved.shape or held.dtype != saved.dtype or held.device != saved.device:
            return True
        if held.is_meta:
            return False
        if held.is_quantized or held.layout is not torch.strided:
            held, saved = _dense(held), _dense(saved)
        return not torch.equal(held, saved)

    def restore(self) -> None:
        # Other memory, so that what was computed from the old stays what it is.
        self.held.data = cloned(self._saved)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor.to_dense()


class _Array:
    """The numbers of an array."""

    def __init__(self, held: np.ndarray[Any, Any]) -> None:
        self._held, self._saved = held, held.copy()

    def has_changed(self) -> bool:
        return self._held.tobytes() != self._saved.tobytes()

    def restore(self) -> None:
        self._held[...] = self._saved


class _Cache:
    """What a ``functools.lru_cache`` keeps, which is nothing at first."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def has_changed(self) -> bool:
        return bool(self._held.cache_info().currsize)

    def restore(self) -> None:
        self._held.cache_clear()


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
        found = self.memo.get(id(value), _MISSING)
        if found is _MISSING:
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
            self.states.append(_Dict(copy.__dict__))
        if slots := _slots(type(copy)):
            self.states.append(_Fields(copy, slots))

    def _note_hooks(self, copy: dict[Any, Any]) -> None:
        for number in reversed(range(len(self.states))):  # the last, but for hooks held elsewhere
            state = self.states[number]
            if isinstance(state, _Dict) and state.held is copy:
                self.states[number] = _Hooks(copy)
                return

    def _tensor(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            if type(tensor) is not nn.Parameter:
                return tensor
            copy: Tensor = nn.Parameter(plain(tensor), requires_grad=tensor.requires_grad)
            self.put(tensor, copy)
        else:
            copy = cloned(tensor)
            self.put(tensor, copy)
            self.states.append(_Numbers(copy))
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
        self.states.append(_Dict(copy))
        return copy

    def _list(self, value: Any) -> Any:
        copy = deque(maxlen=value.maxlen) if isinstance(value, deque) else type(value)()
        self.put(value, copy)
        add = copy.add if isinstance(copy, set) else copy.append
        for part in list(value):
            add(self(part))
        self.states.append(_Sequence(copy))
        return copy

    def _tuple(self, value: Any) -> Any:
        parts = [self(part) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return self.memo.get(id(value), value if same else type(value)(parts))

    def _bytearray(self, value: bytearray) -> bytearray:
        copy = bytearray(value)
        self.states.append(_Sequence(copy))
        return copy

    def _array(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        copy = value.copy()
        if value.dtype.hasobject:
            for number, part in enumerate(value.flat):
                copy.flat[number] = self(part)
        else:
            self.states.append(_Array(copy))
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
                self.states.append(_Fields(new, ("cell_contents",)))
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
        self.states.append(_Cache(copy))
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
            self.states.append(_Dict(copy))
        elif isinstance(copy, list | set | deque):
            self.states.append(_Sequence(copy))
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
    """In a twin, in the place of what ``torch.compile`` returned: the same, as it was written."""

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
        return cell.cell_contents is _MISSING
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
