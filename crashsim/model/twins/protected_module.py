"""A module whose hardware is protected: what runs, and what is left of faults that strike it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class ResidualLaw(Protocol):
    """What protection makes of a fault."""

    def __call__(self, fault: Any, site: Any, shape: tuple[int, ...]) -> Any:
        """The fault that is left of one that is placed at a site, of this shape of a step.

        Raises:
            ArgumentError: the protection is none against such faults.
        """


class Limiter(nn.Module):
    """A module that keeps values within limits: protection, no neurons, whatever it changes."""


class ProtectedModule(nn.Module):
    """A model with protection around it, of which faults know.

    Args:
        hardened: the model as it runs, protected by what changes its computation.
        residual: what is left of each fault.
    """

    def __init__(self, hardened: nn.Module, residual: ResidualLaw) -> None:
        super().__init__()
        self.hardened, self.residual = hardened, residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.hardened(*args, **kwargs)


def residual_of(model: nn.Module) -> ResidualLaw | None:
    """What is left of faults of a model; None where nothing protects it."""
    return model.residual if isinstance(model, ProtectedModule) else None
