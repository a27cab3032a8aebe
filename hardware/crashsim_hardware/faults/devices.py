"""Named fault profiles of devices, each with its source: data in ``devices.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np

from crashsim_hardware.arguments import is_number
from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError

from .cells import StuckCells, sample_cells
from .chip_faults import ChipFaults
from .neuron_faults import sample_core_deaths, sample_mismatch
from .phase_change import phase_change
from .synapse_faults import sample_bit_errors

__all__ = ["Device", "Parameter", "device", "devices", "sample_stuck_cells"]


@dataclass(frozen=True)
class Parameter:
    """One figure of a profile, and how well it is known.

    status: "measured" on hardware, "specified" by the design, "assumed", or "ask" when nobody has
    published it and the user must say; "given" once the user has.
    """

    name: str
    value: float | None
    status: Literal["measured", "specified", "assumed", "ask", "given"]
    note: str


@dataclass(frozen=True)
class Device:
    """What goes wrong on a device, and who says so.

    curve: points (place, rate) that were measured, where the rate depends on something, in order.
    over: the parameter that the places of the curve are of; "" without a curve.
    """

    name: str
    title: str
    kind: str
    citation: str
    url: str
    parameters: tuple[Parameter, ...]
    curve: tuple[tuple[float, float], ...] = ()
    over: str = ""

    def __getitem__(self, name: str) -> float:
        """The value of a parameter; raises HardwareError for one that still has to be given."""
        for parameter in self.parameters:
            if parameter.name == name:
                if parameter.value is None:
                    raise HardwareError(
                        f"device {self.name!r} has no published {name} ({parameter.note}); "
                        f"give one: device({self.name!r}, {name}=...)"
                    )
                return parameter.value
        raise HardwareError(
            f"device {self.name!r} has no parameter {name!r}; it has "
            + ", ".join(parameter.name for parameter in self.parameters)
        )

    def given(self, **values: float) -> Device:
        """The same device with figures of your own, marked as "given"."""
        for name in values:
            if name not in {parameter.name for parameter in self.parameters}:
                self[name]  # raises, naming what there is
            if not is_number(values[name]) or not abs(values[name]) < np.inf:
                raise HardwareError(f"{name} = {values[name]!r}: give a finite number")
        return replace(
            self,
            parameters=tuple(
                replace(p, value=float(values[p.name]), status="given") if p.name in values else p
                for p in self.parameters
            ),
        )

    def sample(self, chip: Chip, masks: int, seed: int) -> ChipFaults:
        """`masks` fault patterns of this device for `chip`."""
        if self.kind not in _SAMPLERS:
            raise HardwareError(f"device {self.name!r} has a fault of unknown kind {self.kind!r}")
        return _SAMPLERS[self.kind](self, chip, masks, seed)

    def on_curve(self, at: float) -> float:
        """The value of the published curve at `at`, between its points on a logarithmic scale.

        Raises HardwareError outside of the range in which it was measured.
        """
        places, values = (np.array(column) for column in zip(*self.curve, strict=True))
        if not places[0] <= at <= places[-1]:
            raise HardwareError(
                f"device {self.name!r} was measured from {places[0]:g} to {places[-1]:g}, and "
                f"{at:g} is not between; give a rate of your own to a device that asks for it"
            )
        return float(np.exp(np.interp(at, places, np.log(values))))


def _count(device: Device, name: str) -> int:
    value = device[name]
    if not float(value).is_integer():
        raise HardwareError(f"device {device.name!r}: {name} = {value:g}: give a whole number")
    return int(value)


def _stuck_cells(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    rate, share = device["rate"], device["low_resistance_share"]
    return sample_stuck_cells(chip, rate * share, rate * (1.0 - share), masks, seed)


def _bit_errors(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    return sample_bit_errors(chip, device["rate"], masks, seed, bits=_count(device, "bits"))


def _bit_errors_at_voltage(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    rate, falls = device.on_curve(device["voltage"]), device["only_ones"] != 0.0
    return sample_bit_errors(chip, rate, masks, seed, _count(device, "bits"), only_ones=falls)


def _core_death(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    return sample_core_deaths(chip, device["rate"], masks, seed, _count(device, "core_size"))


def _quantised(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    return ChipFaults(weight_bits=_count(device, "bits"), masks=masks)


def _mismatch(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    return sample_mismatch(chip, device["rate"], masks, seed)


def _phase_change(device: Device, chip: Chip, masks: int, seed: int) -> ChipFaults:
    effects = phase_change(
        device["time"],
        compensated=device["compensated"] != 0.0,
        programming=device["programming"],
        drift=device["drift"],
        read=device["read"],
    )
    return sample_cells(chip, effects, masks, seed)


_SAMPLERS: dict[str, Callable[[Device, Chip, int, int], ChipFaults]] = {
    "stuck-cells": _stuck_cells,
    "bit-errors": _bit_errors,
    "bit-errors-at-voltage": _bit_errors_at_voltage,
    "core-death": _core_death,
    "quantised-weights": _quantised,
    "threshold-mismatch": _mismatch,
    "phase-change": _phase_change,
}


@cache
def devices() -> dict[str, Device]:
    """All profiles by name."""
    text = resources.files(__package__).joinpath("devices.toml").read_text(encoding="utf-8")
    return {
        name: Device(
            name=name,
            title=entry["title"],
            kind=entry["kind"],
            citation=entry["citation"],
            url=entry["url"],
            curve=tuple((float(place), float(rate)) for place, rate in entry.get("curve", ())),
            over=entry.get("over", ""),
            parameters=tuple(
                Parameter(key, item.get("value"), item["status"], item["note"])
                for key, item in entry["parameters"].items()
            ),
        )
        for name, entry in tomllib.loads(text).items()
    }


def device(name: str, **values: float) -> Device:
    """The profile `name`, with the given figures in place of its own."""
    known = devices()
    if not isinstance(name, str) or name not in known:
        close = get_close_matches(name.lower()[:200], known, 1) if isinstance(name, str) else []
        near = f" (did you mean {close[0]!r}?)" if close else ""
        raise HardwareError(f"no device {name!r}{near}; there are {', '.join(sorted(known))}")
    return known[name].given(**values)


def sample_stuck_cells(chip: Chip, low: float, high: float, masks: int, seed: int) -> ChipFaults:
    """Cells of differential pairs stuck at low (probability `low`) or high resistance (`high`).

    A weight is the difference of two cells, w = g+ - g-, of which one is at zero conductance when
    healthy. High resistance is zero conductance; low resistance the largest weight of the array.
    """
    return sample_cells(chip, [StuckCells(low, high)], masks, seed)
