"""Spiking neuromorphic hardware for trained networks: convert, crash, measure.

The package imports numpy alone; brian2 is loaded by the first run that uses it.
"""

from .chip import Chip, Physics, quantise
from .conversion import convert
from .errors import HardwareError, HardwareWarning
from .faults import (
    ChipFaults,
    sample_core_deaths,
    sample_dead,
    sample_dead_synapses,
    sample_mismatch,
    sample_stuck,
)
from .network import AveragePool, Conv, Dense, Flatten, Layer, Network, Scale, SumPool
from .running import RunResult, run

__all__ = [
    "AveragePool",
    "Chip",
    "ChipFaults",
    "Conv",
    "Dense",
    "Flatten",
    "HardwareError",
    "HardwareWarning",
    "Layer",
    "Network",
    "Physics",
    "RunResult",
    "Scale",
    "SumPool",
    "convert",
    "quantise",
    "run",
    "sample_core_deaths",
    "sample_dead",
    "sample_dead_synapses",
    "sample_mismatch",
    "sample_stuck",
]
