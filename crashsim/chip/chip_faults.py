"""Faults that only a chip has, by the names the command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import crashsim_hardware as chips
from crashsim_hardware import Chip, ChipFaults

from crashsim.errors import ArgumentError

Breaks = Callable[[Chip, int, int], ChipFaults]  # chip, number of masks, seed


def _weight_bits(chip: Chip, bits: float, masks: int, seed: int) -> ChipFaults:
    if not bits.is_integer():
        raise ArgumentError(f"weight-bits={bits:g}: give a whole number of bits")
    return ChipFaults(weight_bits=int(bits), masks=masks)


def _release_failure(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    return ChipFaults(release_failure=p, masks=masks)


def _core_death(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    return chips.sample_core_deaths(chip, p, masks, seed)


CHIP_FAULTS: Mapping[str, Callable[[Chip, float, int, int], ChipFaults]] = {
    "release-failure": _release_failure,  # probability that a spike is lost at a synapse
    "stuck-firing": chips.sample_stuck,  # probability that a neuron fires without pause
    "mismatch": chips.sample_mismatch,  # relative standard deviation of the threshold
    "weight-bits": _weight_bits,  # bits that weights are stored with
    "core-death": _core_death,  # probability that a core of 256 neurons dies
}


def parse_chip_fault(spec: str) -> Breaks:
    """Reads ``NAME=VALUE`` with a name of ``CHIP_FAULTS``.

    Raises:
        ArgumentError: an unknown name, or no number.
    """
    name, _, text = spec.partition("=")
    if name not in CHIP_FAULTS:
        raise ArgumentError(
            f"chip-fault={spec!r}: {name!r} is not known; choose among {', '.join(CHIP_FAULTS)}"
        )
    try:
        value = float(text)
    except ValueError:
        raise ArgumentError(f"chip-fault={spec!r}: give {name}=NUMBER") from None

    def breaks(chip: Chip, masks: int, seed: int) -> ChipFaults:
        return CHIP_FAULTS[name](chip, value, masks, seed)

    return breaks
