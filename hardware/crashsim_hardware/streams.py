"""One table of who draws from which of a seed's random numbers, so that no two draw the same.

A seed and an entry of this table are the two words of the key of Philox's generator; the words of
its counter say which part is drawn from: of a layer, of masks and inputs, of a time step.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np

from .arguments import whole

__all__ = ["Stream", "generator"]


@unique
class Stream(IntEnum):
    """What random numbers are for."""

    PHASE = 1  # membranes at the start
    RELEASE = 2  # spikes that are lost at synapses
    READ_NOISE = 3  # of columns of synapses, by step
    DEAD = 100  # neurons, by layer
    STUCK = 200  # neurons, by layer
    DEAD_SYNAPSE = 300  # by projection
    MISMATCH = 400  # of thresholds, by layer
    CORE = 500  # deaths of cores, by layer
    BIT_ERROR = 700  # by projection
    DEAD_INPUT = 800  # input lines
    HELD = 900  # neurons at a rate, by layer
    LEAK = 1000  # factors, by layer
    REFRACTORY = 1100  # steps, by layer
    STUCK_SYNAPSE = 1200  # by projection
    PERTURBED_SYNAPSE = 1300  # by projection
    ROW = 1400  # of crossbars, by projection
    COLUMN = 1500  # of crossbars, by projection
    CELL = 1600  # of conductance, by projection and effect
    OWN_FAULT = 1700  # of a caller's law, by place


def generator(seed: int, stream: Stream, *place: int) -> np.random.Generator:
    """The random numbers of a seed for one purpose, at up to three numbers that tell the place."""
    # The lowest word of the counter is the generator's own; the others say where it starts.
    counter = [0, *reversed(place + (0,) * (3 - len(place)))]
    # As arrays: of a list with a number from 2^63 on, numpy makes floating-point numbers first.
    words = np.array([whole("seed", seed, 0), stream, *counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words[:2], counter=words[2:]))
