"""``crashsim devices``: the faults of the chip by name, and devices with their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crashsim.cli.terminal import console
from crashsim.errors import ArgumentError

if TYPE_CHECKING:
    from crashsim_hardware import Device, Parameter


def devices(
    name: Annotated[
        str | None,
        typer.Argument(help="One device, with all that its sources say.", show_default=False),
    ] = None,
) -> None:
    """List the faults of the chip, and the devices whose faults are known, with their sources."""
    import crashsim_hardware as chips

    if name is None:
        _list_faults()
        console().print()
        _list_devices(chips.devices())
        return
    try:
        _show(chips.device(name))
    except chips.HardwareError as error:
        raise ArgumentError(f"name={name!r}: {error}") from error


def _list_faults() -> None:
    from rich.table import Table

    from crashsim.chip.chip_faults import CHIP_FAULTS

    table = Table(box=None, pad_edge=False)
    for title in ("--chip-fault", "what its first number is", "more numbers"):
        table.add_column(title, overflow="fold")
    for name, fault in CHIP_FAULTS.items():
        more = [f"{key}={value:g}" for key, value in fault.others.items()]
        more += ["window=START-STOP"] if fault.windows else []
        table.add_row(f"{name}={fault.first.upper()}", fault.about, ", ".join(more))
    console().print(table)


def _list_devices(known: dict[str, Device]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("--device", "what", "parameters", "source"):
        table.add_column(title, overflow="fold")
    for name, device in known.items():
        table.add_row(name, device.title, "\n".join(_figures(device)), device.citation)
    console().print(table)
    console().print("\n`crashsim devices NAME` says more of one.")


def _figures(device: Device) -> list[str]:
    found = [f"{p.name} = {_value(p)} ({p.status})" for p in device.parameters]
    if device.curve:
        first, last = device.curve[0], device.curve[-1]
        found.append(
            f"rate from {first[1]:.3g} at {device.over} {first[0]:g} to {last[1]:.3g} at "
            f"{last[0]:g} (measured)"
        )
    return found


def _value(parameter: Parameter) -> str:
    return "?" if parameter.value is None else f"{parameter.value:g}"


def _show(device: Device) -> None:
    out = console()
    out.print(f"{device.name}: {device.title}", markup=False)
    for parameter in device.parameters:
        value = f"{_value(parameter)} ({parameter.status})"
        out.print(f"  {parameter.name} = {value}: {parameter.note}", markup=False)
    for place, rate in device.curve:
        out.print(f"  rate {rate:.3g} (measured) at {device.over} {place:g}", markup=False)
    out.print(f"source: {device.citation}", markup=False)
    out.print(device.url, markup=False)
