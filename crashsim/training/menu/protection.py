"""Protection schemes as ways to harden: codes, copies of parts, clipping to clean ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crashsim.arguments import instance
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError
from crashsim.faults import WordFault
from crashsim.model.inputs import Inputs
from crashsim.protection.protected import Protected
from crashsim.protection.schemes import TMR, ClipActivations, Cost, Duplication, Part, Scheme
from crashsim.protection.schemes.clipping import Clip
from crashsim.space import FaultSpace
from crashsim.training.menu.ways import FaultsBySite, Way


class Protection(Way):
    """The trained network behind protection schemes, as ``crashsim.Protected`` runs it.

        Protection(SECDED())
        Protection(ClipActivations(per="channel"), ClipWeights())

    Args:
        schemes: one or several, for different sites or bits.
    """

    def __init__(self, *schemes: Scheme) -> None:
        if not schemes:
            raise ArgumentError("schemes: none given; give protection schemes, such as SECDED()")
        for scheme in schemes:
            instance("schemes", scheme, Scheme, "protection schemes, such as SECDED()")
        self.schemes = schemes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protection) and self.schemes == other.schemes

    def __hash__(self) -> int:
        return hash((Protection, self.schemes))

    def __repr__(self) -> str:
        return f"Protection({', '.join(map(repr, self.schemes))})"

    @property
    def name(self) -> str:
        return " + ".join(_told(scheme) for scheme in self.schemes)

    def prepared(self, model: nn.Module, clean: Any) -> nn.Module:
        if isinstance(model, Protected):
            raise ArgumentError(f"menu: {self.name} of a protected network; give schemes together")
        return Protected(model, self.schemes, data=clean)

    def struck(self, faults: FaultsBySite, prepared: nn.Module) -> FaultsBySite:
        """A value is struck before it is clipped: by the name of the module within the clip."""
        clipped = {
            path.rpartition(".")[0]
            for path, module in getattr(prepared, "hardened", prepared).named_modules()
            if isinstance(module, Clip)
        }
        found = {}
        for site, fault in faults.items():
            path, hash_, call = site.partition("#")
            if path in clipped:
                site = f"{path}.0{hash_}{call}"
            elif site not in ("hidden", "weights", "input"):
                for each in clipped:
                    if any(fnmatchcase(f"{each}{end}", site) for end in ("", ".0", ".1")):
                        raise ArgumentError(
                            f"sites={site!r}: the clipped activation {each!r} is a module of two, "
                            "which a pattern cannot tell apart; name the sites one by one"
                        )
            found[site] = fault
        return found

    def cost(
        self, before: Callable[[], FaultSpace], prepared: nn.Module, few: Inputs
    ) -> Cost | None:
        total = _clipping(self.schemes, prepared, few)
        others = [scheme for scheme in self.schemes if not isinstance(scheme, ClipActivations)]
        for placement in before().placements if others else ():
            for scheme in others:
                if scheme.applies(placement.site):
                    if _needs_macs(scheme, placement):
                        return None
                    total += scheme.cost(_part(scheme, placement))
        return total


def _told(scheme: Scheme) -> str:
    """The scheme's name, with what is not as by default."""
    own = [f for f in fields(scheme) if f.name != "only" and getattr(scheme, f.name) != f.default]
    more = ", ".join(f"{f.name} {getattr(scheme, f.name)}" for f in own)
    return f"{scheme.name} ({more})" if more else scheme.name


def _needs_macs(scheme: Scheme, placement: Placement) -> bool:
    """Whether copies of neurons are computed, for which their layer's share is to be known."""
    return isinstance(scheme, TMR | Duplication) and not isinstance(placement.fault, WordFault)


def _part(scheme: Scheme, placement: Placement) -> Part:
    """What a scheme protects at a site."""
    fault, shape = placement.fault, placement.shape
    if not isinstance(fault, WordFault):
        return Part(units=int(np.prod(shape, dtype=int)))
    words = int(np.prod(shape, dtype=int))
    bits = len(scheme.members(fault, placement.site, shape))
    return Part(bits=bits, words=words)


def _clipping(schemes: tuple[Scheme, ...], prepared: nn.Module, few: Inputs) -> Cost:
    """What clipped activations cost: ranges, and values that pass the clips of an example."""
    scheme = next((s for s in schemes if isinstance(s, ClipActivations)), None)
    if scheme is None:
        return Cost()
    clips = [m for m in prepared.modules() if isinstance(m, Clip)]
    values = 0

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal values
        values += output.numel()

    handles = [clip.register_forward_hook(count) for clip in clips]
    try:
        with torch.no_grad():
            few.call(prepared)
    finally:
        for handle in handles:
            handle.remove()
    groups = sum(clip.low.numel() for clip in clips)
    counted = 64 * groups  # their bounds are buffers, which are counted with the tensors
    cost = scheme.cost(Part(units=values // len(few), groups=groups))
    return Cost(cost.bits - counted, cost.macs, cost.latency)
