"""Runs a model with the values of its sites changed, to see what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from crashsim.model.inputs import Inputs
from crashsim.model.nested import leaves
from crashsim.model.sites.names import (
    SiteKey,
)
from crashsim.model.sites.site import Action, Site, perturbing

SiteValues = dict[SiteKey, Tensor]


LOOKED_AT = 16  # examples, to see whether all of them run through a layer


# What values are replaced by to see whether anything depends on them.
OTHERS: tuple[Action, ...] = (
    torch.zeros_like,
    torch.neg,
    lambda value: value + 10 * (1 + value.abs()),
)


def with_values(
    model: nn.Module, example: Inputs, call: Callable[..., Any], actions: Mapping[Site, Action]
) -> Any:
    """The output, with each site's value passed through its action."""
    x = example.clone()
    for index, name in enumerate(example.site_names):
        for site, action in actions.items():
            if site.kind == "input" and site.module == name:
                x = x.with_tensor(index, cast(Tensor, action(x.tensors[index])))
    inner = {site: action for site, action in actions.items() if site.kind != "input"}
    with perturbing(model, inner):
        return x.call(call)


def watched_values(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    actions: Mapping[Site, Action],
    watched: Sequence[Site],
) -> dict[Site, Tensor]:
    """The values of some sites, where those of others are passed through actions."""
    seen: dict[Site, Tensor] = {}

    def look(site: Site) -> Action:
        def keep(value: Tensor) -> Tensor:
            changed = actions[site](value) if site in actions else None
            seen[site] = (value if changed is None else changed).clone()
            return value if changed is None else changed

        return keep

    with torch.no_grad():
        with_values(model, example, call, {s: look(s) for s in {*watched, *actions}})
    return seen


def real_leaves(output: Any) -> list[Tensor]:
    found = (leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))
    return [leaf for leaf in found if leaf.is_floating_point()]


def is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def batch_axis(one: Tensor, two: Tensor) -> int | None:
    """The axis along which a value for two examples is twice as long as for one."""
    if one.dim() != two.dim():
        return None
    grown = [axis for axis in range(one.dim()) if one.shape[axis] != two.shape[axis]]
    if len(grown) != 1 or (one.shape[grown[0]], two.shape[grown[0]]) != (1, 2):
        return None
    return grown[0] if grown[0] == 0 or (grown[0] == 1 and two.dim() >= 3) else None


def is_same_memory(value: Tensor, output: Any) -> bool:
    return (
        isinstance(output, Tensor)
        and value.data_ptr() == output.data_ptr()
        and value.numel() == output.numel()
    )
