"""The one error and the one warning of the package."""

from __future__ import annotations

__all__ = ["HardwareError", "HardwareWarning"]


class HardwareError(ValueError):
    """An argument cannot be used; the message names it, shows its value and says what to do."""


class HardwareWarning(UserWarning):
    """A result is returned, but it claims less than its reader might think."""
