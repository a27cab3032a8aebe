"""Symbolic theory of random faults in neural networks.

A site a_i under fault becomes a_i + e_i v_i with an independent random fault coordinate e_i. This
package derives the mean and variance of the output's displacement Delta(e) = F(e) - F(0) for any
law of e_i, and bounds its tails. It needs sympy, numpy and scipy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crashsim_theory.errors import TheoryError
from crashsim_theory.groups import group_hessian, group_sum
from crashsim_theory.laws import BERNOULLI, NORMAL, Law, Moments
from crashsim_theory.mixture import CommonRate
from crashsim_theory.replicas import (
    PUBLISHED_LIMIT,
    median_failure,
    published_replicas,
    replicas_needed,
)
from crashsim_theory.sums.any_of_several import Contributions, chance_of_all, chance_of_any
from crashsim_theory.sums.law import SurrogateLaw, law_over_rates
from crashsim_theory.tails.chebyshev import chebyshev, union
from crashsim_theory.tails.coordinates import Bernoulli, Coordinates, Normal, OfLaw, block_of
from crashsim_theory.tails.exact import linear_exact
from crashsim_theory.tails.gain_chunks import (
    GainChunk,
    chunk_of,
    mean_of_chunks,
    variance_of_chunks,
)
from crashsim_theory.tails.sampling import ExceedanceSampler, exceedance_sampler
from crashsim_theory.tails.surrogate import LinearSurrogate
from crashsim_theory.tails.tilting import TiltedCoordinates

if TYPE_CHECKING:
    from crashsim_theory.activations import Activation, activation, leaky_relu
    from crashsim_theory.continuous import (
        ContinuousLimit,
        balance,
        continuous_limit,
        decay_exponents,
        roughness,
        smoothing_residual,
    )
    from crashsim_theory.derivation import Derivation, derive
    from crashsim_theory.laws.constructors import law_from_cgf, law_from_moments, law_of_atoms
    from crashsim_theory.layers import (
        AvgPool2d,
        ChannelScale,
        Conv2d,
        Flatten,
        Linear,
        MaxPool2d,
        Residual,
    )
    from crashsim_theory.networks import CrashFaults, Network, neuron_crashes
    from crashsim_theory.proofs.certificates import (
        Certificate,
        Envelope,
        certify,
        certify_class,
        certify_linear,
    )
    from crashsim_theory.proofs.contractions import Contraction
    from crashsim_theory.proofs.enclosures import enclosure
    from crashsim_theory.proofs.remainders import (
        MomentBounds,
        Remainder,
        doubling_ratio,
        moment_bounds,
        remainder,
        symbolic_remainder,
    )
    from crashsim_theory.questions import (
        VarianceShare,
        Width,
        eps_chebyshev,
        largest_p,
        largest_p_chebyshev,
        largest_p_expression,
        largest_p_of_gains,
        variance_shares,
        width_needed,
    )
    from crashsim_theory.single import SingleAtMean, SingleAtZero, derive_single
    from crashsim_theory.tails.theorem import TheoremTail, theorem_tail

# What derives formulas or proves bounds loads on first use, and with it sympy, scipy.optimize or
# scipy.ndimage, whose imports take longer than many a run.
_HOMES = {
    "activations": ("Activation", "activation", "leaky_relu"),
    "continuous": (
        "ContinuousLimit",
        "balance",
        "continuous_limit",
        "decay_exponents",
        "roughness",
        "smoothing_residual",
    ),
    "derivation": ("Derivation", "derive"),
    "laws.constructors": ("law_from_cgf", "law_from_moments", "law_of_atoms"),
    "layers": ("AvgPool2d", "ChannelScale", "Conv2d", "Flatten", "Linear", "MaxPool2d", "Residual"),
    "networks": ("CrashFaults", "Network", "neuron_crashes"),
    "proofs.certificates": (
        "Certificate",
        "Envelope",
        "certify",
        "certify_class",
        "certify_linear",
    ),
    "proofs.contractions": ("Contraction",),
    "proofs.enclosures": ("enclosure",),
    "proofs.remainders": (
        "MomentBounds",
        "Remainder",
        "doubling_ratio",
        "moment_bounds",
        "remainder",
        "symbolic_remainder",
    ),
    "questions": (
        "VarianceShare",
        "Width",
        "eps_chebyshev",
        "largest_p",
        "largest_p_chebyshev",
        "largest_p_expression",
        "largest_p_of_gains",
        "variance_shares",
        "width_needed",
    ),
    "single": ("SingleAtMean", "SingleAtZero", "derive_single"),
    "tails.theorem": ("TheoremTail", "theorem_tail"),
}

__all__ = [
    "BERNOULLI",
    "NORMAL",
    "PUBLISHED_LIMIT",
    "Activation",
    "AvgPool2d",
    "Bernoulli",
    "Certificate",
    "ChannelScale",
    "CommonRate",
    "ContinuousLimit",
    "Contraction",
    "Contributions",
    "Conv2d",
    "Coordinates",
    "CrashFaults",
    "Derivation",
    "Envelope",
    "ExceedanceSampler",
    "Flatten",
    "GainChunk",
    "Law",
    "Linear",
    "LinearSurrogate",
    "MaxPool2d",
    "MomentBounds",
    "Moments",
    "Network",
    "Normal",
    "OfLaw",
    "Remainder",
    "Residual",
    "SingleAtMean",
    "SingleAtZero",
    "SurrogateLaw",
    "TheoremTail",
    "TheoryError",
    "TiltedCoordinates",
    "VarianceShare",
    "Width",
    "activation",
    "balance",
    "block_of",
    "certify",
    "certify_class",
    "certify_linear",
    "chance_of_all",
    "chance_of_any",
    "chebyshev",
    "chunk_of",
    "continuous_limit",
    "decay_exponents",
    "derive",
    "derive_single",
    "doubling_ratio",
    "enclosure",
    "eps_chebyshev",
    "exceedance_sampler",
    "group_hessian",
    "group_sum",
    "largest_p",
    "largest_p_chebyshev",
    "largest_p_expression",
    "largest_p_of_gains",
    "law_from_cgf",
    "law_from_moments",
    "law_of_atoms",
    "law_over_rates",
    "leaky_relu",
    "linear_exact",
    "mean_of_chunks",
    "median_failure",
    "moment_bounds",
    "neuron_crashes",
    "published_replicas",
    "remainder",
    "replicas_needed",
    "roughness",
    "smoothing_residual",
    "symbolic_remainder",
    "theorem_tail",
    "union",
    "variance_of_chunks",
    "variance_shares",
    "width_needed",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"crashsim_theory.{module}"), name)
            globals()[name] = value
            return value
    if name in _HOMES:  # as a module that had been imported already
        return import_module(f"crashsim_theory.{name}")
    raise AttributeError(f"module 'crashsim_theory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
