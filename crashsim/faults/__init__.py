"""What can go wrong, and how often.

=================  ===============  =============================
fault              e                displacement v(a)
=================  ===============  =============================
NeuronCrash        Bernoulli(p)     -a
WeightCrash        Bernoulli(p)     -a
StuckAt            Bernoulli(p)     value - a
SignFlip           Bernoulli(p)     -2 a
BitFlip            Bernoulli(p)     change of the word (one e per bit)
BitStuck           Bernoulli(p)     change of the word (one e per bit)
GainNoise          Normal(0, std²)  a
AdditiveNoise      Normal(0, std²)  1
=================  ===============  =============================

``p`` and ``std`` are a number, an array with one for each unit, or a function of the site; in place
of ``p``, ``count=k`` strikes exactly k coordinates.

A fault of one's own is a subclass of ``Fault`` with its own law: docs/doors/fault_law.md.
"""

from collections.abc import Mapping

from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.checks import (
    check_drawable,
    check_fault,
    check_independent,
    counted,
    faults_by_site,
    faults_of,
    lacking_for_tails,
)
from crashsim.faults.fault import Fault, Strikes
from crashsim.faults.neurons import NeuronCrash
from crashsim.faults.noise import AdditiveNoise, GainNoise
from crashsim.faults.rates import Rates
from crashsim.faults.values import SignFlip, StuckAt
from crashsim.faults.weights import WeightCrash
from crashsim.faults.words import BitFlip, BitStuck, WordFault

FAULTS: Mapping[str, type[Fault]] = {
    kind.name: kind
    for kind in (
        NeuronCrash,
        WeightCrash,
        StuckAt,
        SignFlip,
        BitFlip,
        BitStuck,
        GainNoise,
        AdditiveNoise,
    )
}
"""The built-in faults by the name that the command line gives them."""

__all__ = [
    "FAULTS",
    "AdditiveNoise",
    "BernoulliFault",
    "BitFlip",
    "BitStuck",
    "Fault",
    "GainNoise",
    "NeuronCrash",
    "Rates",
    "SignFlip",
    "Strikes",
    "StuckAt",
    "WeightCrash",
    "WordFault",
    "check_drawable",
    "check_fault",
    "check_independent",
    "counted",
    "faults_by_site",
    "faults_of",
    "lacking_for_tails",
]
