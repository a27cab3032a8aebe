"""Weights that are no parameters: computed in ``forward``, or read from a buffer or an attribute.

A forward pass is watched. Whatever it multiplies by that is the same for all inputs and is no
parameter becomes one in the twin, so that faults strike what hardware stores: the quantised weight
of a quantisation-aware layer, not the number that training keeps; a frozen weight in a buffer; a
copy that the layer made once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from crashsim.model.inputs import Inputs
from crashsim.model.multiplied.products import Product, memory_of, watching
from crashsim.model.multiplied.stored_words import WORDS, words_of_fake_quantiser, words_of_integers
from crashsim.model.twins.held import Held
from crashsim.model.twins.held_in_forward import HeldWeight, Multiplying
from crashsim.model.twins.held_weights import put_parameter

# Runs the model on inputs, with these parameters and buffers.
Call = Callable[[Inputs, Mapping[str, Tensor]], object]
_NEW_NAME = "multiplied_weight"
_ROUNDED = 1 / 64  # of the largest weight: by how much int8 rounds at most, and some


@dataclass(frozen=True, eq=False)
class _Factor:
    """What a pass multiplied by, as it was then; ``memory`` says where."""

    path: str
    function: str
    value: Tensor
    memory: int


@dataclass(eq=False)
class _Computed:
    """A tensor that a forward multiplies by and that is no parameter.

    Attributes:
        path: the module whose forward it is.
        value: the tensor.
        memory: where it was.
        indices: of the pass's products, those that are this tensor.
        sources: names of the parameters and buffers on which it depends.
    """

    path: str
    value: Tensor
    memory: int
    indices: list[int]
    sources: list[str] = field(default_factory=list)


def hold_forward_weights(
    origin: nn.Module,
    twin: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    call: Call,
    held: Held,
) -> bool:
    """Has a twin hold the weights that its forward makes, as parameters; False if there are none.

    One more pass for models that multiply by their parameters alone.

    Args:
        origin: the twin, which is changed in place and not run.
        twin: a copy of it that ``call`` runs.
        tensors: the copy's parameters and buffers.
        inputs: the examples.
        call: runs the copy.
        held: what is known of the twin's weights so far; the names of sources are added.
    """
    used, computed = _found(twin, tensors, inputs, call, tensors)
    moved = _move_to_parameters(origin, twin, used, computed)
    _hold_computed(origin, computed, tensors, held)
    return moved or bool(computed)


def sources_in_forward(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    call: Call,
    among: Collection[str],
) -> dict[str, str]:
    """Names of tensors from which a forward computes weights, each with the weight's name.

    Args:
        model: is hooked while ``call`` runs it.
        tensors, inputs, call: as for ``hold_forward_weights``.
        among: names of those that are looked at. Each is changed for a pass, which not every
            buffer bears: torch's observers crash where the sizes of their buffers do not agree.
    """
    taken: set[str] = set()
    found: dict[str, str] = {}
    for item in _found(model, tensors, inputs, call, among)[1]:
        name = _name(model, item, tensors, taken)
        taken.add(name)
        found = {**dict.fromkeys(item.sources, name), **found}
    return found


def _found(
    twin: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    call: Call,
    among: Collection[str],
) -> tuple[set[str], list[_Computed]]:
    """The parameters and buffers that a pass multiplies by, and what else, made from some."""
    watcher = _Watcher(twin, tensors, call)
    example = inputs.part(0, 1)
    try:
        products = watcher.products(example, tensors)
    except Exception:  # whatever a forward minds about being watched
        return set(), []
    used, computed = set(watcher.used), _same_for_all(watcher, example, inputs, products)
    for item in computed:
        item.sources = list(watcher.sources_of(item, example, products, among))
    # What is computed from a weight that is multiplied itself too is in the same memory as that.
    return used, [item for item in computed if not used & set(item.sources)]


class _Watcher:
    """Runs a twin and tells what it multiplies by."""

    def __init__(self, twin: nn.Module, tensors: Mapping[str, Tensor], call: Call) -> None:
        self._twin, self.tensors, self._call = twin, tensors, call
        self.used: set[str] = set()

    def products(self, inputs: Inputs, tensors: Mapping[str, Tensor]) -> list[_Factor]:
        """What a pass multiplies by that is no parameter or buffer, nor a view of one."""
        names = {memory_of(tensor): name for name, tensor in tensors.items()}
        found: list[_Factor] = []

        def note(product: Product) -> None:
            memory = memory_of(product.value)
            name = names.get(memory)
            if name is None:
                value = product.value.detach().clone()
                found.append(_Factor(product.path, product.function, value, memory))
            else:
                self.used.add(name)

        x = inputs.clone()
        with torch.no_grad(), watching(self._twin, list(x.tensors), note):
            self._call(x, tensors)
        return found

    def sources_of(
        self,
        item: _Computed,
        example: Inputs,
        products: list[_Factor],
        among: Collection[str],
    ) -> Iterator[str]:
        """The parameters and buffers that change a computed tensor when they change."""
        inside = _names_inside(self._twin, item.path)
        for name in among:
            tensor = self.tensors[name]
            if name not in inside or not tensor.numel() or name.rpartition(".")[2] == "bias":
                continue
            try:
                other = self.products(example, {**self.tensors, name: _changed(tensor)})
            except Exception:  # what fails with other numbers depends on them
                continue
            if len(other) == len(products) and any(
                not torch.equal(other[i].value, products[i].value) for i in item.indices
            ):
                yield name


def _same_for_all(
    watcher: _Watcher, example: Inputs, inputs: Inputs, products: list[_Factor]
) -> list[_Computed]:
    """The products that do not depend on the input."""
    if not products:
        return []
    try:
        others = watcher.products(_another(inputs), watcher.tensors)
    except Exception:  # the model need not take an example that we made up
        others = watcher.products(example, watcher.tensors)
    if [(p.path, p.function) for p in products] != [(p.path, p.function) for p in others]:
        return []
    found: list[_Computed] = []
    for index, (product, other) in enumerate(zip(products, others, strict=True)):
        value = product.value
        if value.shape != other.value.shape or not torch.equal(value, other.value):
            continue
        same = (c for c in found if c.path == product.path and _equal(c.value, value))
        known = next(same, None)
        if known is None:
            found.append(_Computed(product.path, value, product.memory, [index]))
        else:
            known.indices.append(index)
    return found


def _another(inputs: Inputs) -> Inputs:
    """An example other than the first."""
    other = inputs.part(1, 2) if len(inputs) > 1 else inputs.part(0, 1).rolled()
    for index, tensor in enumerate(other.tensors):
        if tensor.is_floating_point():
            other = other.with_tensor(index, 0.7 * tensor + 0.3)
    return other


def _changed(tensor: Tensor) -> Tensor:
    """Other numbers of the same kind."""
    rolled = tensor.flatten().roll(1).view(tensor.shape)
    if tensor.is_floating_point():
        return 0.1 + 0.1 * tensor.abs().max() - 1.5 * rolled
    return ~rolled if tensor.dtype == torch.bool else rolled + 1


def _move_to_parameters(
    origin: nn.Module, twin: nn.Module, used: set[str], computed: list[_Computed]
) -> bool:
    """Makes buffers and attributes that are weights parameters; the latter leave ``computed``."""
    buffers = [name for name, _ in origin.named_buffers() if name in used]
    for name in buffers:
        owner, key = _owner(origin, name)
        buffer = owner._buffers.pop(key)
        assert buffer is not None
        put_parameter(owner, key, nn.Parameter(buffer, requires_grad=False))
    attributes = {
        memory_of(value): (path, key, value)
        for path, module in twin.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    moved = False
    for item in list(computed):
        path, key, value = attributes.get(item.memory, ("", "", None))
        if value is None or item.sources or not value.is_floating_point():
            continue
        computed.remove(item)
        module = origin.get_submodule(path)
        if key in vars(module):
            tensor = vars(module).pop(key)
            put_parameter(module, key, nn.Parameter(tensor, requires_grad=False))
            moved = True
    return moved or bool(buffers)


@dataclass(frozen=True, eq=False)
class _HeldAs:
    """Where a twin holds a computed weight.

    Attributes:
        owner, key: the layer and the attribute.
        sources: what it is computed from.
        value: the weight.
    """

    owner: nn.Module
    key: str
    sources: frozenset[str]
    value: Tensor


def _hold_computed(
    origin: nn.Module,
    computed: list[_Computed],
    tensors: Mapping[str, Tensor],
    held: Held,
) -> None:
    by_path: dict[str, list[HeldWeight]] = {}
    done: list[_HeldAs] = []
    taken: set[str] = set()
    hidden: set[str] = set()
    for item in computed:
        known = next((h for h in done if _is_same(item, h)), None)
        if known is None:
            name = _name(origin, item, tensors, taken)
            taken.add(name)
            known = _hold_one(origin, item, name, tensors, hidden)
            done.append(known)
            held.sources |= {s: name for s in item.sources if s not in taken}
        transposed = _is_transposed(item.value, known.value)
        weight = HeldWeight(known.owner, known.key, item.value, transposed)
        by_path.setdefault(item.path, []).append(weight)
    for path, weights in by_path.items():
        module = origin.get_submodule(path)
        vars(module)["forward"] = Multiplying(module.forward, weights)


def _hold_one(
    origin: nn.Module,
    item: _Computed,
    name: str,
    tensors: Mapping[str, Tensor],
    hidden: set[str],
) -> _HeldAs:
    """Holds a computed weight under a name, and hides what it is computed from.

    Args:
        hidden: names of what has been hidden, to which this one's sources are added.
    """
    places = _places(origin, name)
    owner, key = places[0]
    like = tensors.get(name)
    transposed = like is not None and _is_transposed(item.value, like)
    value = item.value.mT if transposed else item.value
    for source in dict.fromkeys((*item.sources, name)):
        if source not in hidden:
            _hide(origin, source, keep=source == name)
    hidden |= {*item.sources, name}
    parameter = nn.Parameter(value.contiguous().clone(), requires_grad=False)
    for place in places:
        put_parameter(*place, parameter)
    words = words_of_fake_quantiser(origin.get_submodule(item.path), parameter.detach())
    read = (words_of_integers(tensors[s], parameter.detach()) for s in item.sources)
    words = words or next((found for found in read if found is not None), None)
    if words is not None:
        vars(owner).setdefault(WORDS, {})[key] = words
    return _HeldAs(owner, key, frozenset(item.sources), parameter.detach())


def _is_same(item: _Computed, held: _HeldAs) -> bool:
    """Whether a computed tensor is a weight that is held already, or its transpose."""
    if not item.sources or held.sources != {*item.sources}:
        return False
    transposed = _is_transposed(item.value, held.value)
    return _equal(item.value.mT if transposed else item.value, held.value)


def _name(
    origin: nn.Module, item: _Computed, tensors: Mapping[str, Tensor], taken: set[str]
) -> str:
    """What a computed weight is called: like the tensor of its size that it is computed from."""
    alike = [s for s in item.sources if tensors[s].numel() == item.value.numel()]
    known = [s for s in alike if s not in taken and tensors[s].is_floating_point()]
    if known:
        return min(known, key=lambda s: (s.rpartition(".")[2] != "weight", len(s)))
    if not known and (name := _rounded_from(item, tensors, taken)):
        return name
    inside = f"{item.path}." if item.path else ""
    module = origin.get_submodule(item.path)
    if not hasattr(module, "weight") and f"{inside}weight" not in taken:
        return f"{inside}weight"
    number = 0
    while f"{inside}{_NEW_NAME}_{number}" in taken:
        number += 1
    return f"{inside}{_NEW_NAME}_{number}"


def _rounded_from(item: _Computed, tensors: Mapping[str, Tensor], taken: set[str]) -> str | None:
    """The parameter of which a weight is the rounded copy, as converted graphs keep it unused."""
    for name, tensor in tensors.items():
        if name in taken or tensor.shape != item.value.shape or not tensor.is_floating_point():
            continue
        off = (tensor - item.value).abs().max()
        if 0 < off <= _ROUNDED * item.value.abs().max():
            return name
    return None


def _hide(origin: nn.Module, name: str, keep: bool) -> None:
    """Makes a parameter or buffer an attribute that forward alone sees.

    Vectors and numbers that are no weights stay, for what else may read them.
    """
    for owner, key in _places(origin, name):
        holder = owner._parameters if key in owner._parameters else owner._buffers
        tensor = holder.get(key)
        if tensor is None or (tensor.dim() < 2 and not keep):
            continue
        vars(owner)[key] = tensor.detach().clone()  # not the user's memory: forward may write to it
        if not keep or holder is owner._buffers:
            del holder[key]


def _is_transposed(value: Tensor, like: Tensor) -> bool:
    if value.dim() != 2 or value.shape != like.mT.shape:
        return False
    return value.shape != like.shape or not value.is_contiguous()


def _every_name(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All names of the parameters and buffers, those of tied ones too."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _names_inside(model: nn.Module, path: str) -> set[str]:
    """The names, as ``named_parameters`` gives them, of what a module holds."""
    first: dict[int, str] = {}
    for name, tensor in _every_name(model):
        first.setdefault(id(tensor), name)
    return {first[id(tensor)] for _, tensor in _every_name(model.get_submodule(path))}


def _places(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every layer that holds a tensor of this name, with its name there; the first is its owner."""
    found = dict(_every_name(model))
    names = [name, *(n for n in found if name in found and found[n] is found[name] and n != name)]
    return [_owner(model, n) for n in names]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
