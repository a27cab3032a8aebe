"""Proofs: certificates, remainders and exact tails, from ``crashsim_theory`` on plain arrays.

They hold for the network in real arithmetic with the given weights; their own arithmetic is
rounded outward. They need the model as a graph of known layers (``crashsim.layers``) and neuron
crashes, of units or of groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import crashsim_theory as theory
import numpy as np
from crashsim_theory import LinearSurrogate, TheoryError

from crashsim import layers as torch_layers
from crashsim.analytic import of_output
from crashsim.errors import NotApplicableError
from crashsim.estimate import Estimate, Quantity, Values, estimates_of
from crashsim.faults import NeuronCrash, acts_as
from crashsim.layers import Key, Layer, UnsupportedLayerError, layers_of
from crashsim.points import Floats, Points
from crashsim.space import FaultSpace
from crashsim.streams import Stream, generator

_ROUNDED = 1e-9
_SAME = 1e-3  # difference from the model, in single precision, that is still rounding
_CELLS = 32_000
_CERTIFICATE = "crash-CROWN, outward rounding"


@dataclass(frozen=True)
class Provable:
    """A space as the theory package sees it.

    Attributes:
        network: its layers.
        faults: its crash coordinates, numbered as in the space.
        inputs: (B, n) flat inputs.
        is_linear: the output is linear (affine) in the coordinates.
    """

    network: theory.Network
    faults: theory.CrashFaults
    inputs: Floats
    is_linear: bool


def provable(space: FaultSpace) -> Provable:
    """The space's layers and faults for proofs.

    Raises:
        NotApplicableError: a layer without a known relaxation, or faults that are no neuron
            crashes; says which.
    """
    for p in space.placements:
        if not acts_as(p.fault, NeuronCrash):
            raise NotApplicableError(f"proofs are for neuron crashes, not for {p.fault.name}")
    try:
        found = layers_of(space)
        converted, places = _convert(found)
        network = theory.Network(converted, tuple(space.inputs.shape[1:]))
    except (UnsupportedLayerError, TheoryError) as error:
        raise NotApplicableError(str(error)) from error
    members: dict[Any, Any] = {}
    for p in space.placements:
        assert isinstance(p.fault, NeuronCrash)
        key: Key = (p.site.module, p.site.function, p.site.call)
        place = "input" if p.site.kind == "input" else places.get(key)
        if place is None or place in members:
            raise NotApplicableError(f"{p.site.name!r} is no layer's output in the traced graph")
        members[place] = p.fault.expand(np.arange(p.start, p.stop), p.site.shape)
    faults = theory.CrashFaults(space.mean_point, members)
    inputs = space.inputs.double().cpu().numpy().reshape(space.B, -1)
    _check(space, network, faults, inputs)
    return Provable(network, faults, inputs, _is_linear(found, set(members), places))


def _check(
    space: FaultSpace, network: theory.Network, faults: theory.CrashFaults, inputs: Floats
) -> None:
    """Compares the layers with the model itself, clean and under many crashes."""
    rng = generator(0, Stream.READING)
    crashed = (rng.random((3, space.N)) < [[0.0], [0.2], [0.6]]).astype(float)
    rows, columns = np.nonzero(crashed)
    points = Points(3, np.zeros(space.N), rows, columns, np.ones(len(rows)))
    wanted = space.at_input(0).outputs(points)[:, 0]
    scale = 1 + float(np.abs(wanted).max())
    if np.abs(network(inputs[:1], faults, crashed) - wanted).max() > _SAME * scale:
        raise NotApplicableError("traced by torch.fx, the model gives other outputs than itself")


def certify(
    space: FaultSpace,
    proof: Provable,
    epsilon: float | None,
    output: int,
    inputs: Sequence[int],
) -> dict[tuple[Quantity, int], theory.Certificate]:
    """Certificates by quantity and input: of tails and of class changes.

    Args:
        epsilon: also bound P(|Delta| >= epsilon) of one output.
        output: that output.
        inputs: indices of the inputs; each takes 0.1 to 5 seconds per bound.
    """
    found: dict[tuple[Quantity, int], theory.Certificate] = {}
    for b in inputs:
        x = proof.inputs[b].reshape(space.inputs.shape[1:])
        if epsilon is not None:
            found["tail", b] = theory.certify(proof.network, x, proof.faults, epsilon, output)
        if space.K > 1:
            found["class-change", b] = theory.certify_class(proof.network, x, proof.faults)
    return found


def certificates(
    certified: Mapping[tuple[Quantity, int], theory.Certificate],
    epsilon: float | None,
    output: int,
) -> list[Estimate]:
    """``certificate``: the proved upper bounds, for each input and on average."""
    found: list[Estimate] = []
    for quantity in ("tail", "class-change"):
        where = output if quantity == "tail" else "all"
        level = epsilon if quantity == "tail" else None
        bounds = {b: c.probability for (q, b), c in certified.items() if q == quantity}
        for b, bound in bounds.items():
            found.append(_proved("certificate", quantity, b, where, bound, level=level))
        if bounds:
            note = f"{_CERTIFICATE}; average over inputs {list(bounds)}"
            mean = float(np.mean(list(bounds.values())))
            found.append(_proved("certificate", quantity, "all", where, mean, note, level))
    return found


def _proved(
    method: str,
    quantity: Any,
    where: Any,
    output: Any,
    bound: float,
    note: str = _CERTIFICATE,
    level: float | None = None,
) -> Estimate:
    return Estimate(
        method, quantity, where, output, bound, 0.0, bound, "proof", level=level, note=note
    )


def remainders(
    space: FaultSpace, proof: Provable, shift: Floats, surrogate: LinearSurrogate, source: str
) -> list[Estimate]:
    """``remainder``: proved intervals of E Delta and Var Delta around the mean-point estimates.

    Args:
        shift: (B, K) F(m) - F(0), which the mean's remainder is about.
        surrogate: of Delta, which the variance's is about.
        source: the method whose gains it has.

    Raises:
        NotApplicableError: an activation with a kink, whose curvature has no bound.
    """
    kind = "differences" if source == "mean-point-single" else "derivatives"
    mean, low, high = np.empty((3, space.B, space.K))
    deviation = np.sqrt(surrogate.variance)
    for b in range(space.B):
        x = proof.inputs[b].reshape(space.inputs.shape[1:])
        try:
            found = theory.remainder(proof.network, x, proof.faults, kind)  # type: ignore[arg-type]
        except TheoryError as error:
            raise NotApplicableError(
                "an activation with a kink (ReLU, max) has no second derivative to bound; "
                "see certificate"
            ) from error
        mean[b] = found.mean
        low[b], high[b] = found.std_interval(deviation[b])
    bounds = Values(shift, shift - mean, shift + mean)
    squares = Values(surrogate.variance, low**2, high**2)
    return [
        *_proof("remainder", "mean", bounds, "around F(m) - F(0)"),
        *_proof("remainder", "variance", squares, f"around {source}"),
    ]


def linear_tails(surrogate: LinearSurrogate, epsilon: float | None, output: int) -> list[Estimate]:
    """``linear-exact``: two-sided brackets where the output is linear in the coordinates.

    The gains are the model's, computed in double precision; a relative 1e-9 of epsilon is set
    aside for their rounding.

    Args:
        surrogate: (B, K) of Delta, exact as the output is linear.
        epsilon: nothing without.
        output: the output whose tail is bracketed, for every input.
    """
    if epsilon is None:
        return []
    low, high = linear_bracket(of_output(surrogate, output), np.asarray(epsilon))
    found = [
        Estimate(
            "linear-exact", "tail", b, output, _middle(low[b], high[b]), float(low[b]),
            float(high[b]), "proof", level=epsilon, note="dynamic programming",
        )
        for b in range(len(low))
    ]  # fmt: skip
    ends = float(low.mean()), float(high.mean())
    return [
        *found,
        Estimate(
            "linear-exact", "tail", "all", output, _middle(*ends), *ends, "proof",
            level=epsilon, note="dynamic programming",
        ),
    ]  # fmt: skip


def linear_bracket(surrogate: LinearSurrogate, epsilon: Floats) -> tuple[Floats, Floats]:
    """Proved (low, high) of P(|L| >= epsilon), (..., *epsilon.shape), gains rounded."""
    low, _ = theory.linear_exact(surrogate, epsilon * (1 + _ROUNDED), _CELLS)
    _, high = theory.linear_exact(surrogate, epsilon * (1 - _ROUNDED), _CELLS)
    return low, high


def _middle(low: float, high: float) -> float:
    """The geometric mean of a bracket; its upper end where the lower is 0."""
    return float(np.sqrt(low * high)) if low > 0 else float(high)


def _proof(
    method: str, quantity: Any, values: Values, note: str, level: float | None = None
) -> list[Estimate]:
    assert values.low is not None
    assert values.high is not None
    pooled = Values(values.value.mean(0), values.low.mean(0), values.high.mean(0))
    total = None
    if quantity == "variance":
        total = Values(pooled.value.sum(), pooled.low.sum(), pooled.high.sum())  # type: ignore[union-attr]
    return estimates_of(
        method,
        quantity,
        "proof",
        per_input=values,
        pooled=pooled,
        total=total,
        level=level,
        note=note,
    )


def _convert(found: Sequence[Layer]) -> tuple[list[Any], dict[Key, Any]]:
    """The layers for ``crashsim_theory.Network``, and where each site went."""
    places: dict[Key, Any] = {}

    def convert(chain: Sequence[Layer], path: tuple[int, ...]) -> list[Any]:
        converted: list[Any] = []
        for layer in chain:
            operation = layer.operation
            if isinstance(operation, torch_layers.Affine):
                converted.append(theory.Flatten())  # does nothing to vectors
            at = (*path, len(converted))
            if isinstance(operation, torch_layers.Addition):
                long, short = operation.first, operation.second
                if not long:
                    long, short = short, long
                shortcut = convert(short, (*at, -1))
                converted.append(theory.Residual(convert(long, at), shortcut))
            else:
                converted.append(_layer(operation))
            places[layer.site] = at if len(at) > 1 else at[0]
        return converted

    return convert(found, ()), places


def _layer(operation: Any) -> Any:
    if isinstance(operation, torch_layers.Affine):
        return theory.Linear(operation.weight, operation.bias)
    if isinstance(operation, torch_layers.Convolution):
        return theory.Conv2d(
            operation.weight, operation.bias, operation.stride, operation.padding,
            operation.dilation, operation.groups,
        )  # fmt: skip
    if isinstance(operation, torch_layers.ChannelScale):
        return theory.Affine(operation.scale, operation.shift)
    if isinstance(operation, torch_layers.Flat):
        return theory.Flatten()
    if isinstance(operation, torch_layers.Pool):
        kind = theory.AvgPool2d if operation.kind == "average" else theory.MaxPool2d
        return kind(operation.kernel, operation.stride, operation.padding)
    if operation.name == "leaky_relu":
        return theory.leaky_relu(operation.parameter)
    if operation.name == "elu" and operation.parameter != 1.0:
        raise NotApplicableError(f"proofs know ELU with alpha 1, not {operation.parameter}")
    try:
        return theory.activation(operation.name)
    except TheoryError as error:
        raise NotApplicableError(str(error)) from error


def _is_linear(found: Sequence[Layer], struck: set[Any], places: dict[Key, Any]) -> bool:
    """Whether all faults are of one layer (or the input) and nothing after it is nonlinear."""
    if len(struck) != 1:
        return False
    place = next(iter(struck))
    positions = [i for i, layer in enumerate(found) if places[layer.site] == place]
    if place != "input" and not positions:
        return False  # inside a branch
    rest = found[0 if place == "input" else positions[0] + 1 :]
    return all(_is_affine(layer) for layer in _flattened(rest))


def _is_affine(layer: Layer) -> bool:
    operation = layer.operation
    if isinstance(operation, torch_layers.Pool):
        return operation.kind == "average"
    return not isinstance(operation, torch_layers.Nonlinearity)


def _flattened(chain: Sequence[Layer]) -> Iterator[Layer]:
    for layer in chain:
        if isinstance(layer.operation, torch_layers.Addition):
            yield from _flattened(layer.operation.first)
            yield from _flattened(layer.operation.second)
        else:
            yield layer
