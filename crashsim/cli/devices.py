"""``crashsim devices``: the faults of the chip by name, and devices with their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crashsim.cli.terminal import console, printing
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

    from crashsim.chip.chip_faults import CHIP_FAULTS

    if name is None:
        _list(chips.devices(), printing().details)
        return
    if name in CHIP_FAULTS:
        console().print(_told(name), markup=False, soft_wrap=True)
        return
    try:
        _show(chips.device(name))
    except chips.HardwareError as error:
        raise ArgumentError(f"name={name!r}: {error}") from error


def _list(known: dict[str, Device], details: bool) -> None:
    """The devices and the faults of the chip: a line for each device, or all that is known."""
    from crashsim.chip.chip_faults import CHIP_FAULTS
    from crashsim.report.screen.table import FittedTable

    out = console()
    if details:
        faults = [(_written(name), fault.about, _more(name)) for name, fault in CHIP_FAULTS.items()]
        titles = ("--chip-fault", "what its first number is", "more numbers")
        out.print(FittedTable(titles, faults, words={1, 2}))
        rows = [
            (name, device.title, "\n".join(_figures(device)), device.citation)
            for name, device in known.items()
        ]
        out.print()
        all_of_it = ("--device", "what", "parameters", "source")
        out.print(FittedTable(all_of_it, rows, words={1, 2, 3}))
        return
    lines = [(name, device.title) for name, device in known.items()]
    out.print(FittedTable(("--device", "what"), lines, words={1}))
    out.print()
    names = "  ".join(map(_written, CHIP_FAULTS))
    out.print(f"--chip-fault: {names}", markup=False, highlight=False)
    out.print(
        "\n`crashsim devices NAME` says all of one device or fault, with its sources and figures "
        "(? asks for it); --details lists all."
    )


def _written(name: str) -> str:
    from crashsim.chip.chip_faults import CHIP_FAULTS

    return f"{name}={CHIP_FAULTS[name].first.upper()}"


def _more(name: str) -> str:
    from crashsim.chip.chip_faults import CHIP_FAULTS

    fault = CHIP_FAULTS[name]
    more = [f"{key}={value:g}" for key, value in fault.others.items()]
    return ", ".join([*more, *(["window=START-STOP"] if fault.windows else [])])


def _told(name: str) -> str:
    from crashsim.chip.chip_faults import CHIP_FAULTS

    more = f"\nmore numbers: {_more(name)}" if _more(name) else ""
    return f"--chip-fault {_written(name)}: {CHIP_FAULTS[name].about}{more}"


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
