"""NIR graphs: spiking networks of other libraries, as chips and as torch models.

The chip is read by ``crashsim_hardware``. Its rate curves make a torch model, on which theory and
Monte Carlo work: exact for integrators with reset by subtraction in the limit of long windows.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import crashsim_hardware as chips
from crashsim_hardware import Chip, HardwareError
from crashsim_hardware.noticing import collecting as hardware_notices
from torch import nn

from crashsim.chip.spiking_model import SpikingModel, can_be_stepped
from crashsim.chip.transforms import module_of
from crashsim.errors import ArgumentError, FileError, MissingExtraError
from crashsim.noticing import notice
from crashsim.writing import write_files

Reset = Literal["subtract", "zero", "late-subtract", "late-zero"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def read_graph(
    path: str | Path,
    reset: Reset | None = None,
    *,
    steps: int = 100,
    dt: float | None = None,
    exporter: str | None = None,
    start: Literal["half", "zero"] | None = None,
    most_bytes: int | None = None,
) -> Chip:
    """Reads a NIR file: the chip in it, whether it has a network or not.

    Args:
        path: of the ``.nir`` file.
        reset: what a spike leaves behind, where the file does not say: NIR has no word for reset
            by subtraction.
        steps: length of the readout window.
        dt, exporter, start: as ``crashsim_hardware.read_nir`` takes them.
        most_bytes: that it may take in memory; None: as ``crashsim_hardware.read_nir`` allows.

    Raises:
        FileError: no readable NIR graph, one with nodes that cannot be run, with data that is not
            in the file itself, or that would take too much memory (see ``crashsim.files.limits``).
        MissingExtraError: the package ``nir`` is not installed.
    """
    limits = {} if most_bytes is None else {"most_bytes": most_bytes}
    try:
        return chips.read_nir(
            path, steps=steps, dt=dt, reset=reset, exporter=exporter, start=start, **limits
        )
    except HardwareError as error:
        if isinstance(error.__cause__, ImportError):
            raise MissingExtraError(str(error)) from error
        raise FileError(f"model={str(path)!r}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, MemoryError) as error:
        raise FileError(f"model={str(path)!r} is not a NIR graph ({error})") from error


def read_chip(
    path: str | Path,
    reset: Reset | None = None,
    *,
    steps: int = 100,
    dt: float | None = None,
    exporter: str | None = None,
    start: Literal["half", "zero"] | None = None,
    most_bytes: int | None = None,
) -> tuple[Chip, nn.Module]:
    """Reads a NIR file: the chip in it, and a torch model that theory and Monte Carlo work on.

    Where the neurons are integrators that subtract their thresholds, their rate curves are ReLUs
    and the model is the network of them. All others (leaky ones, those that reset to zero) have no
    such curve: the model is then the chip itself for ``steps`` steps, spike for spike.

    Args:
        path, reset, steps, dt, exporter, start, most_bytes: as in ``read_graph``.

    Raises:
        FileError, MissingExtraError: as in ``read_graph``.
        ArgumentError: its neurons are wired in loops, or have curves of their own.
    """
    with hardware_notices() as noticed:
        chip = read_graph(
            path, reset, steps=steps, dt=dt, exporter=exporter, start=start, most_bytes=most_bytes
        )
    for message in noticed:
        notice(message)
    if chip.network is not None:
        return chip, torch_model(chip.network)
    why = can_be_stepped(chip)
    if why is not None:
        raise ArgumentError(
            f"model={str(path)!r}: {why}, so there is no network to work on; `crashsim hardware` "
            "runs the chip itself"
        )
    notice(
        f"model={str(path)!r}: its neurons have no rate curve that is exact, so the model is the "
        f"chip itself, step by step: {chip.steps} steps from its start, outputs in spikes a step "
        "(--steps, on which their variance depends)"
        + (f"; {chip.convention}" if chip.convention else "")
    )
    return chip, SpikingModel(chip).eval()


def check_nir_installed() -> None:
    """Raises MissingExtraError where NIR files can be neither read nor written."""
    if find_spec("nir") is None:
        raise MissingExtraError("nir: writing a chip as NIR needs `pip install crashsim[nir]`")


def write_chip(chip: Chip, path: str | Path) -> None:
    """Writes a chip as a NIR graph.

    Raises:
        ArgumentError: NIR has no word for something of the chip.
        FileError: the file cannot be written.
    """
    with TemporaryDirectory() as folder:
        here = Path(folder) / "chip.nir"
        try:
            chips.write_nir(chip, here)
        except HardwareError as error:
            raise ArgumentError(f"nir: {error}") from error
        except OSError as error:
            raise FileError(f"nir={str(path)!r}: cannot write {str(here)!r} ({error})") from error
        content = here.read_bytes()
    write_files("nir", (path, content))


def torch_model(network: chips.Network) -> nn.Sequential:
    """A network of plain arrays as a torch model in double precision."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, layer in enumerate(network.layers, start=1):
        for part, transform in enumerate(layer.transforms):
            suffix = f"_{part}" if len(layer.transforms) > 1 else ""
            module = module_of(transform)
            modules[f"{type(module).__name__.lower()}{index}{suffix}"] = module
        if layer.activation != "linear":
            modules[f"{layer.activation}{index}"] = _ACTIVATIONS[layer.activation]()
    return nn.Sequential(modules).double().eval()
