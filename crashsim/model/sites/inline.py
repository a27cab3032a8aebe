"""Finds activations that a model computes in its own forward pass, in no module and no function
that is known: ``torch.clamp(self.fc1(x), 0, 1)``, ``x + sin(x)**2``, spikes by a comparison.

They are looked for between one layer with weights and the next, where functions that bend their
argument are called outside the modules that are known. Half of the numbers that the first layer
returns are changed: where those that reach the next layer follow one by one, and not along a line,
they are the outputs of neurons, and the input of that layer is where these are struck.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crashsim.model.checks import rounding_slack
from crashsim.model.sites.names import INPUT, SiteKey, function_name
from crashsim.model.sites.neurons import are_multiples
from crashsim.model.sites.site import Action, Site

# What is no affine function of its arguments; activation functions that are known are sites.
_BENDING = frozenset(
    "clamp clip clamp_min clamp_max sign sgn where masked_fill gt lt ge le eq ne greater less "
    "greater_equal less_equal heaviside sin cos tan asin acos atan sinh cosh sinc exp exp2 expm1 "
    "log log2 log10 log1p abs absolute pow rpow square sqrt rsqrt reciprocal rtruediv rdiv maximum "
    "minimum max min fmax fmin round floor ceil trunc fix erf erfc erfinv fake_quantize_per_"
    "tensor_affine fake_quantize_per_channel_affine logaddexp hypot xlogy float_power".split()
)
_DRIVES = (1.0, 10.0, 100.0)  # times the size of what a layer returns
_BEND = 16  # times rounding, that a second difference must exceed
_CALLS = 3  # of a layer that are tried: a recurrent one's first input may be a constant


def bends(function: object) -> bool:
    """Whether a torch function is none that is affine in its arguments."""
    return function_name(function).strip("_") in _BENDING


@dataclass
class Found:
    """What was found between layers.

    Attributes:
        struck: modules whose inputs are the outputs of neurons.
        spiking: those of them whose inputs are spikes.
        missed: pairs of layers between which something bends that cannot be struck.
    """

    struck: list[str] = field(default_factory=list)
    spiking: list[str] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)


def between_layers(
    events: Sequence[SiteKey | None],
    sites: Mapping[SiteKey, Site],
    inputs: Mapping[SiteKey, Site],
    watched: Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]],
) -> Found:
    """The layers whose inputs are neurons' outputs that no module computes.

    Args:
        events: of a forward pass, in order: the sites' keys as their values are computed, None
            where a function that bends is called outside of known modules.
        sites: all, by key.
        inputs: the inputs of layers with weights, by their keys.
        watched: runs an example with the values of some sites passed through actions, and returns
            those of others, as actions see them.
    """
    found = Found()
    tried: dict[str, int] = {}
    layers = {key for key, site in sites.items() if site.is_affine}
    for number, key in enumerate(events):
        if key not in layers or key is None or key.module in found.struck:
            continue
        asked = inputs.get(SiteKey(key.module, INPUT, key.call))
        before = _since(events, number, layers)
        if not before or tried.get(key.module, 0) >= _CALLS:
            continue
        tried[key.module] = tried.get(key.module, 0) + 1
        known = [s for k, s in sites.items() if s.kind == "activation" and k in events]
        for start in before:
            source = sites[_key(events[start])]
            inner = [s for s in known if s.key in events[start + 1 : number]]
            verdict = _tried(source, asked, inner, watched)
            if verdict == "unread":
                continue
            if verdict in ("acts", "spikes"):
                found.struck.append(key.module)
                if verdict == "spikes":
                    found.spiking.append(key.module)
            elif verdict == "mixes":
                found.missed.append((source.name, key.module))
            break
    missed = {pair: None for pair in found.missed if pair[1] not in found.struck}
    found.missed = list(missed)
    return found


def _key(event: SiteKey | None) -> SiteKey:
    assert event is not None
    return event


def _since(events: Sequence[SiteKey | None], number: int, layers: Collection[SiteKey]) -> list[int]:
    """The layers before one, nearest first, behind which something bends before it."""
    last = next((i for i in range(number - 1, -1, -1) if events[i] is None), -1)
    return [i for i in range(number - 1, -1, -1) if events[i] in layers and i < last][:4]


def _tried(
    source: Site,
    target: Site | None,
    known: Sequence[Site],
    watched: Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]],
) -> str:
    """What happens between what a layer returns and what another one reads.

    Returns:
        ``unread``: nothing of it arrives; ``known``: a known activation is between; ``affine``;
        ``mixes``: numbers do not follow one by one; ``acts``: they do, along a curve; ``spikes``:
        they do, as whole multiples of one step.
    """
    asked = [source, *known, *([target] if target else [])]
    clean = watched({}, asked)
    if source not in clean or (target is not None and target not in clean):
        return "unread"
    x = clean[source]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x).abs()
    struck = (torch.rand(x.shape, generator=generator) < 0.5).to(x.device)
    struck.view(-1)[0] = True
    size = float(x.abs().max()) or 1.0
    curved = arrives = by_itself = False
    seen = []
    for drive in _DRIVES:
        for sign in (1, -1):
            step = sign * drive * size * struck * (1 + noise)
            one, two = (watched({source: _other(x + n * step)}, asked) for n in (1, 2))
            if any(not _equal(clean.get(s), one.get(s)) for s in known):
                return "known"
            if target is None:
                continue
            y, y1, y2 = (_rows(v.get(target), target) for v in (clean, one, two))
            if y is None or y1 is None or y2 is None:
                return "unread"
            arrives |= not torch.equal(y, y1)
            kept = ~_flat(struck, source)
            if y.shape != kept.shape or not torch.equal(y[kept], y1[kept]):
                by_itself = True
                continue
            largest = max(float(v.abs().max()) for v in (y, y1, y2, x, step))
            bend = float((y2 - 2 * y1 + y).abs().max())
            curved |= bend > _BEND * rounding_slack(x.dtype) * largest
            seen += [y, y1, y2]
    if target is None:
        return "unread"
    if not arrives:
        return "unread"
    if by_itself:
        return "mixes"
    if not curved:
        return "affine"
    return "spikes" if are_multiples(torch.cat([v.flatten() for v in seen])) else "acts"


def _other(value: Tensor) -> Action:
    return lambda _: value


def _flat(value: Tensor, site: Site) -> Tensor:
    """(1, n) the numbers of an example."""
    return value.movedim(site.axis, 0).flatten(1)


def _rows(value: Tensor | None, site: Site) -> Tensor | None:
    return None if value is None else _flat(value, site)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)
