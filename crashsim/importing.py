"""Imports that draw from Python's random numbers, without a trace in them."""

from __future__ import annotations

import importlib
import random
import sys
from types import ModuleType


def import_undrawn(name: str) -> ModuleType:
    """A module; the random numbers that it draws while it is first imported are put back."""
    if name in sys.modules:
        return sys.modules[name]
    state = random.getstate()
    try:
        return importlib.import_module(name)
    finally:
        random.setstate(state)
