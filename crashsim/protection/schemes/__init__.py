"""Protection schemes: what each does to the faults' law, and what it costs."""

from crashsim.protection.schemes.clipping import ClipActivations, ClipWeights
from crashsim.protection.schemes.copies import TMR, Duplication
from crashsim.protection.schemes.scheme import Cost, Part, Scheme, Shares
from crashsim.protection.schemes.scrubbing import Scrubbing
from crashsim.protection.schemes.words import SECDED, Parity, SpareCells

SCHEMES: dict[str, type[Scheme]] = {
    kind.name: kind
    for kind in (
        SECDED, Parity, TMR, Duplication, ClipActivations, ClipWeights, SpareCells, Scrubbing,
    )
}  # fmt: skip
"""The schemes by the name that the command line gives them."""

__all__ = [
    "SCHEMES",
    "SECDED",
    "TMR",
    "ClipActivations",
    "ClipWeights",
    "Cost",
    "Duplication",
    "Parity",
    "Part",
    "Scheme",
    "Scrubbing",
    "Shares",
    "SpareCells",
]
