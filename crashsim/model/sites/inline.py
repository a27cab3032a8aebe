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
        steps: the axis of their inputs that is time, where each follows all that came before it.
        missed: pairs of layers between which something bends that cannot be struck.
    """

    struck: list[str] = field(default_factory=list)
    spiking: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
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
            verdict, steps = _tried(source, asked, inner, watched)
            if verdict == "unread":
                continue
            if verdict in ("acts", "spikes"):
                found.struck.append(key.module)
                if verdict == "spikes":
                    found.spiking.append(key.module)
                if steps is not None:
                    found.steps[key.module] = steps
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
) -> tuple[str, int | None]:
    """What happens between what a layer returns and what another one reads.

    Returns:
        ``unread``: nothing of it arrives; ``known``: a known activation is between; ``affine``;
        ``mixes``: numbers do not follow one by one; ``acts``: they do, along a curve; ``spikes``:
        they do, as whole multiples of one step. And the axis along which each follows all that
        came before it (time), where it is so.
    """
    asked = [source, *known, *([target] if target else [])]
    clean = watched({}, asked)
    if source not in clean or target is None or target not in clean:
        return "unread", None
    between = _Between(source, target, known, watched, clean)
    verdict = between.under(_half(source.shape))
    if verdict != "mixes" or source.shape != target.shape:
        return verdict, None
    for axis in range(len(source.shape)):
        if source.shape[axis] > 1 and between.follows_in_order(axis):
            units = [1 if k == axis else n for k, n in enumerate(source.shape)]
            verdict = between.under(_half(units).expand(source.shape))
            if verdict in ("acts", "spikes"):
                return verdict, axis
    return "mixes", None


def _half(shape: Sequence[int]) -> Tensor:
    """A random half of the numbers, and the first of them."""
    struck = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.5
    struck.view(-1)[0] = True
    return struck


@dataclass
class _Between:
    """What a layer returns, and what another one reads.

    Attributes:
        source, target: them.
        known: sites of known activations that may lie between.
        watched: see ``between_layers``.
        clean: their values.
    """

    source: Site
    target: Site
    known: Sequence[Site]
    watched: Callable[[Mapping[Site, Action], Sequence[Site]], Mapping[Site, Tensor]]
    clean: Mapping[Site, Tensor]

    def _values(self, changed: Tensor) -> Mapping[Site, Tensor]:
        asked = [self.source, *self.known, self.target]
        return self.watched({self.source: _other(changed)}, asked)

    def under(self, struck: Tensor) -> str:
        """What becomes of changes of some numbers of an example, as ``_tried`` says it."""
        x = self.clean[self.source]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator).to(x).abs()
        mine = struck.reshape(x.shape).to(x.device)
        size = float(x.abs().max()) or 1.0
        curved = arrives = by_itself = False
        seen = []
        for drive in _DRIVES:
            for sign in (1, -1):
                step = sign * drive * size * mine * (1 + noise)
                one, two = (self._values(x + n * step) for n in (1, 2))
                if any(not _equal(self.clean.get(s), one.get(s)) for s in self.known):
                    return "known"
                if self.target not in one or self.target not in two:
                    return "unread"
                y, y1, y2 = (_flat(v[self.target], self.target) for v in (self.clean, one, two))
                arrives |= not torch.equal(y, y1)
                kept = ~_flat(mine.expand(x.shape), self.source)
                if y.shape != kept.shape or not torch.equal(y[kept], y1[kept]):
                    by_itself = True
                    continue
                largest = max(float(v.abs().max()) for v in (y, y1, y2, x, step))
                bend = float((y2 - 2 * y1 + y).abs().max())
                curved |= bend > _BEND * rounding_slack(x.dtype) * largest
                seen += [y, y1, y2]
        if not arrives:
            return "unread"
        if by_itself:
            return "mixes"
        if not curved:
            return "affine"
        return "spikes" if are_multiples(torch.cat([v.flatten() for v in seen])) else "acts"

    def follows_in_order(self, axis: int) -> bool:
        """Whether changes at a position of an axis reach that one and later ones alone."""
        x, length = self.clean[self.source], self.source.shape[axis]
        size = float(x.abs().max()) or 1.0
        reached = set()
        for position in range(1, length):
            for drive in _DRIVES:
                changed = x.clone()
                part = changed.select(self.source.value_axis(axis), position)
                part.add_(drive * size)
                y1 = self._values(changed).get(self.target)
                if y1 is None:
                    return False
                along = self.target.value_axis(axis)
                differs = (y1 != self.clean[self.target]).movedim(along, 0).flatten(1).any(1)
                moved = set(differs.nonzero().flatten().tolist())
                if any(m < position for m in moved):
                    return False
                reached |= {m - position for m in moved}
        return bool(reached - {0})


def _other(value: Tensor) -> Action:
    return lambda _: value


def _flat(value: Tensor, site: Site) -> Tensor:
    """(1, n) the numbers of an example."""
    return value.movedim(site.axis, 0).flatten(1)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)
