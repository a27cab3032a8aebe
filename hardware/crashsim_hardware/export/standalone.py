"""A spiking chip as a brian2 network: built from plain data, with brian2 and numpy alone.

`chip` is a dict:
    dt: seconds; steps: of the run.
    layers: dicts of name, size, model (equations), threshold, reset, refractory (seconds, or the
        name of a parameter), step (statements run before each step, or ""), constants and arrays:
        {name: (value, unit)}, with the names of brian2's units, or "1".
    synapses: dicts of source, target (of layers), i, j, w, on_pre, delay (steps), constants.
    readout: weights (n_last, outputs), bias (outputs,), duration (steps).
"""

from typing import Any

import numpy as np


def build(brian2: Any, chip: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The network, and a monitor of each layer's spikes, with `polarity` where they are signed."""
    dt = chip["dt"] * brian2.second
    clock = brian2.Clock(dt=dt)

    def quantity(value: Any, unit: str) -> Any:
        for name in unit.split("*") if unit != "1" else ():
            value = value * getattr(brian2, name)
        return value

    def constants(named: dict[str, Any]) -> dict[str, Any]:
        return {name: quantity(*value) for name, value in named.items()}

    def refractory(period: Any) -> Any:
        return period * brian2.second if isinstance(period, float) and period else period or False

    groups: list[Any] = []
    for layer in chip["layers"]:
        group = brian2.NeuronGroup(
            layer["size"],
            layer["model"],
            threshold=layer["threshold"],
            reset=layer["reset"],
            refractory=refractory(layer["refractory"]),
            method="euler",
            namespace=constants(layer["constants"]),
            clock=clock,
            name=layer["name"],
        )
        for name, (values, unit) in layer["arrays"].items():
            setattr(group, name, quantity(np.asarray(values, dtype=np.float64), unit))
        if layer["step"]:
            group.run_regularly(layer["step"], clock=clock, when="start")
        groups.append(group)
    synapses: list[Any] = []
    for wires in chip["synapses"]:
        connected = brian2.Synapses(
            groups[wires["source"]],
            groups[wires["target"]],
            "weight : 1",
            on_pre=wires["on_pre"],
            delay=wires["delay"] * dt if wires["delay"] else None,
            namespace=constants(wires["constants"]),
            clock=clock,
        )
        connected.connect(i=wires["i"], j=wires["j"])
        connected.weight = wires["w"]
        synapses.append(connected)
    monitors = [
        brian2.SpikeMonitor(
            group, variables=["polarity"] if "polarity" in group.variables else None,
            when="after_resets",
        )
        for group in groups
    ]  # fmt: skip
    network = brian2.Network(*groups, *synapses, *monitors)
    # spikes are delivered after the resets, which would wipe out what just arrived
    network.schedule = ["start", "groups", "thresholds", "resets", "synapses", "end"]
    return network, monitors


def counts(chip: dict[str, Any], monitors: list[Any]) -> list[Any]:
    """Spikes of each neuron of each layer, ON minus OFF, after a run of `chip["steps"]` steps."""
    found = []
    for layer, monitor in zip(chip["layers"], monitors, strict=True):
        signs = np.asarray(monitor.polarity) if "polarity" in monitor.record_variables else None
        found.append(np.bincount(np.asarray(monitor.i), weights=signs, minlength=layer["size"]))
    return found


def outputs(chip: dict[str, Any], found: list[Any]) -> Any:
    """The readout of the mean rates of the last layer, (outputs,)."""
    readout = chip["readout"]
    rates = found[-1] / readout["duration"]
    return rates @ np.asarray(readout["weights"]) + np.asarray(readout["bias"])
