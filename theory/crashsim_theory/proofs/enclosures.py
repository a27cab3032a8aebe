"""Intervals that hold a network's outputs at given fault coordinates, rounded outward.

What floating point computes is off by an unknown part of the last digits; what is proved must not
depend on which. Every operation widens its interval by the most that its own rounding can do.
"""

from __future__ import annotations

import numpy as np

from crashsim_theory.arrays import Array, ArrayLike, as_array
from crashsim_theory.networks import CrashFaults, Network
from crashsim_theory.proofs.certificates import masked_network
from crashsim_theory.proofs.crown import UNIT, MaskedNetwork, propagate

TINY = 1e-300  # above what underflow takes away
_ROWS = 2**22  # numbers of the widest node held at once


def enclosure(
    network: Network, x: ArrayLike, faults: CrashFaults, points: ArrayLike
) -> tuple[Array, Array]:
    """[low, high] of F(e) at input x, in real arithmetic, for each point e.

    Args:
        network: compiled layers.
        x: one input.
        faults: crash coordinates; e_i = 1 multiplies the coordinate's neurons by 0, e_i = 0 by 1.
        points: (P, C) coordinates in [0, 1].

    Returns:
        Two arrays (P, K).

    Raises:
        TheoryError: an input or points of the wrong length, or a site that is none.
    """
    masked = masked_network(network, x, faults)
    rows = np.atleast_2d(as_array("points", points))
    step = max(1, _ROWS // max(node.size for node in network.nodes))
    parts = [_at(masked, rows[i : i + step]) for i in range(0, len(rows), step)]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


def _at(masked: MaskedNetwork, points: Array) -> tuple[Array, Array]:
    network = masked.network
    last_use = {parent: i for i, node in enumerate(network.nodes) for parent in node.parents}
    held: dict[int, tuple[Array, Array]] = {}
    bounds = (np.zeros(0), np.zeros(0))
    for index, node in enumerate(network.nodes):
        if not node.parents or not masked.random[index]:
            shape = (len(points), node.size)
            low = np.broadcast_to(masked.clean_low[index], shape)
            high = np.broadcast_to(masked.clean_high[index], shape)
        else:
            low, high = propagate(node.operation, [held[parent] for parent in node.parents])
        for ids in masked.members[index]:
            low, high = _crashed(low, high, np.where(ids >= 0, points[:, ids], 0.0))
        bounds = held[index] = low, high
        for parent in node.parents:
            if last_use[parent] == index:
                held.pop(parent, None)
    return bounds


def _crashed(low: Array, high: Array, struck: Array) -> tuple[Array, Array]:
    """(1 - e) times the interval; exact where e is 0 or 1."""
    kept = 1 - struck
    whole = (struck == 0) | (struck == 1)
    below, above = kept * low, kept * high
    room = np.where(whole, 0.0, 4 * UNIT * np.maximum(np.abs(below), np.abs(above)) + TINY)
    return below - room, above + room
