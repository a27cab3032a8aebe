"""Modules that have moved: an import by an old name finds them where they are now, with a warning.

Programs of users name modules; a module that moves within the house is no reason for them to fail.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "crashsim.data": "crashsim.files.data",
    "crashsim.hardening": "crashsim.training.hardening",
    "crashsim.nir": "crashsim.chip.nir",
    "crashsim.operations": "crashsim.injection.flops",
    "crashsim.spiking": "crashsim.chip.spiking",
    "crashsim.verification": "crashsim.training.verification",
}


class _Moved(MetaPathFinder, Loader):
    """Finds old names alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = import_module(MOVED[module.__name__])
        warnings.warn(
            f"{module.__name__} is {new.__name__}; import it from there",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = new  # which the import takes in the place of this one


def find_moved() -> None:
    """From now on, old names are found; they come last, so that they hide nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
