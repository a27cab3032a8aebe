"""Laws of one fault coordinate: moments, draws, quadrature, cumulant generating functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crashsim_theory.laws.known import BERNOULLI, NORMAL
from crashsim_theory.laws.law import Law, Moments

if TYPE_CHECKING:
    from crashsim_theory.laws.constructors import law_from_cgf, law_from_moments, law_of_atoms
    from crashsim_theory.laws.symbols import t

# What makes formulas loads sympy, and so only on first use.
_HOMES = {"symbols": ("t",), "constructors": ("law_from_cgf", "law_from_moments", "law_of_atoms")}

__all__ = [
    "BERNOULLI",
    "NORMAL",
    "Law",
    "Moments",
    "law_from_cgf",
    "law_from_moments",
    "law_of_atoms",
    "t",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
