"""Imports without a trace in Python's random numbers, and of what may not be installed."""

from __future__ import annotations

import importlib
import random
import sys
from importlib.util import find_spec
from types import ModuleType

from crashsim.errors import MissingExtraError

# What a slim installation leaves out: the package of each module.
_PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "pandas": "crashsim[pandas]"}


def import_undrawn(name: str) -> ModuleType:
    """A module; the random numbers that it draws while it is first imported are put back."""
    if name in sys.modules:
        return sys.modules[name]
    state = random.getstate()
    try:
        return importlib.import_module(name)
    finally:
        random.setstate(state)


def needed(name: str, what: str) -> ModuleType:
    """A module that a slim installation leaves out.

    Args:
        name: of the module, such as ``matplotlib.figure``.
        what: needs it, for the message.

    Raises:
        MissingExtraError: it is not installed; names the command that installs it.
    """
    check_there(name, what)
    return import_undrawn(name)


def check_there(name: str, what: str) -> None:
    """Raises MissingExtraError where a module is not installed, without importing it."""
    top = name.partition(".")[0]
    if top not in sys.modules and find_spec(top) is None:
        package = _PACKAGES.get(top, top)
        raise MissingExtraError(f'{what} needs {top}: pip install "{package}"')
