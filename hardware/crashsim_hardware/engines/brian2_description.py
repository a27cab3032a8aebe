"""What the neurons and synapses of a chip are in brian2, as text and numbers, without brian2.

Equations, for delta synapses (I the constant current, C and v_th as in `Physics`):

    dv/dt = I / C - v / tau_m                          v += w v_th per spike

and for filtered ones (u dimensionless, F = gain v_th / dt):

    du/dt = (drive - u) / tau_s                        u += (dt / tau_s) w per spike
    dv/dt = F curve(u) - v / tau_m

each integrated by forward Euler: for the perfect integrator that is exact, and for the others it
is the definition of the digital neuron (`PointNeuron`). Stepped neurons, and those of one's own,
are updated by their own statements before each step (`Model.step`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.own_neuron import OwnNeuron
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Block, tolerance
from .varied import Varied

__all__ = [
    "Constants",
    "Model",
    "Way",
    "arrays_of",
    "equations",
    "layer_of",
    "model_of",
    "quantity",
    "receiving",
    "ways",
]

Floats = NDArray[Any]
Constants = dict[str, tuple[float, str]]

_CURVES = {"linear": "u", "sigmoid": "1 / (1 + exp(-u))", "tanh": "tanh(u)"}
_ACTIVE = "active = int(t_in_timesteps >= start) * int(t_in_timesteps < stop) : 1 (shared)\n"


@dataclass(frozen=True)
class Model:
    """A NeuronGroup in words: units by their names in brian2, "1" for numbers.

    refractory: seconds, or the name of a parameter; 0 for none.
    step: statements that run before each step.
    """

    equations: str
    threshold: str
    reset: str
    constants: Constants
    refractory: str | float = 0.0
    step: str = ""


@dataclass(frozen=True)
class Way:
    """How spikes get from a layer to another: through which projection, and when they arrive.

    delay: in the time of the layers' windows. wait: in brian2's time, in which the window of a
    layer starts a step after that of the layer before, beyond the step that spikes always take.
    """

    place: int
    source: int
    target: int
    delay: int
    wait: int


def ways(chip: Chip) -> list[Way]:
    """All ways of spikes. Raises HardwareError for a loop over several layers."""
    found = [
        Way(place, source, target, delay, delay + target - source - 1)
        for target in range(len(chip.hidden))
        for place, source, delay in chip.feeds(target)
        if source != INPUT
    ]
    if any(way.wait < 0 for way in found):
        raise HardwareError(
            "spikes run in a loop over several layers, whose windows brian2 runs one after the "
            "other; use engine='numpy'"
        )
    return found


def receiving(chip: Chip, target: int, effect: str) -> tuple[str, Constants]:
    """What a spike of worth `effect` does to a neuron of a layer, and the constants of it."""
    neuron = chip.hidden[target].neuron
    if not isinstance(neuron, PointNeuron):
        return f"q_post += {effect}", {}
    if neuron.synapse is not None:
        return f"u_post += jump * {effect}", {"jump": (neuron.synapse, "1")}
    return f"v_post += v_th * {effect}", {"v_th": (chip.physics.threshold, "volt")}


def equations(neuron: PointNeuron, *, leaks: bool = False) -> str:
    """The brian2 equations of `neuron`; parameters are set per neuron, constants per chip.

    leaks: every neuron has a leak of its own, `leakage` times that of the layer.
    """
    leak = " - (active / tau_m) * v" if neuron.leak else ""
    if leaks and neuron.leak:
        leak = " - (active * leakage / tau_m) * v"
    if neuron.synapse is None:
        model = f"dv/dt = (active / C) * I{leak} : volt\nI : amp\n"
    else:
        model = (
            f"du/dt = (drive - u) / tau_s : 1\ndrive : 1\n"
            f"dv/dt = (active * F) * ({_CURVES[neuron.curve]}){leak} : volt\n"
        )
    model += f"{_ACTIVE}theta : volt\nunit : volt\n"
    if neuron.bipolar:
        model += "theta_off : volt\npolarity : 1\n"
    if leaks and neuron.leak:
        model += "leakage : 1\n"
    return model


def model_of(
    chip: Chip, index: int, varied: Varied, *, held: bool, units: bool = True, signs: bool = False
) -> Model:
    """The group of hidden layer `index`.

    held: held neurons fire by themselves, since Synapses carry what a neuron fires.
    units: neurons have charges of reset of their own, in `unit`.
    signs: the reset tells the `polarity` of a spike, which nothing else does.
    """
    layer = chip.hidden[index]
    constants: Constants = {
        "start": (float(index + layer.offset), "1"),
        "stop": (float(index + chip.total_steps), "1"),
    }
    if isinstance(layer.neuron, SteppedNeuron):
        return _stepped(layer.neuron, varied, held, constants)
    if isinstance(layer.neuron, OwnNeuron):
        return _own(chip, layer.neuron, varied, held, constants)
    return _point(chip, layer.neuron, varied, held, units, signs, constants)


def _point(
    chip: Chip,
    neuron: PointNeuron,
    varied: Varied,
    held: bool,
    units: bool,
    signs: bool,
    constants: Constants,
) -> Model:
    physics = chip.physics
    constants |= {
        "C": (physics.capacitance, "farad"),
        "v_th": (physics.threshold, "volt"),
        "F": (neuron.gain * physics.threshold / physics.dt, "volt*hertz"),
    }
    if neuron.leak:
        constants["tau_m"] = (physics.dt / neuron.leak, "second")
    if neuron.synapse is not None:
        constants["tau_s"] = (physics.dt / neuron.synapse, "second")
    fires = "v >= theta or v < theta_off" if neuron.bipolar else "v >= theta"
    reset = "v = 0*volt"
    if neuron.reset == "subtract":
        unit = "unit" if units else "v_th"
        reset = f"v -= polarity * {unit}" if neuron.bipolar else f"v -= {unit}"
    if neuron.bipolar and signs:
        sign = "1 - 2 * int(v < theta_off)"
        if varied.held is not None:
            sign = f"int(is_held > 0.5) * sign(held) + int(is_held < 0.5) * ({sign})"
        reset = f"polarity = {sign}\n{reset}"
    # brian2 lets a neuron fire again `refractory` after a spike, PointNeuron one step later
    silent = (neuron.refractory + 1) * physics.dt if neuron.refractory else 0.0
    extra, fires, own_silence = _varied_model(varied, fires, held)
    return Model(
        equations(neuron, leaks=varied.leaks is not None) + extra,
        f"active > 0 and ({fires})",
        reset,
        constants,
        own_silence or silent,
    )


_STATES = ("v", "u", "q", "fired")
_PARAMETERS = ("keep", "keep_u", "per_charge", "gain", "rest", "lowest", "drive", "theta", "unit")


def _stepped(neuron: SteppedNeuron, varied: Varied, held: bool, constants: Constants) -> Model:
    """A forward-Euler step with a late reset is no differential equation that brian2 could
    integrate, so the recursion of `SteppedNeuron` is its code. All of it is in thresholds."""
    if neuron.many:
        raise HardwareError(
            "brian2's neurons emit one spike a step, and those of this graph several; use "
            "engine='numpy'"
        )
    if neuron.bound is not None:
        raise HardwareError("brian2's neurons here have no lower bound; use engine='numpy'")
    names = "".join(f"{name} : 1\n" for name in (*_STATES, *_PARAMETERS))
    reset = "v -= unit" if neuron.reset == "subtract" else "v = lowest"
    extra, fires, silence = _varied_model(varied, f"v {neuron.fires_at} theta", held)
    return Model(
        names + _ACTIVE + extra,
        f"active > 0 and ({fires})",
        "fired = 1" if neuron.late else reset,
        constants,
        silence or 0.0,
        _recursion(neuron),
    )


def _recursion(neuron: SteppedNeuron) -> str:
    if neuron.synapse is None:
        lines = ["new = keep * v + per_charge * q + drive + rest"]
    else:
        lines = [
            "u = (1 - active) * u + active * (keep_u * u + per_charge * q + drive)",
            "new = keep * v + gain * u + rest",
        ]
    if neuron.late and neuron.reset == "subtract":
        lines.append("new = new - fired * unit")
    elif neuron.late:
        lines.append("new = (1 - fired) * new + fired * lowest")
    lines += ["v = (1 - active) * v + active * new", "q = 0", "fired = 0"]
    return "\n".join(lines)


def _own(chip: Chip, neuron: OwnNeuron, varied: Varied, held: bool, constants: Constants) -> Model:
    """A neuron of one's own: its equations as one forward-Euler step of its states together."""
    if varied.leaks is not None:
        raise HardwareError("neurons of your own have no leak that a fault could vary")
    states = list(neuron.derivatives)
    # "charge" is what a step finds in q
    lines = [
        f"new_{name} = {name} + ({re.sub(r'[A-Za-z_][A-Za-z_0-9]*', _as_q, text)})"
        for name, text in neuron.derivatives.items()
    ]
    lines += [f"{name} = (1 - active) * {name} + active * new_{name}" for name in states]
    extra, fires, silence = _varied_model(varied, neuron.threshold, held)
    silent = (neuron.refractory + 1) * chip.physics.dt if neuron.refractory else 0.0
    names = "".join(f"{name} : 1\n" for name in (*states, "q", "drive", "theta"))
    numbers: Constants = {name: (float(v), "1") for name, v in neuron.parameters.items()}
    return Model(
        names + _ACTIVE + extra,
        f"active > 0 and ({fires})",
        "\n".join(f"{name} = {text}" for name, text in neuron.resets),
        constants | numbers,
        silence or silent,
        "\n".join([*lines, "q = 0"]),
    )


def _as_q(name: re.Match[str]) -> str:
    return "q" if name[0] == "charge" else name[0]


def _varied_model(varied: Varied, fires: str, held: bool) -> tuple[str, str, str]:
    """What varied neurons add to equations, their threshold, and how long they are silent."""
    extra, silence = "", ""
    if varied.held is not None and held:
        extra += "held : 1\nis_held : 1\n"
        due = "floor((t_in_timesteps - start {}) * abs(held) + 0.5)"
        fires = f"(is_held < 0.5 and ({fires})) or "
        fires += f"(is_held > 0.5 and {due.format('+ 1')} > {due.format('')})"
    if varied.refractory is not None:
        extra += "silent : second\n"
        silence = "silent"
    return extra, fires, silence


Arrays = dict[str, tuple[Any, str]]


def arrays_of(chip: Chip, block: Block, index: int, *, held: bool) -> Arrays:
    """Initial states and parameters of a layer: values that broadcast to (m, b, n_l), and units.

    held: as in `model_of`.
    """
    layer = chip.hidden[index]
    varied = block.varied[index] if block.varied else Varied()
    theta = block.thresholds[index]
    theta = np.ones(1) if theta is None else theta
    unit = np.where(np.isfinite(theta), theta, 1.0)
    slack = tolerance(layer.projection.fraction_bits)
    if isinstance(layer.neuron, OwnNeuron):
        found = _own_arrays(layer.neuron, block, index)
        found["theta"] = (theta - slack, "1")
    elif isinstance(layer.neuron, SteppedNeuron):
        found = _stepped_arrays(layer.neuron, block, index, varied)
        found["theta"] = (theta + slack if layer.neuron.strict else theta - slack, "1")
        found["unit"] = (unit, "1")
    else:
        found = _point_arrays(chip, layer.neuron, block, index, varied)
        v_th = chip.physics.threshold
        found["theta"] = ((theta - slack) * v_th, "volt")
        found["unit"] = (unit * v_th, "volt")
        if layer.neuron.bipolar:
            off = np.where(np.isfinite(theta), 0.0, -np.inf) - slack
            found["theta_off"] = (off * v_th, "volt")
    return found | _varied_arrays(varied, chip.physics.dt, held)


def _point_arrays(
    chip: Chip, neuron: PointNeuron, block: Block, index: int, varied: Varied
) -> Arrays:
    physics, drive = chip.physics, block.drives[index]
    found: Arrays = {"v": (block.phases[index] * physics.threshold, "volt")}
    if neuron.synapse is None:
        found["I"] = (drive * (physics.charge / physics.dt), "amp")
    else:
        # the drive has been on for ever: the filter starts where it would settle
        found |= {"drive": (drive, "1"), "u": (drive, "1")}
    if varied.leaks is not None and neuron.leak:
        found["leakage"] = (varied.leak(neuron.leak) / neuron.leak, "1")
    return found


def _stepped_arrays(neuron: SteppedNeuron, block: Block, index: int, varied: Varied) -> Arrays:
    values: dict[str, Any] = {
        "v": block.phases[index] + (0.0 if neuron.origin is None else neuron.origin),
        "u": 0.0,
        "q": 0.0,
        "fired": 0.0,
        "keep": 1.0 - varied.leak(neuron.leak),
        "keep_u": 0.0 if neuron.synapse is None else 1.0 - neuron.synapse,
        "per_charge": neuron.per_charge,
        "gain": 1.0 if neuron.gain is None else neuron.gain,
        "rest": neuron.rest,
        "lowest": 0.0 if neuron.floor is None else neuron.floor,
        "drive": neuron.per_charge * block.drives[index],
    }
    return {name: (value, "1") for name, value in values.items()}


def _own_arrays(neuron: OwnNeuron, block: Block, index: int) -> Arrays:
    found: Arrays = {
        name: (float(neuron.initial.get(name, 0.0)), "1") for name in neuron.derivatives
    }
    found["v"] = (found["v"][0] + block.phases[index], "1")
    return found | {"q": (0.0, "1"), "drive": (block.drives[index], "1")}


def _varied_arrays(varied: Varied, dt: float, held: bool) -> Arrays:
    found: Arrays = {}
    is_held = np.zeros(1, np.bool_) if varied.held is None else np.isfinite(varied.held)
    if varied.held is not None:
        found["held"] = (np.where(is_held, varied.held, 0.0), "1")
        found["is_held"] = (is_held.astype(np.float64), "1")
    if varied.refractory is not None:
        # a neuron that is held keeps its rate; brian2 counts the step of the spike itself
        found["silent"] = ((np.where(is_held & held, 0.0, varied.refractory) + 1.0) * dt, "second")
    return found


def layer_of(chip: Chip, block: Block, index: int) -> dict[str, Any]:
    """A layer of a block of one mask and one input, as `crashsim_hardware.standalone` takes it."""
    varied = block.varied[index] if block.varied else Varied()
    model = model_of(chip, index, varied, held=True, signs=True)
    shape, layer = (block.masks, block.inputs, chip.sizes[index]), chip.hidden[index]
    name = "".join(c if c.isalnum() else "_" for c in layer.name)
    return {
        "name": f"layer{index}_{name}".rstrip("_"),
        "size": layer.size,
        "model": model.equations,
        "threshold": model.threshold,
        "reset": model.reset,
        "refractory": model.refractory,
        "step": model.step,
        "constants": model.constants,
        "arrays": {
            name: (np.broadcast_to(values, shape).reshape(-1).astype(np.float64), unit)
            for name, (values, unit) in arrays_of(chip, block, index, held=True).items()
        },
    }


def quantity(brian2: Any, value: Any, unit: str) -> Any:
    """A value in a unit of brian2 by its name, or a product of names."""
    for name in unit.split("*") if unit != "1" else ():
        value = value * getattr(brian2, name)
    return value
