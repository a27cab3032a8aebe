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

from .chip import Chip, Physics, Wire, quantise
from .conversion import convert
from .engines.raster import Raster, Spikes, raster
from .engines.running import RunResult, run
from .errors import HardwareError, HardwareWarning
from .faults.chip_faults import (
    ChipFaults,
    sample_core_deaths,
    sample_dead,
    sample_dead_inputs,
    sample_dead_synapses,
    sample_mismatch,
    sample_stuck,
)
from .faults.devices import Device, device, devices, sample_bit_errors, sample_stuck_cells
from .network import AvgPool2d, Conv2d, Flatten, Linear, Network, NeuronLayer, Scale, SumPool2d
from .neurons.stepped_neuron import SteppedNeuron
from .nir import CONVENTIONS, Convention, nir_graph, read_nir, write_nir
from .rate_network import rate_network
from .reference import reference
from .statistics import CrashStatistics, Moment, SpikingGap, crash_statistics, spiking_gap
from .transforms import Conv1d

__all__ = [
    "CONVENTIONS",
    "AvgPool2d",
    "Chip",
    "ChipFaults",
    "Conv1d",
    "Conv2d",
    "Convention",
    "CrashStatistics",
    "Device",
    "Flatten",
    "HardwareError",
    "HardwareWarning",
    "Linear",
    "Moment",
    "Network",
    "NeuronLayer",
    "Physics",
    "Raster",
    "RunResult",
    "Scale",
    "Spikes",
    "SpikingGap",
    "SteppedNeuron",
    "SumPool2d",
    "Wire",
    "convert",
    "crash_statistics",
    "device",
    "devices",
    "nir_graph",
    "quantise",
    "raster",
    "rate_network",
    "read_nir",
    "reference",
    "run",
    "sample_bit_errors",
    "sample_core_deaths",
    "sample_dead",
    "sample_dead_inputs",
    "sample_dead_synapses",
    "sample_mismatch",
    "sample_stuck",
    "sample_stuck_cells",
    "spiking_gap",
    "write_nir",
]
