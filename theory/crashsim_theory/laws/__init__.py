"""Laws of one fault coordinate: moments, draws, quadrature, cumulant generating functions."""

from crashsim_theory.laws.constructors import law_from_cgf, law_from_moments, law_of_atoms
from crashsim_theory.laws.known import BERNOULLI, NORMAL
from crashsim_theory.laws.law import Law, Moments, t

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
