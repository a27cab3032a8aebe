"""``Protected``: a model with protection schemes around it, which runs, and which faults strike."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from crashsim.arguments import instance, shown
from crashsim.errors import ArgumentError
from crashsim.faults import BernoulliFault, Fault, WordFault
from crashsim.faults.words import GuardedWords
from crashsim.model.checks import unwrapped
from crashsim.model.sites.site import Site
from crashsim.model.twins.protected_module import ProtectedModule
from crashsim.protection.schemes import Scheme


@dataclass(frozen=True)
class Residual:
    """What schemes leave of faults.

    Attributes:
        schemes: in the order in which they were given.
    """

    schemes: tuple[Scheme, ...]

    def __call__(self, fault: Fault, site: Site, shape: tuple[int, ...]) -> Fault:
        """What is left of a fault that is placed at a site.

        Raises:
            ArgumentError: a scheme is none against such faults, or two protect the same.
        """
        here = [scheme for scheme in self.schemes if scheme.applies(site)]
        for scheme in here:
            fault = scheme.rated(fault, site)
        if isinstance(fault, WordFault):
            guards = [g for s in here if (g := s.guard(fault, site, shape)) is not None]
            clips = site.kind == "parameter" and any(s.clips_words for s in here)
            if not guards and not clips:
                return fault
            _check_reachable(site, here[-1])
            return GuardedWords.of(fault, guards, shape, clips)
        if not isinstance(fault, BernoulliFault):
            return self._of_noise(fault, site, here)
        given = [s.guarded(fault, site, shape) for s in here]
        found = [left for left in given if left is not None]
        if len(found) > 1:
            raise ArgumentError(
                f"schemes: {site.name!r} is protected by {len(found)} schemes of copies; give "
                "schemes for different sites"
            )
        if not found:
            return fault
        if site.kind == "parameter":
            raise ArgumentError(
                f"schemes: {type(fault).__name__} at {site.name!r}: copies of weights are copies "
                "of stored words; give BitFlip, or BitStuck(upset='word') for dead ones"
            )
        _check_reachable(site, here[-1])
        return found[0]

    def _of_noise(self, fault: Fault, site: Site, here: list[Scheme]) -> Fault:
        names = [type(s).__name__ for s in here if type(s).guarded is not Scheme.guarded]
        if names:
            raise ArgumentError(
                f"schemes: {names[0]}: {type(fault).__name__} at {site.name!r}: noise is in every "
                "copy; give faults that strike or do not, or sites= of others"
            )
        return fault


def _check_reachable(site: Site, scheme: Scheme) -> None:
    if site.is_inside:
        raise ArgumentError(
            f"schemes: {type(scheme).__name__} at {site.name!r}: the outputs of a recurrent layer "
            "are struck one by one inside it, where no copy reaches; protect its weights, or give "
            "sites= of others"
        )


class Protected(ProtectedModule):
    """A model with protection schemes: a module that runs, and whose faults are the residual ones.

    What schemes add to the computation (clipping) is in ``hardened``, a copy of the model: the
    user's is never changed. What they do to faults (codes, copies, spares, scrubbing) is known to
    ``FaultSpace``, ``score``, ``sweep`` and ``monte_carlo``, which take it in place of the model:
    the raw faults of all stored bits, those that the schemes store among them, are drawn, decoded,
    and what is left displaces the values.

    Args:
        model: any module, in evaluation mode.
        schemes: one or several, for different sites or bits.
        data: clean examples, as the model is called, for schemes that learn from them.

    Raises:
        ArgumentError: no schemes, or one that lacks data.

    Example:
        >>> import torch, crashsim
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> chip = crashsim.Protected(net.eval(), [crashsim.SECDED()])
        >>> fault = crashsim.BitFlip(p=1e-3, format="int8")
        >>> crashsim.FaultSpace(chip, torch.ones(2, 4), fault, "weights").N  # 63 words, 9 blocks
        576
    """

    def __init__(
        self, model: nn.Module, schemes: Scheme | Iterable[Scheme], data: Any = None
    ) -> None:
        instance("model", model, nn.Module, "a torch module")
        listed = (schemes,) if isinstance(schemes, Scheme) else schemes
        try:
            given = tuple(listed)
        except TypeError:
            raise ArgumentError(f"schemes={shown(schemes)}; give a list of schemes") from None
        for scheme in given:
            instance("schemes", scheme, Scheme, "protection schemes, such as SECDED()")
        hardened = unwrapped(model)
        if any(type(scheme).harden is not Scheme.harden for scheme in given):
            hardened = deepcopy(hardened)
            for scheme in given:
                hardened = scheme.harden(hardened, data)
        super().__init__(hardened, Residual(given))
        self.training = hardened.training  # without touching the model's own modules

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """What protects it."""
        residual: Any = self.residual
        return tuple(residual.schemes)
