"""Parameters that a model holds but does not compute with: no fault in them changes anything.

A layer may work with a copy of its weight that it made once (a conductance, a fused weight), or
not run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from crashsim.errors import SiteError
from crashsim.model.nested import leaves
from crashsim.model.sites.site import Site

_SHOWN = 5
_SHUFFLES = 8  # of what is read, to see whether the model then reads something else

# Calls the model with these parameters and buffers.
Call = Callable[[Mapping[str, Tensor]], object]

_OTHERS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.zeros_like,
    lambda value: value + 10 * (1 + value.abs()),
    torch.neg,
)


def check_read(
    sites: Sequence[Site], tensors: Mapping[str, Tensor], on_one: Call, on_all: Call
) -> str | None:
    """What to warn of faults in parameters that the output does not depend on, if there are any.

    Args:
        sites: where faults strike.
        tensors: parameters and buffers by name.
        on_one, on_all: run the model on the first of the inputs, and on all of them.

    Raises:
        SiteError: no fault at all can change the output.
    """
    struck = dict.fromkeys(site.module for site in sites if site.kind == "parameter")
    if not struck:
        return None
    unread = _unread(list(struck), tensors, on_one, on_all)
    if not unread:
        return None
    names = ", ".join(repr(name) for name in unread[:_SHOWN])
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    told = (
        f"no fault in {names}{more} can reach the output, as far as these inputs show: the model "
        "does not read it when it runs (it may compute with a copy)"
    )
    if len(unread) == len(struck) and all(site.kind == "parameter" for site in sites):
        raise SiteError(f"sites: {told}; choose parameters that it reads")
    return f"sites: {told}"


def _unread(
    names: Sequence[str], tensors: Mapping[str, Tensor], on_one: Call, on_all: Call
) -> list[str]:
    """The parameters among these that the output does not depend on."""
    smooth = _with_derivative(names, tensors, on_one)
    doubtful = [name for name in names if name not in smooth]
    if doubtful and _matter(doubtful, tensors, on_all):
        doubtful = [
            name
            for name in doubtful
            if not _matter([name], tensors, on_one) and not _matter([name], tensors, on_all)
        ]
    # Faults elsewhere may change what the model runs: an expert, a branch.
    others = [name for name in names if name not in doubtful]
    for by in range(1, _SHUFFLES + 1):
        if doubtful and others:
            other = {**tensors, **{name: _shuffled(tensors[name], by) for name in others}}
            doubtful = [name for name in doubtful if not _matter([name], other, on_all)]
    return doubtful


def _shuffled(value: Tensor, by: int) -> Tensor:
    """The same numbers in another order, larger, and every other time of the other sign."""
    factor = float((-1) ** by * (1 + by))
    return factor * value.flatten().roll(by).view(value.shape)


def _with_derivative(
    names: Sequence[str], tensors: Mapping[str, Tensor], call: Call
) -> Collection[str]:
    """Those from which a way leads to the output."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            leads = {name: tensors[name].detach().clone().requires_grad_() for name in names}
            found = [leaf for leaf in _numbers(call({**tensors, **leads})) if leaf.requires_grad]
            if not found:
                return ()
            total = torch.stack([leaf.double().sum() for leaf in found]).sum()
            gradients = torch.autograd.grad(total, list(leads.values()), allow_unused=True)
    except Exception:  # whatever has no derivative, or minds one
        return ()
    finally:
        with torch.no_grad():  # the model may keep what it computed last, which has no graph then
            call(tensors)
    return {name for name, g in zip(names, gradients, strict=True) if g is not None}


def _matter(names: Sequence[str], tensors: Mapping[str, Tensor], call: Call) -> bool:
    """Whether the output changes if all of these do."""
    with torch.no_grad():
        clean = _numbers(call(tensors))
        for other in _OTHERS:
            changed = {name: other(tensors[name]) for name in names}
            try:
                found = _numbers(call({**tensors, **changed}))
            except Exception:  # a value that makes the model fail is read
                return True
            same = (torch.allclose(a, b, 0, 0, True) for a, b in zip(clean, found, strict=False))
            if not all(same):
                return True
    return False


def _numbers(output: object) -> list[Tensor]:
    found = (leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))
    return [leaf for leaf in found if leaf.is_floating_point()]
