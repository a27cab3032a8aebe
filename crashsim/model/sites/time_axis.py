"""Finds the axis of a model's values that is time, where that is certain, and takes it if told.

What runs through many steps in one call (a recurrent layer of torch, a spiking layer) shows which
axis of its own values is time. Another value beside it has the same axis where a change in one of
its positions changes one step of the layer's input, and the same one; or where a change in one step
of what the layer returns changes that position alone. Without such a layer nobody can know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from crashsim.arguments import is_whole, shown
from crashsim.errors import ArgumentError
from crashsim.model.inputs import Inputs
from crashsim.model.sites.site import Action, Site

# The axis of the struck values that is time; or of those at some sites, by name or glob.
StepsAxis = int | Mapping[str, int]
# Runs an example, with the values of some sites passed through actions; and sees others' values.
Watched = Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]]


def marked_steps(
    model: nn.Module, sites: Sequence[Site], run: Callable[..., Any], watched: Watched
) -> list[Site]:
    """The sites, with the axis that is time where a layer of many steps shows it.

    Args:
        model: a twin.
        sites: in order of execution; those of layers with many steps have their axis.
        run: runs an example with the values of some sites passed through actions.
        watched: runs it and returns the values of others, as actions see them.
    """
    layers = [s for s in sites if s.steps is not None and s.call == 0 and s.shape[s.steps] > 1]
    found: dict[Site, int] = {}
    for layer in layers:
        assert layer.steps is not None
        length = layer.shape[layer.steps]
        asked = [
            s
            for s in sites
            if s not in found and s.steps is None and len(s.shape) >= 2 and length in s.shape
        ]
        asked = [s for s in asked if s.kind == "input" or s.function not in ("h_n", "c_n")]
        if asked:
            found |= _behind(layer, asked, watched)
            before = [s for s in asked if s not in found]
            found |= _before(model, layer, before, run)
    return [replace(s, steps=found[s]) if s in found else s for s in sites]


def _positions(length: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((length // 2, length - 1, 0)))


def changed_at(site: Site, axis: int, position: int, sign: float) -> Action:
    """Changes a site's value at one position of an axis of its shape."""

    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        part = changed.select(site.value_axis(axis), position)
        part.add_(sign * 10 * (1 + part.abs()))
        return changed

    return change


def _behind(layer: Site, asked: Sequence[Site], watched: Watched) -> dict[Site, int]:
    """The axes of values that depend on a layer's output, step by step."""
    assert layer.steps is not None
    length = layer.shape[layer.steps]
    clean = watched({}, asked)
    left: dict[Site, set[int]] = {
        s: {k for k, size in enumerate(s.shape) if size == length} for s in asked
    }
    for at in _positions(length):
        seen = [
            watched({layer: changed_at(layer, layer.steps, at, sign)}, asked) for sign in (1, -1)
        ]
        for site, axes in left.items():
            for axis in tuple(axes):
                along = site.value_axis(axis)
                moved = [changed_positions(clean.get(site), v.get(site), along) for v in seen]
                if set[int]().union(*moved) != {at}:
                    axes.discard(axis)
    return {site: min(axes) for site, axes in left.items() if len(axes) == 1}


def _before(
    model: nn.Module, layer: Site, asked: Sequence[Site], run: Callable[..., Any]
) -> dict[Site, int]:
    """The axes of values on which a layer's input depends, step by step."""
    assert layer.steps is not None
    length = layer.shape[layer.steps]
    along = layer.value_axis(layer.steps)

    def fed(actions: Mapping[Site, Action]) -> Tensor | None:
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.append(args[0].clone())

        with ExitStack() as stack:
            module = model.get_submodule(layer.module)
            stack.callback(module.register_forward_pre_hook(keep).remove)
            run(actions)
        return seen[0] if seen else None

    clean = fed({})

    def shows(site: Site, axis: int, at: int) -> bool:
        changed = [fed({site: changed_at(site, axis, at, sign)}) for sign in (1, -1)]
        return set[int]().union(*(changed_positions(clean, c, along) for c in changed)) == {at}

    found = {}
    for site in asked:
        same_length = [k for k, size in enumerate(site.shape) if size == length]
        axes = [k for k in same_length if all(shows(site, k, at) for at in _positions(length))]
        if len(axes) == 1:
            found[site] = axes[0]
    return found


def changed_positions(clean: Tensor | None, changed: Tensor | None, axis: int) -> set[int]:
    """The positions of an axis at which two values differ; -1 where they cannot be compared."""
    if clean is None or changed is None or clean.shape != changed.shape or axis >= clean.dim():
        return {-1}
    differs = (clean != changed).movedim(axis, 0).flatten(1).any(1)
    return set(differs.nonzero().flatten().tolist())


def with_steps_axis(sites: Sequence[Site], given: StepsAxis, examples: Inputs) -> list[Site]:
    """The sites with the axis that is time as it was told.

    Args:
        sites: all of them.
        given: the axis of the values, counted as the model holds them, with the batch. It counts
            for values of three axes and more that have as many steps there as the inputs; of
            layers that show it themselves nothing is to be said. Or the axis for some sites, by
            name or glob.
        examples: the inputs.

    Raises:
        ArgumentError: no value has such an axis, it is the batch, or it is not clear.
    """
    if isinstance(given, Mapping):
        return _by_name(sites, given)
    axis = _checked(given)
    layouts = [t.movedim(0, a) for t, a in zip(examples.tensors, examples.axes, strict=True)]
    lengths = {t.shape[axis] for t in layouts if t.dim() > max(axis, 2)}
    told: dict[Site, int] = {}
    for site in sites:
        if site.kind == "parameter" or site.steps is not None or len(site.shape) < 2:
            continue
        # Where that axis is the batch, as in (T, B, ...) inside a model of (B, T, ...).
        other = 1 - axis if axis == site.axis and axis < 2 else axis
        index = site.shape_axis(other)
        if index is None or (lengths and site.shape[index] not in lengths):
            continue
        told[site] = index
    steps = {site.shape[index] for site, index in told.items()}
    if not told and not any(s.steps is not None for s in sites):
        raise ArgumentError(
            f"steps_axis={axis}: no value of the model has time there; give the axis of values "
            "such as (B, T, ...), counted from 0, or a mapping from sites to their axes"
        )
    if len(steps) > 1 and not lengths:
        some = ", ".join(f"{s.name!r} {s.shape}" for s in list(told)[:4])
        raise ArgumentError(
            f"steps_axis={axis}: values have {sorted(steps)} positions there ({some}), so it is "
            "not clear which of them are steps; give a mapping from sites to their axes"
        )
    return [replace(s, steps=told[s]) if s in told else s for s in sites]


def _by_name(sites: Sequence[Site], given: Mapping[str, int]) -> list[Site]:
    told: dict[Site, int] = {}
    for pattern, value in given.items():
        axis = _checked(value)
        matching = [
            s
            for s in sites
            if s.kind != "parameter" and (s.first_name == pattern or fnmatchcase(s.name, pattern))
        ]
        if not matching:
            raise ArgumentError(
                f"steps_axis: {pattern!r} matches no value of the model; name sites that are struck"
            )
        for site in matching:
            index = site.shape_axis(axis)
            if index is None or site.is_recurrent:
                why = f"that axis is the batch (axis {site.axis}), or is not in {site.shape}"
                if site.is_recurrent:
                    why = "a recurrent layer shows its steps itself"
                raise ArgumentError(
                    f"steps_axis={{{pattern!r}: {axis}}}: of {site.name!r}, {why}; give another "
                    "axis, or leave it out"
                )
            told[site] = index
    return [replace(s, steps=told[s]) if s in told else s for s in sites]


def _checked(axis: object) -> int:
    if not is_whole(axis) or not 0 <= int(axis) < 64:  # type: ignore[call-overload]
        raise ArgumentError(
            f"steps_axis={shown(axis)}: give the number of an axis, from 0, counted with the batch;"
            " or a mapping from sites to their axes"
        )
    return int(axis)  # type: ignore[call-overload, no-any-return]
