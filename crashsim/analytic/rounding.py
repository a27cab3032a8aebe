"""What rounding does to the outputs, so that no number rests on digits that are not there."""

from __future__ import annotations

import numpy as np
import torch

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import CrashsimError
from crashsim.space import FaultSpace

_UNITS = 4.0  # of the last place of an output: its own rounding, and its difference's
_TIMES = 8.0  # what is seen in coarser arithmetic at a few points, to be sure
_MOST = 1e-3  # share of epsilon that rounding may be; the score warns of more
_PROBED = (0.02, 0.1, 0.3, 0.6) * 8  # shares of the coordinates that strike at these points


def resolution_of(space: FaultSpace) -> float:
    """To what relative precision an epsilon can be told from an outcome of the model.

    Weights that are single-precision numbers, in whatever type they are stored, stand for decimal
    numbers that they differ from by so much: an outcome "of 0.7" is 0.69999999.
    """
    weights = [t for t in space.tensors.values() if t.dtype == torch.float64]
    fine = any(bool((t.float().double() != t).any()) for t in weights)
    return float(torch.finfo(torch.float64 if fine else torch.float32).eps)


def least_reaching(space: FaultSpace, epsilon: float) -> float:
    """The least change of an output that counts as one of epsilon, where outputs are rounded.

    Below epsilon by what it cannot be told from, and by some units in the last place of the
    largest output; by a thousandth at most.
    """
    unit = torch.finfo(space.dtype).eps
    room = _UNITS * unit * float(np.abs(space.clean()).max()) + epsilon * resolution_of(space)
    return epsilon - min(room, _MOST * epsilon)


def rounding_of(space: FaultSpace) -> Floats:
    """(B, K) what rounding may do to each output of the model, about.

    At least some units in the last place of the output. In double precision, what single precision
    makes of it at some random points is scaled down: large numbers that cancel inside the model
    leave more rounding than the output shows.
    """
    points = _probes(space)
    # Words make outputs of any size, of which the largest say nothing of the others' rounding.
    outputs = space.clean()[None] if space.strikes_words else space.outcomes(points)
    unit = torch.finfo(space.dtype).eps
    room: Floats = _UNITS * unit * np.where(np.isfinite(outputs), np.abs(outputs), 0.0).max(0)
    if space.dtype != torch.float64 or space.strikes_words or not np.isfinite(outputs).all():
        return room
    try:
        coarse = space.with_dtype(torch.float32)
        off = np.abs(coarse.outputs(points) - outputs).max(0)
    except (CrashsimError, RuntimeError, TypeError):  # its numbers do not fit, or its type is fixed
        return room
    scale = unit / torch.finfo(torch.float32).eps
    most: Floats = np.maximum(room, _TIMES * scale * off)
    return most


def least_rounding(space: FaultSpace) -> tuple[float, float]:
    """What rounding does to an output at least, in double precision and in the model's own."""
    largest = float(np.abs(space.clean()).max())
    units = torch.finfo(torch.float64).eps, torch.finfo(space.dtype).eps
    return _UNITS * units[0] * largest, _UNITS * units[1] * largest


def _probes(space: FaultSpace) -> Points:
    rng = generator(0, Stream.ROUNDING)
    shares = np.array([0.0, 1.0, *_PROBED])
    e: Floats = (rng.random((len(shares), space.N)) < shares[:, None]).astype(np.float64)
    for p in space.placements:
        e[:, p.start : p.stop] *= p.fault.typical_change
    rows, columns = np.nonzero(e)
    return Points(len(e), np.zeros(space.N), rows, columns, e[rows, columns])
