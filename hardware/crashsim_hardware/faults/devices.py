"""Named fault profiles of devices, each with its source: data in ``devices.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import is_number, probability, whole
from crashsim_hardware.chip import Chip, Projection
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.streams import Stream, generator

from .chip_faults import ChipFaults, check_draw, sample_core_deaths, sample_mismatch

__all__ = ["Device", "Parameter", "device", "devices", "sample_bit_errors", "sample_stuck_cells"]

Floats = NDArray[Any]


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
    """What goes wrong on a device, and who says so."""

    name: str
    title: str
    kind: str
    citation: str
    url: str
    parameters: tuple[Parameter, ...]

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
        if self.kind == "stuck-cells":
            share = self["low_resistance_share"]
            return sample_stuck_cells(
                chip, self["rate"] * share, self["rate"] * (1.0 - share), masks, seed
            )
        if self.kind == "bit-errors":
            return sample_bit_errors(chip, self["rate"], masks, seed, bits=int(self["bits"]))
        if self.kind == "core-death":
            return sample_core_deaths(chip, self["rate"], masks, seed, int(self["core_size"]))
        if self.kind == "quantised-weights":
            return ChipFaults(weight_bits=int(self["bits"]), masks=masks)
        if self.kind == "threshold-mismatch":
            return sample_mismatch(chip, self["rate"], masks, seed)
        raise HardwareError(f"device {self.name!r} has a fault of unknown kind {self.kind!r}")


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
        raise HardwareError(f"no device {name!r}; there are {', '.join(sorted(known))}")
    return known[name].given(**values)


def sample_stuck_cells(chip: Chip, low: float, high: float, masks: int, seed: int) -> ChipFaults:
    """Cells of differential pairs stuck at low (probability `low`) or high resistance (`high`).

    A weight is the difference of two cells, w = g+ - g-, of which one is at zero conductance when
    healthy. High resistance is zero conductance; low resistance the largest weight of the array.
    """
    check_draw(chip, masks)
    if probability("low", low) + probability("high", high) > 1.0:
        raise HardwareError(f"a cell cannot be stuck twice: low + high = {low + high} > 1")

    def read(projection: Projection, index: int) -> Floats | None:
        stored = projection.weight
        if stored is None:
            return None
        largest = np.abs(stored).max(initial=0.0)
        draw = generator(seed, Stream.STUCK_CELL, index).random((2, masks, *stored.shape))
        cells = np.maximum(np.stack([stored, -stored])[:, None], 0.0)
        cells = np.where(draw < low, largest, np.where(draw < low + high, 0.0, cells))
        difference: Floats = cells[0] - cells[1]
        return difference

    return ChipFaults(weights=[read(p, i) for i, p in enumerate(chip.projections)], masks=masks)


def sample_bit_errors(chip: Chip, rate: float, masks: int, seed: int, bits: int = 8) -> ChipFaults:
    """Every stored bit flips with probability `rate`; weights in two's complement of `bits` bits.

    The integer is round(w / s) with s = max|w| / (2**(bits - 1) - 1) per array, so quantisation is
    part of the fault. A flip of bit k changes the weight by +-s 2**k, of the sign bit by
    -+s 2**(bits - 1).
    """
    check_draw(chip, masks)
    probability("rate", rate)
    bits = whole("bits", bits, 2, 32)

    def read(projection: Projection, index: int) -> Floats | None:
        stored = projection.weight
        if stored is None:
            return None
        step = np.abs(stored).max(initial=0.0) / (2 ** (bits - 1) - 1) or 1.0
        word = np.round(stored / step).astype(np.int64) & ((1 << bits) - 1)
        words = np.broadcast_to(word, (masks, *stored.shape)).copy()
        stream = generator(seed, Stream.BIT_ERROR, index)
        for bit in range(bits):
            flipped: Floats = np.less(stream.random(words.shape), rate)
            words ^= flipped.astype(np.int64) << bit
        signed: Floats = words - ((words >> (bits - 1)) << bits)
        return step * signed

    return ChipFaults(weights=[read(p, i) for i, p in enumerate(chip.projections)], masks=masks)
