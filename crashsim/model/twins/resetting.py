"""Resets the state that spiking layers keep from call to call, as their libraries do.

A layer is known by what it offers, so that no library is imported: ``reset_mem`` (snntorch),
``reset_states`` (sinabs), or ``reset`` beside a table of what it keeps (spikingjelly). Norse keeps
nothing. Of a layer of one's own nobody can know how it is reset: its user says it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from crashsim.errors import ArgumentError
from crashsim.model.twins.twin import apart, twin_of

# How a library's layers are reset: the method, and what a layer has beside it.
_OFFERED = (("reset_mem", "mem"), ("reset_states", "is_state_initialised"), ("reset", "_memories"))

Reset = Callable[[nn.Module], object]


def reset_twin(model: nn.Module, reset: Reset | None) -> tuple[nn.Module, tuple[str, ...]]:
    """A twin of a model whose state is reset, and what was reset, in words for each.

    Args:
        model: the user's, which stays as it is.
        reset: resets the state of the module that it is given; None: as the layers' libraries do.

    Raises:
        ArgumentError: ``reset`` fails, or writes to parameters.
    """
    if reset is not None:
        if not callable(reset):
            raise ArgumentError(
                f"reset={reset!r}: give a function of the model that resets its state"
            )
        _reset_by(reset, apart(model), is_trial=True)
        twin = twin_of(model)
        _reset_by(reset, twin, is_trial=False)
        return twin, ("by the function that was given as reset",)
    twin = twin_of(model)
    found: dict[str, list[str]] = {}
    with torch.no_grad():
        for path, module in twin.named_modules():
            method = next((name for name, mark in _OFFERED if _offers(module, name, mark)), None)
            if method is not None:
                getattr(module, method)()
                found.setdefault(method, []).append(path or "the model")
    return twin, tuple(f"by {method}() of {_listed(paths)}" for method, paths in found.items())


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more


def _offers(module: nn.Module, method: str, mark: str) -> bool:
    """Whether a module has the method, to be called without arguments, and the mark beside it."""
    function: Any = getattr(module, method, None)
    if not callable(function) or not hasattr(module, mark):
        return False
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _reset_by(reset: Reset, twin: nn.Module, is_trial: bool) -> None:
    versions = {name: p._version for name, p in twin.named_parameters()}
    try:
        reset(twin)
    except Exception as error:
        raise ArgumentError(
            f"reset: raised {type(error).__name__}: {error}; give a function that takes the model "
            "and resets its state"
        ) from error
    if not is_trial:
        return
    for name, parameter in twin.named_parameters():
        if parameter._version != versions.get(name):
            raise ArgumentError(
                f"reset: writes to the parameter {name!r}, which is the user's; reset what the "
                "model keeps between calls alone"
            )


def states_of(twin: nn.Module) -> list[str]:
    """Paths of the modules that hold tensors in attributes which are no parameters or buffers.

    And of those that the libraries' ways to reset are known for.
    """
    found = []
    for path, module in twin.named_modules():
        holds = any(isinstance(value, torch.Tensor) for value in vars(module).values())
        if holds or any(_offers(module, method, mark) for method, mark in _OFFERED):
            found.append(path or "the model")
    return found
