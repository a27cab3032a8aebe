"""Faults that only a chip has, by the names the command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import crashsim_hardware as chips
from crashsim_hardware import Chip, ChipFaults

from crashsim.arguments import nearest
from crashsim.errors import ArgumentError

__all__ = ["CHIP_FAULTS", "Breaks", "ChipFault", "parse_chip_fault"]

Breaks = Callable[[Chip, int, int], ChipFaults]  # chip, number of masks, seed


@dataclass(frozen=True)
class ChipFault:
    """A fault of the catalogue: what it is, what is asked of it, and how it is drawn.

    Attributes:
        about: in words, the first number included.
        make: chip, masks, seed and the numbers by name, to the faults.
        first: the name of the number behind ``NAME=``.
        others: more numbers, which may be given as ``,NAME=VALUE``, and what they are otherwise.
        counts: names of those that are whole.
        windows: the field of `ChipFaults` for the steps that it strikes in, where it may strike
            for some only (``,window=START-STOP``); "" elsewhere.
    """

    about: str
    make: Callable[..., ChipFaults]
    first: str
    others: Mapping[str, float] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    windows: Literal["", "window", "synapse_window"] = ""


def _chip_wide(name: str) -> Callable[..., ChipFaults]:
    def make(chip: Chip, masks: int, seed: int, **numbers: Any) -> ChipFaults:
        fields: dict[str, Any] = {name: numbers.pop("value"), **numbers}
        return ChipFaults(masks=masks, **fields)

    return make


def _drawn(sample: Callable[..., ChipFaults]) -> Callable[..., ChipFaults]:
    def make(chip: Chip, masks: int, seed: int, value: float, **numbers: Any) -> ChipFaults:
        return sample(chip, value, masks, seed, **numbers)

    return make


def _bit_errors(
    chip: Chip, masks: int, seed: int, value: float, bits: int, only_ones: float
) -> ChipFaults:
    return chips.sample_bit_errors(chip, value, masks, seed, bits, only_ones=only_ones != 0)


def _cells(effect: Callable[..., Any]) -> Callable[..., ChipFaults]:
    def make(chip: Chip, masks: int, seed: int, value: float, **numbers: Any) -> ChipFaults:
        several = effect(value, **numbers)
        return chips.sample_cells(chip, several, masks, seed)

    return make


def _drift(time: float, nu: float, spread: float, start: float, compensated: float) -> Any:
    return chips.Drift(time, nu, spread, start, compensated != 0)


def _pcm(time: float, compensated: float) -> Any:
    return chips.phase_change(time, compensated=compensated != 0)


def _variation(std: float, absolute: float) -> Any:
    return chips.Variation(std, absolute != 0)


_TILE = {"rows": 256, "columns": 256}

CHIP_FAULTS: Mapping[str, ChipFault] = MappingProxyType({
    "dead-neuron": ChipFault("neurons never fire, each with this probability",
        _drawn(chips.sample_dead), "p", windows="window"),
    "stuck-firing": ChipFault("saturated neurons: each fires without pause with this probability",
        _drawn(chips.sample_stuck), "p", windows="window"),
    "stuck-neuron": ChipFault("neurons fire at a rate (spikes per step) whatever they receive",
        _drawn(chips.sample_held), "p", {"rate": 0.5}, windows="window"),
    "mismatch": ChipFault("relative standard deviation of the firing threshold",
        _drawn(chips.sample_mismatch), "std"),
    "leak-variation": ChipFault("relative standard deviation of the leak of membranes",
        _drawn(chips.sample_leak_variation), "std"),
    "refractory-variation": ChipFault("standard deviation of the refractory period, in steps",
        _drawn(chips.sample_refractory_variation), "std"),
    "core-death": ChipFault("cores of neurons (256 unless core_size=) die with this probability",
        _drawn(chips.sample_core_deaths), "p", {"core_size": 256}, ("core_size",), "window"),
    "dead-synapse": ChipFault("weights read 0, each with this probability",
        _drawn(chips.sample_dead_synapses), "p", windows="synapse_window"),
    "stuck-synapse": ChipFault("weights read value= times the largest (1: saturated)",
        _drawn(chips.sample_stuck_synapses), "p", {"value": 1.0}, windows="synapse_window"),
    "perturbed-synapse": ChipFault("weights (a share p=) times 1 + Normal of this deviation",
        _drawn(chips.sample_perturbed_synapses), "std", {"p": 1.0}, windows="synapse_window"),
    "bit-flip": ChipFault("bits of stored words of bits= flip (only_ones=1: of those that are 1), "
        "each with this probability", _bit_errors, "rate", {"bits": 8, "only_ones": 0}, ("bits",),
        "synapse_window"),
    "row-death": ChipFault("rows of crossbars break, each with this probability",
        _drawn(chips.sample_row_deaths), "p", _TILE, ("rows", "columns"), "synapse_window"),
    "column-death": ChipFault("columns of crossbars break, each with this probability",
        _drawn(chips.sample_column_deaths), "p", _TILE, ("rows", "columns"), "synapse_window"),
    "release-failure": ChipFault("spikes are lost at synapses, each with this probability",
        _chip_wide("release_failure"), "q"),
    "weight-bits": ChipFault("bits that weights are stored with",
        _chip_wide("weight_bits"), "bits", counts=("value",)),
    "read-noise": ChipFault("deviation of a weight at each read, relative to the largest",
        _chip_wide("read_noise"), "std"),
    "adc-bits": ChipFault("bits of the converter of each column's sum, up to adc_range= of the "
        "largest", _chip_wide("adc_bits"), "bits", {"adc_range": 1.0}, ("value",)),
    "levels": ChipFault("levels of conductance that cells are programmed to",
        _cells(chips.Levels), "count", counts=("value",)),
    "conductance-variation": ChipFault("relative standard deviation of conductances",
        _cells(_variation), "std", {"absolute": 0.0}),
    "stuck-cells": ChipFault("cells stuck at low resistance; high=: at high resistance",
        _cells(chips.StuckCells), "low", {"high": 0.0}),
    "drift": ChipFault("conductances (t / start)^-nu after so many seconds t",
        _cells(_drift), "time",
        {"nu": 0.05, "spread": 0.0, "start": 1.0, "compensated": 0.0}),
    "pcm": ChipFault("phase-change cells read so many seconds after their first reading",
        _cells(_pcm), "time", {"compensated": 0.0}),
    "ir-drop": ChipFault("resistance of a line's segment times the largest conductance",
        _cells(chips.IrDrop), "resistance", _TILE, ("rows", "columns")),
})  # fmt: skip
"""The faults of the chip's own, by the names that the command line gives them."""


def parse_chip_fault(spec: str) -> Breaks:
    """Reads ``NAME=VALUE[,NAME=VALUE ...]`` with a first name of ``CHIP_FAULTS``.

    ``,window=START-STOP``: in these steps only, of faults whose `windows` says so.

    Raises:
        ArgumentError: an unknown name, or no number.
    """
    head, *rest = spec.split(",")
    name, _, text = head.partition("=")
    if name not in CHIP_FAULTS:
        raise ArgumentError(
            f"chip-fault={spec!r}: {name!r} is not known{nearest(name, CHIP_FAULTS)}; "
            f"choose among {', '.join(CHIP_FAULTS)}"
        )
    known = CHIP_FAULTS[name]
    numbers: dict[str, float] = dict(known.others)
    numbers["value"] = _number(spec, name, name, text, known)
    window: tuple[int, int] | None = None
    for item in rest:
        key, _, text = item.partition("=")
        if key == "window" and known.windows:
            window = _steps(spec, text)
            continue
        if key not in known.others:
            takes = [*known.others, *(["window"] if known.windows else [])]
            more = f"; it takes {', '.join(takes)}" if takes else ""
            raise ArgumentError(f"chip-fault={spec!r}: {key!r} is no number of {name}{more}")
        numbers[key] = _number(spec, name, key, text, known)

    def breaks(chip: Chip, masks: int, seed: int) -> ChipFaults:
        found = known.make(chip, masks, seed, **numbers)
        if window is None:
            return found
        steps: dict[str, Any] = {known.windows: window}
        return replace(found, **steps)

    return breaks


def _steps(spec: str, text: str) -> tuple[int, int]:
    start, _, stop = text.partition("-")
    if not (start.isdecimal() and stop.isdecimal()) or int(start) >= int(stop):
        raise ArgumentError(
            f"chip-fault={spec!r}: window={text!r}; give START-STOP in steps, such as 5-10"
        )
    return int(start), int(stop)


def _number(spec: str, name: str, key: str, text: str, known: ChipFault) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentError(f"chip-fault={spec!r}: give {key}=NUMBER") from None
    if ("value" if key == name else key) not in known.counts:
        return value
    if not value.is_integer():
        raise ArgumentError(f"chip-fault={spec!r}: {key}={value:g}: give a whole number")
    return int(value)
