"""Spiking neuromorphic hardware for trained networks: convert, crash, measure.

>>> import numpy as np
>>> from crashsim_hardware import Linear, Network, NeuronLayer
>>> from crashsim_hardware import convert, crash_statistics, sample_dead
>>> hidden, readout = np.eye(4), np.full((1, 4), 0.5)
>>> layers = [NeuronLayer(Linear(hidden), "relu"), NeuronLayer(Linear(readout), "linear")]
>>> network = Network(layers, (4,))
>>> x = np.array([[0.2, 0.4, 0.6, 0.8]])
>>> chip = convert(network, x, steps=100)
>>> faults = sample_dead(chip, p=0.1, masks=2000, seed=0)
>>> statistics = crash_statistics(chip, x, faults, engine="numpy")
>>> mean, variance = -0.1 * (0.5 * x).sum(), 0.1 * 0.9 * ((0.5 * x) ** 2).sum()
>>> bool(statistics.mean.low.item() < mean < statistics.mean.high.item())
True
>>> bool(statistics.variance.low.item() < variance < statistics.variance.high.item())
True

The package imports numpy and scipy; brian2 is loaded by the first run that uses it.
"""

import warnings
from typing import Any

from .assembly import assemble
from .chip import Chip, Physics, Projection, Spiking, Wire, quantise
from .conversion import convert
from .criticality import SINGLE_FAULTS, Criticality, CriticalityMap, criticality
from .engines.raster import Raster, Spikes, raster
from .engines.running import RunResult, run
from .errors import HardwareError, HardwareWarning
from .events import addresses_of, event_trains
from .export.brian2_export import Brian2Chip, to_brian2, to_script
from .faults.cells import (
    CellEffect,
    Drift,
    IrDrop,
    Levels,
    StuckCells,
    Variation,
    sample_cells,
)
from .faults.chip_faults import ChipFaults
from .faults.devices import Device, Parameter, device, devices, sample_stuck_cells
from .faults.neuron_faults import (
    sample_core_deaths,
    sample_dead,
    sample_dead_inputs,
    sample_held,
    sample_leak_variation,
    sample_mismatch,
    sample_refractory_variation,
    sample_stuck,
)
from .faults.phase_change import PcmDrift, PcmProgramming, phase_change
from .faults.synapse_faults import (
    sample_bit_errors,
    sample_column_deaths,
    sample_dead_synapses,
    sample_perturbed_synapses,
    sample_row_deaths,
    sample_stuck_synapses,
)
from .network import (
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Network,
    NeuronLayer,
    Scale,
    Skip,
    SumPool2d,
)
from .neurons.own_neuron import OwnNeuron
from .neurons.point_neuron import (
    PointNeuron,
    current_based_lif,
    current_to_frequency,
    integrate_and_fire,
    leaky_integrate_and_fire,
)
from .neurons.stepped_neuron import SteppedNeuron
from .nir import CONVENTIONS, Convention, nir_graph, read_nir, write_nir
from .operations import most_operations, synaptic_operations
from .rate_network import rate_network
from .reference import reference
from .spiking_gap import SpikingGap, spiking_gap
from .statistics import CrashStatistics, Moment, crash_statistics
from .transforms import Conv1d

__all__ = [
    "CONVENTIONS",
    "SINGLE_FAULTS",
    "AvgPool2d",
    "Brian2Chip",
    "CellEffect",
    "Chip",
    "ChipFaults",
    "Conv1d",
    "Conv2d",
    "Convention",
    "CrashStatistics",
    "Criticality",
    "CriticalityMap",
    "Device",
    "Drift",
    "Flatten",
    "HardwareError",
    "HardwareWarning",
    "IrDrop",
    "Levels",
    "Linear",
    "MaxPool2d",
    "Moment",
    "Network",
    "NeuronLayer",
    "OwnNeuron",
    "Parameter",
    "PcmDrift",
    "PcmProgramming",
    "Physics",
    "PointNeuron",
    "Projection",
    "Raster",
    "RunResult",
    "Scale",
    "Skip",
    "Spikes",
    "Spiking",
    "SpikingGap",
    "SteppedNeuron",
    "StuckCells",
    "SumPool2d",
    "Variation",
    "Wire",
    "addresses_of",
    "assemble",
    "convert",
    "crash_statistics",
    "criticality",
    "current_based_lif",
    "current_to_frequency",
    "device",
    "devices",
    "event_trains",
    "integrate_and_fire",
    "leaky_integrate_and_fire",
    "most_operations",
    "nir_graph",
    "phase_change",
    "quantise",
    "raster",
    "rate_network",
    "read_nir",
    "reference",
    "run",
    "sample_bit_errors",
    "sample_cells",
    "sample_column_deaths",
    "sample_core_deaths",
    "sample_dead",
    "sample_dead_inputs",
    "sample_dead_synapses",
    "sample_held",
    "sample_leak_variation",
    "sample_mismatch",
    "sample_perturbed_synapses",
    "sample_refractory_variation",
    "sample_row_deaths",
    "sample_stuck",
    "sample_stuck_cells",
    "sample_stuck_synapses",
    "spiking_gap",
    "synaptic_operations",
    "to_brian2",
    "to_script",
    "write_nir",
]

_RENAMED = {
    "AveragePool": "AvgPool2d",
    "Conv": "Conv2d",
    "Dense": "Linear",
    "Layer": "NeuronLayer",
    "SumPool": "SumPool2d",
}


def __getattr__(name: str) -> Any:
    """Classes by the names that they had before."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"crashsim_hardware.{name} is now {_RENAMED[name]}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
