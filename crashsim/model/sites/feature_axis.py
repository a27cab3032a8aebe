"""Finds the axis of a value that counts features: what one output of the layer before it makes.

In (T, F) values behind a linear layer it is the last axis, behind a convolution the channels, and
elsewhere whatever the model has made of them since. So one output of each layer is changed, to see
in which values one position of an axis changes with it, and the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from crashsim.model.sites.site import Action, Site
from crashsim.model.sites.time_axis import changed_at, changed_positions


def marked_features(
    model: nn.Module,
    sites: Sequence[Site],
    watched: Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]],
) -> list[Site]:
    """The sites with the axis of features, where it is found.

    Args:
        model: a twin.
        sites: all of them.
        watched: runs an example with the values of some sites passed through actions, and returns
            those of others.
    """
    found = {s: len(s.shape) - 1 for s in sites if s.is_recurrent or len(s.shape) == 1}
    layers = [s for s in sites if s.is_affine and s.shape]
    for layer in layers:
        module = model.get_submodule(layer.module)
        own = len(layer.shape) - 1
        if isinstance(module, nn.modules.conv._ConvNd):  # its channels come before the positions
            own -= module.weight.dim() - 2
        found[layer] = own
        asked = [s for s in sites if s not in found and s.kind in ("activation", "module")]
        if asked and own >= 0:
            found |= _same_features(layer, own, asked, watched)
    return [replace(s, features=found.get(s)) for s in sites]


def _same_features(
    layer: Site,
    own: int,
    asked: Sequence[Site],
    watched: Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]],
) -> dict[Site, int]:
    size = layer.shape[own]
    clean = watched({}, asked)
    left = {s: {k for k, n in enumerate(s.shape) if n == size} for s in asked}
    for at in dict.fromkeys((size // 2, 0)):
        seen = [watched({layer: changed_at(layer, own, at, sign)}, asked) for sign in (1, -1)]
        for site, axes in left.items():
            for axis in tuple(axes):
                where = [
                    changed_positions(clean.get(site), v.get(site), site.value_axis(axis))
                    for v in seen
                ]
                if set[int]().union(*where) != {at}:
                    axes.discard(axis)
    return {site: min(axes) for site, axes in left.items() if len(axes) == 1}
