"""Proved remainders of the mean-point estimates at finite width, for smooth activations.

With k_i = Var e_i and suprema over all partial crashes e in [0, 1]^C:

* Mean (Lindeberg: replace e_i by its mean one coordinate at a time; only the diagonal appears):
  |E F - F(m)| <= 1/2 sum_i k_i sup |F_ii|.
* Standard deviation. Let D_i F = F(e_i = 1) - F(e_i = 0) and gamma_i = E D_i F, the gains of the
  first Hoeffding term of F, whose variance is V_1 = sum k_i gamma_i^2. Then
  V_1 <= Var F <= V_1 + 1/2 sum_{i != j} k_i k_j sup |F_ij|^2,
  because sum_{i<j} k_i k_j E (D_ij F)^2 counts a Hoeffding term of order s exactly s (s - 1) / 2
  times. The gains used by a surrogate differ from gamma_i by at most
  rho_i = 1/2 sum_{j != i} k_j sup |F_ijj|  (differences at the mean point), and by
  (p^2 + (1 - p)^2) / 2 sup |F_ii| more for derivatives at the mean point; so |sd_1 - sd L| is at
  most sqrt(sum k_i rho_i^2).

The suprema come from one forward recursion per node over absolute values, with phi', phi'', phi'''
bounded on the interval that each neuron can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sympy as sp

from crashsim_theory.activations import Activation
from crashsim_theory.arrays import Array, ArrayLike, as_nonnegative
from crashsim_theory.errors import TheoryError
from crashsim_theory.networks import AffineMap, CrashFaults, Network, Sum
from crashsim_theory.proofs.certificates import masked_network
from crashsim_theory.proofs.crown import UNIT, Intervals, MaskedNetwork
from crashsim_theory.proofs.enclosures import TINY, enclosure

ROUNDING = 1 + 1e-9  # all terms are non-negative: far above the relative error of the sums
_COORDINATES = 512  # whose differences are enclosed at a time


@dataclass(frozen=True)
class Remainder:
    """Proved remainders of the mean-point estimates, for every output; shapes (K,).

    Attributes:
        mean: |E F - F(m)| is at most this.
        gains: rho in root mean square, sqrt(sum k_i rho_i^2): |sd_1 - sd L| is at most this.
        interactions: Var F - V_1 lies between 0 and this.
    """

    mean: Array
    gains: Array
    interactions: Array

    def std_interval(self, surrogate_std: ArrayLike) -> tuple[Array, Array]:
        """(low, high) around sd F, given the standard deviation of the linear surrogate."""
        std = as_nonnegative("surrogate_std", surrogate_std)
        low = np.maximum(std * (2 - ROUNDING) - self.gains * ROUNDING, 0.0)
        return low, np.sqrt((std + self.gains) ** 2 + self.interactions) * ROUNDING


def remainder(
    network: Network,
    x: ArrayLike,
    faults: CrashFaults,
    surrogate: Literal["derivatives", "differences"] = "derivatives",
) -> Remainder:
    """Bound what the mean-point estimates neglect at input x.

    Args:
        surrogate: gains dF_i(m) ("derivatives", mean-point taylor) or F(m, e_i = 1) - F(m, e_i = 0)
            ("differences", mean-point single).

    Raises:
        TheoryError: an activation with a kink or a maximum: their second derivative is not
            bounded; use certify.
    """
    if surrogate not in ("derivatives", "differences"):
        raise TheoryError("surrogate", surrogate, 'choose "derivatives" or "differences"')
    masked = masked_network(network, x, faults)
    p = faults.p
    k = p * (1 - p)
    out = _propagate(masked, k)
    rho = out.laplacian_slope / 2
    if surrogate == "derivatives":
        rho = rho + (p**2 + (1 - p) ** 2) / 2 * out.curvature
    return Remainder(
        out.curvature @ k / 2 * ROUNDING + TINY,
        np.sqrt(rho**2 @ k) * ROUNDING + TINY,
        out.mixed**2 @ k / 2 * ROUNDING + TINY,
    )


@dataclass(frozen=True)
class MomentBounds:
    """Proved intervals of E Delta and Var Delta, for every output; shapes (K,).

    Attributes:
        mean: F(m) - F(0), with E Delta in [mean_low, mean_high].
        variance: of the single-fault differences at the mean point, with Var Delta in
            [variance_low, variance_high].
    """

    mean: Array
    mean_low: Array
    mean_high: Array
    variance: Array
    variance_low: Array
    variance_high: Array


def moment_bounds(network: Network, x: ArrayLike, faults: CrashFaults) -> MomentBounds:
    """Proved intervals of the moments of Delta at input x, rounded outward.

    What the remainders are added to is enclosed as well: F(m) - F(0), and the differences
    F(m, e_i = 1) - F(m, e_i = 0), by 2 C passes of interval arithmetic.

    Raises:
        TheoryError: an activation with a kink or a maximum, as for `remainder`.
    """
    rest = remainder(network, x, faults, "differences")
    p = faults.p
    k = p * (1 - p)
    low, high = enclosure(network, x, faults, np.stack([p, np.zeros(len(p))]))
    shift_low = np.nextafter(low[0] - high[1], -np.inf)
    shift_high = np.nextafter(high[0] - low[1], np.inf)
    gains, errors = _differences(network, x, faults)
    variance = gains**2 @ k
    std, unsure = np.sqrt(variance), np.sqrt(errors**2 @ k) * ROUNDING + TINY
    least = np.maximum(std * (2 - ROUNDING) - unsure - rest.gains, 0.0)
    most = std * ROUNDING + unsure + rest.gains
    return MomentBounds(
        shift_low / 2 + shift_high / 2,
        _down(shift_low - rest.mean),
        _up(shift_high + rest.mean),
        variance,
        np.maximum(least**2 * (2 - ROUNDING) - TINY, 0.0),
        (most**2 + rest.interactions) * ROUNDING + TINY,
    )


def _differences(network: Network, x: ArrayLike, faults: CrashFaults) -> tuple[Array, Array]:
    """F(m, e_i = 1) - F(m, e_i = 0) for every coordinate, (K, C), and the most they are off."""
    p = faults.p
    gains, errors = np.empty((2, network.output_size, len(p)))
    for start in range(0, len(p), _COORDINATES):
        columns = np.arange(start, min(start + _COORDINATES, len(p)))
        points = np.repeat(p[np.newaxis], 2 * len(columns), axis=0)
        points[: len(columns)][np.arange(len(columns)), columns] = 1.0
        points[len(columns) :][np.arange(len(columns)), columns] = 0.0
        low, high = enclosure(network, x, faults, points)
        struck, spared = slice(None, len(columns)), slice(len(columns), None)
        below, above = low[struck] - high[spared], high[struck] - low[spared]
        size = np.maximum(np.abs(low), np.abs(high))
        gains[:, columns] = (below / 2 + above / 2).T
        room = 8 * UNIT * (size[struck] + size[spared]) + TINY
        errors[:, columns] = ((above - below) / 2 + room).T
    return gains, errors


def _up(values: Array) -> Array:
    return np.asarray(np.nextafter(values, np.inf))


def _down(values: Array) -> Array:
    return np.asarray(np.nextafter(values, -np.inf))


@dataclass(frozen=True)
class _Derivatives:
    """Bounds on derivatives of every unit u with respect to the coordinates i; each (n, C).

    Attributes:
        slope: |u_i|.
        curvature: |u_ii|.
        mixed: sqrt(sum_j k_j |u_ij|^2).
        laplacian_slope: sum_j k_j |u_ijj|.
    """

    slope: Array
    curvature: Array
    mixed: Array
    laplacian_slope: Array

    def mapped(self, linear: Any) -> _Derivatives:
        parts = (self.slope, self.curvature, self.mixed, self.laplacian_slope)
        return _Derivatives(*(linear(part.T).T for part in parts))

    def __add__(self, other: _Derivatives) -> _Derivatives:
        return _Derivatives(
            self.slope + other.slope,
            self.curvature + other.curvature,
            self.mixed + other.mixed,
            self.laplacian_slope + other.laplacian_slope,
        )


def _propagate(masked: MaskedNetwork, k: Array) -> _Derivatives:
    """Derivative bounds of the outputs, by a forward pass over the nodes."""
    network = masked.network
    intervals = Intervals(list(masked.clean_low), list(masked.clean_high), [], masked.faults.p)
    found: list[_Derivatives] = []
    for index, node in enumerate(network.nodes):
        operation = node.operation
        parents = [found[parent] for parent in node.parents]
        if node.parents:
            intervals.low[index], intervals.high[index] = masked.interval_step(intervals, index)
        if operation is None:
            zero = np.zeros((node.size, len(k)))
            value = _Derivatives(zero, zero, zero, zero)
        elif isinstance(operation, AffineMap):
            value = parents[0].mapped(operation.absolute.linear)
        elif isinstance(operation, Sum):
            value = parents[0] + parents[1]
        elif isinstance(operation, Activation) and operation.smooth:
            hull = masked.hull(intervals, node.parents[0])
            value = _through(operation, parents[0], *hull, k)
        else:
            name = operation.name if isinstance(operation, Activation) else "max-pool"
            raise TheoryError("network", name, "has no second derivative: use certify")
        for ids in masked.members[index]:
            reach = np.maximum(np.abs(intervals.low[index]), np.abs(intervals.high[index]))
            value = _crashed(value, reach, ids, k)
        found.append(value)
    return found[-1]


def _through(phi: Activation, z: _Derivatives, low: Array, high: Array, k: Array) -> _Derivatives:
    """Faa di Bruno's formula for phi(z), term by term in absolute value."""
    l1, l2, l3 = (phi.derivative_bound(order, low, high)[:, None] for order in (1, 2, 3))
    spread = np.sqrt(z.slope**2 @ k)[:, None]
    laplacian = (z.curvature @ k)[:, None]
    # sum_j k_j |z_j| |z_ij| <= spread * mixed by Cauchy-Schwarz.
    return _Derivatives(
        l1 * z.slope,
        l2 * z.slope**2 + l1 * z.curvature,
        l2 * z.slope * spread + l1 * z.mixed,
        l3 * z.slope * spread**2
        + l2 * (2 * spread * z.mixed + z.slope * laplacian)
        + l1 * z.laplacian_slope,
    )


def _crashed(a: _Derivatives, reach: Array, ids: Any, k: Array) -> _Derivatives:
    """(1 - e) a for the neurons with a coordinate e of their own; e may already act on a."""
    struck = np.flatnonzero(ids >= 0)
    own = ids[struck]
    root = np.sqrt(k[own])[:, None]
    slope, curvature = a.slope.copy(), a.curvature.copy()
    mixed, laplacian_slope = a.mixed.copy(), a.laplacian_slope.copy()
    curvature[struck, own] += 2 * a.slope[struck, own]
    # (v_ij): j = own adds |a_i|; i = own adds |a_j| for every j.
    mixed[struck] += root * a.slope[struck]
    mixed[struck, own] += np.sqrt(a.slope[struck] ** 2 @ k)
    # (v_ijj): j = own adds 2 |a_i,own|; i = own adds |a_jj| for every j.
    laplacian_slope[struck] += 2 * root * a.mixed[struck]
    laplacian_slope[struck, own] += a.curvature[struck] @ k
    slope[struck, own] += reach[struck]
    return _Derivatives(slope, curvature, mixed, laplacian_slope)


def symbolic_remainder(layers: int = 1) -> tuple[Any, dict[str, str]]:
    """The remainder of the mean in symbols, for crashes of one layer of n neurons.

    The network after the crashes is `layers` hidden layers and a linear output. The recursion of
    `remainder` is run on symbols: V <- w_l L1 V and S <- w_l (L2 V^2 + L1 S) from V = w_1 h / n.

    Returns:
        The bound on |E F - F(m)| as a sympy expression, and what each symbol means. It is
        proportional to 1 / n: doubling the width of the crashing layer halves it.
    """
    if layers < 1:
        raise TheoryError("layers", layers, "give at least one hidden layer after the crashes")
    p, n, h, l1, l2 = sp.symbols("p n h L1 L2", positive=True)
    w = sp.symbols(f"w_1:{layers + 2}", positive=True)
    slope, curvature = w[0] * h / n, sp.Integer(0)
    for weight in w[1:]:
        slope, curvature = (
            weight * l1 * slope,
            weight * (l2 * slope**2 + l1 * curvature),
        )
    meaning = {
        "p": "crash probability",
        "n": "neurons that may crash",
        "h": "largest |output| of a neuron that may crash",
        "L1": "sup |phi'|",
        "L2": "sup |phi''|",
        "w_1": "n times the largest |weight| leaving the crashing layer",
    } | {
        str(s): f"largest sum of |weights| into a neuron of layer {i + 2}"
        for i, s in enumerate(w[1:])
    }
    return sp.factor(p * (1 - p) * n * curvature / 2), meaning


def doubling_ratio(expression: Any, symbol: str = "n") -> Any:
    """The expression at twice the symbol over its value now ("what if I double the width?")."""
    s = next((one for one in expression.free_symbols if str(one) == symbol), None)
    if s is None:
        names: Sequence[str] = sorted(map(str, expression.free_symbols))
        raise TheoryError("symbol", symbol, f"choose one of {names}")
    return sp.simplify(expression.subs(s, 2 * s) / expression)
