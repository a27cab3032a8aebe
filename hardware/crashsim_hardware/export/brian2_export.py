"""A chip handed over as a brian2 network, or as a script that runs alone."""

from __future__ import annotations

import base64
import io
import os
import secrets
import textwrap
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip, quantise
from crashsim_hardware.engines.block import Block, blocks, connections, matrices
from crashsim_hardware.engines.brian2_description import Way, layer_of, receiving, ways
from crashsim_hardware.engines.brian2_loading import load_brian2
from crashsim_hardware.engines.inputs import flat_signals
from crashsim_hardware.engines.running import as_faults
from crashsim_hardware.errors import HardwareError

from . import standalone

__all__ = ["Brian2Chip", "to_brian2", "to_script"]

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Brian2Chip:
    """A chip as objects of brian2, for one input under one mask.

    network: a `brian2.Network` of a NeuronGroup for each layer, Synapses and monitors; it is yours
        to add to and to run.
    monitors: a SpikeMonitor for each layer, with `polarity` where neurons are signed.
    steps: that a whole run takes.
    description: the plain data that it was built from; see `crashsim_hardware.standalone`.
    """

    network: Any
    monitors: list[Any]
    steps: int
    description: dict[str, Any]

    def run(self) -> list[Floats]:
        """Runs all steps; spikes of each neuron, layer by layer, ON minus OFF."""
        brian2 = load_brian2()
        self.network.run(self.steps * self.description["dt"] * brian2.second, namespace={})
        return standalone.counts(self.description, self.monitors)

    @property
    def outputs(self) -> Floats:
        """The outputs (K,) that the spikes so far are read as."""
        found = standalone.counts(self.description, self.monitors)
        return np.asarray(standalone.outputs(self.description, found))


def to_brian2(chip: Chip, x: Any, faults: Any = None, *, mask: int = 0) -> Brian2Chip:
    """The brian2 network of `chip` for one constant input x (*input_shape) under one mask.

    Membranes start where the chip's do. Its spikes are those of `run`, on any engine. Raises
    HardwareError for what Synapses cannot carry: failing releases, noisy reads, converters, struck
    windows, several spikes a step, loops over several layers.
    """
    described = describe(chip, x, faults, mask)
    network, monitors = standalone.build(load_brian2(), described)
    return Brian2Chip(network, monitors, described["steps"], described)


def to_script(chip: Chip, path: str | Path, x: Any, faults: Any = None, *, mask: int = 0) -> None:
    """Writes a Python script that builds and runs the chip with brian2 and numpy alone.

    It prints the spikes of each layer and the outputs, and leaves `network`, `monitors`, `spikes`
    and `read` to whoever imports or runs it. Arguments and errors as `to_brian2`.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise HardwareError(f"path must be the name of a file, got {path!r:.80}")
    described = describe(chip, x, faults, mask)
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".{place.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        beside.write_text(_script(described), encoding="utf-8")
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def describe(chip: Chip, x: Any, faults: Any = None, mask: int = 0) -> dict[str, Any]:
    """The plain data that `crashsim_hardware.standalone` builds a chip from."""
    broken = as_faults(chip, faults)
    if not 0 <= mask < broken.count:
        raise HardwareError(f"mask must be from 0 to {broken.count - 1}, got {mask!r}")
    one = broken.only(mask)
    if one.by_step or one.window is not None:
        raise HardwareError(
            "failing releases, noisy reads, converters and windows of faults change from step to "
            "step, which Synapses do not say; leave them out"
        )
    if one.weight_bits is not None:
        chip = quantise(chip, one.weight_bits)
    signals = flat_signals(chip, np.asarray(x, dtype=np.float64)[None])
    if signals.ndim != 2:
        raise HardwareError("x must be one constant input, of the chip's input shape")
    if any(projection.pool is not None for projection in chip.projections):
        raise HardwareError(
            "the chip takes a maximum over neurons (max pooling), which no set of Synapses does; "
            "`run` with engine='brian2' does"
        )
    work = blocks(chip, signals, one, phases=chip.start, seed=0, replica=0, copies=1)
    block = next(work)
    if block.currents:
        raise HardwareError("inputs reach this chip by several ways; only one can be handed over")
    found = ways(chip)
    return {
        "dt": chip.physics.dt,
        "steps": len(chip.hidden) - 1 + chip.total_steps,
        "layers": [layer_of(chip, block, index) for index in range(len(chip.hidden))],
        "synapses": [_synapses(chip, block, way) for way in found],
        "readout": _readout(chip, block),
    }


def _synapses(chip: Chip, block: Block, way: Way) -> dict[str, Any]:
    projection = chip.projections[way.place]
    source, target = connections(projection)
    weights = matrices(projection, block.weights[way.place])[..., source, target].reshape(-1)
    if (gain := block.gain(way.source)) is not None:
        weights = weights * gain[0, 0, source]
    signed = chip.hidden[way.source].neuron.bipolar
    on_pre, constants = receiving(chip, way.target, "weight * polarity_pre" if signed else "weight")
    return {
        "source": way.source,
        "target": way.target,
        "i": source,
        "j": target,
        "w": weights,
        "on_pre": on_pre,
        "delay": way.wait,
        "constants": constants,
    }


def _readout(chip: Chip, block: Block) -> dict[str, Any]:
    last = len(chip.hidden) - 1
    weights = matrices(chip.readout, block.weights[last + 1])
    weights = weights[0] if weights.ndim == 3 else weights
    if (gain := block.gain(last)) is not None:
        weights = weights * gain[0, 0, :, None]
    bias = chip.readout.bias
    if block.offset_readout is not None:
        bias = bias + block.offset_readout[0, 0]
    return {"weights": weights, "bias": bias, "duration": chip.duration(last)}


def _script(described: dict[str, Any]) -> str:
    arrays: list[Floats] = []
    text = _literal(described, arrays)
    packed = io.BytesIO()
    np.savez_compressed(packed, *arrays)
    data = "\n".join(textwrap.wrap(base64.b64encode(packed.getvalue()).decode("ascii"), 96))
    code = resources.files(__package__).joinpath("standalone.py").read_text(encoding="utf-8")
    return _TEMPLATE.format(code=code, data=data, chip=text)


def _literal(value: Any, arrays: list[Floats]) -> str:
    """Python's text of plain data, in which an array is its place among `arrays`."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return f"_arrays['arr_{len(arrays) - 1}']"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_literal(v, arrays)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(_literal(item, arrays) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside},)"
    return repr(value.item() if isinstance(value, np.generic) else value)


_TEMPLATE = '''{code}

import base64
import io

import brian2

DATA = """
{data}
"""

_arrays = np.load(io.BytesIO(base64.b64decode(DATA)), allow_pickle=False)
CHIP = {chip}

# as the chip was simulated: double precision, the same arithmetic everywhere
brian2.prefs.codegen.target = "numpy"
network, monitors = build(brian2, CHIP)
network.run(CHIP["steps"] * CHIP["dt"] * brian2.second, namespace={{}})
spikes = counts(CHIP, monitors)
read = outputs(CHIP, spikes)

if __name__ == "__main__":
    for layer, found in zip(CHIP["layers"], spikes, strict=True):
        print(layer["name"], *found.astype(int))
    print("outputs", *read)
'''
