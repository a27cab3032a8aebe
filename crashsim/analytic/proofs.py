"""Proofs: certificates, remainders and exact tails, from ``crashsim_theory`` on plain arrays.

They hold for the network in exact arithmetic with the given weights; their own arithmetic is
rounded outward. What the model computes in its own precision differs from that by its rounding.
They need the model as a chain of known layers (``crashsim.model.layers``) and neuron crashes,
of units or of groups; what is read is compared with the model in double precision before anything
is proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import crashsim_theory as theory
import numpy as np
import torch
from crashsim_theory import TheoryError

from crashsim.analytic.first_order import double_precision
from crashsim.analytic.rounding import resolution_of
from crashsim.arrays import Floats
from crashsim.coordinates.placement import check_acts_once, check_independent
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ModelError, NotApplicableError
from crashsim.model import layers as torch_layers
from crashsim.model.graph.untraced import FloatingTypes, parametrised
from crashsim.model.layers import Layer, UnsupportedLayerError, layers_of
from crashsim.model.sites.names import SiteKey
from crashsim.results.estimate import Estimate, Interval, Quantity
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.space import FaultSpace

_SAME = 8.0  # times the rounding that the layers' own intervals allow for
_CRASHED = (0.03, 0.1, 0.3, 0.6, 0.9)  # shares of the coordinates that strike in the comparison
_CELLS = 32_000
_SUMMED = "dynamic programming (by FFT where it takes too long)"
_EXACTLY = "of the network in exact arithmetic"
_CERTIFICATE = f"crash-CROWN, outward rounding; {_EXACTLY}"


@dataclass(frozen=True)
class Provable:
    """A space as the theory package sees it.

    Attributes:
        network: its layers.
        moving: the same without what is added to the outputs in the end. Delta is the same, and is
            not rounded as far as large outputs are.
        faults: its crash coordinates, numbered as in the space.
        inputs: (B, n) flat inputs.
        resolution: relative precision to which an epsilon can be told from an outcome; what is
            within it counts for upper ends, not for lower ones.
        is_linear: the output is linear (affine) in the coordinates.
    """

    network: theory.Network
    moving: theory.Network
    faults: theory.CrashFaults
    inputs: Floats
    resolution: float
    is_linear: bool

    def at(self, b: int) -> Floats:
        """The input of this number, as the network takes it."""
        x: Floats = self.inputs[b].reshape(self.network.nodes[0].shape)
        return x


def provable(space: FaultSpace) -> Provable:
    """The space's layers and faults for proofs.

    Raises:
        NotApplicableError: a layer without a known relaxation, or faults that are no neuron
            crashes; says which.
    """
    check_independent(space.placements, "proofs are")
    for p in space.placements:
        if not (p.fault.zeroes and p.fault.is_binary) or p.site.kind == "parameter":
            raise NotApplicableError(f"proofs are for neuron crashes, not for {p.fault.name}")
    named = parametrised(space.model)
    if named is not None:
        raise NotApplicableError(f"the weight of layer {named!r} is computed (parametrised)")
    wide = double_precision(space)
    if wide.dtype != torch.float64:
        raise NotApplicableError(
            f"the model does not compute the same in torch.float64 as in {space.dtype}"
        )
    try:
        shape = tuple(space.inputs.shape[1:])
        for p in space.placements:
            check_acts_once(p)
        found = layers_of(space.model, space.inputs)
        converted, places = _convert(found)
        network = theory.Network(converted, shape)
        moving = theory.Network([*converted[:-1], _without_bias(converted[-1])], shape)
        faults = _crashes(space, places, network)
    except (UnsupportedLayerError, TheoryError) as error:
        raise NotApplicableError(str(error)) from error
    inputs = space.inputs.double().cpu().numpy().reshape(space.B, -1)
    struck = set(faults.members)
    is_linear = _is_linear(found, struck, places)
    proof = Provable(network, moving, faults, inputs, resolution_of(wide), is_linear)
    _check_types(space)
    _check(space, wide, proof)
    return proof


def _crashes(
    space: FaultSpace, places: Mapping[SiteKey, Any], network: theory.Network
) -> theory.CrashFaults:
    members: dict[Any, Any] = {}
    for p in space.placements:
        place: Any = "input" if p.site.kind == "input" else places.get(p.site.key)
        if place is None or place in members:
            raise UnsupportedLayerError(f"{p.site.name!r} is no layer's output in the traced graph")
        size = network.nodes[network.sites[place]].size
        if int(np.prod(p.site.shape)) != size:
            raise UnsupportedLayerError(f"{p.site.name!r} has {p.site.shape} values, not {size}")
        members[place] = p.fault.by_unit(np.arange(p.start, p.stop), p.site.shape)
    return theory.CrashFaults(space.mean_point, members)


def _without_bias(layer: Any) -> Any:
    if isinstance(layer, theory.Linear | theory.Conv2d):
        return replace(layer, bias=None)
    return layer


def _check_types(space: FaultSpace) -> None:
    """A model may compute in other types than its own, which the layers do not say."""
    with torch.no_grad(), FloatingTypes() as types:
        space.faulty_model.model.outputs(space.examples.part(0, 1).clone())
    if others := types.found - {space.dtype}:
        names = ", ".join(sorted(map(str, others)))
        raise NotApplicableError(f"the model, of {space.dtype}, computes in {names} too")


def _check(space: FaultSpace, wide: FaultSpace, proof: Provable) -> None:
    """Compares the layers with the model itself: every input and output, at many points.

    These are no faults, each share of random ones, all of them, and the mean point. In double
    precision the model must lie where the layers' own rounding allows, and in its own precision
    where that precision's rounding does.
    """
    rng = generator(0, Stream.READING)
    random = rng.random((len(_CRASHED), space.N)) < np.array(_CRASHED)[:, None]
    ends = np.array([[0.0], [1.0]]) * np.ones(space.N)
    e = np.concatenate([ends, random, space.mean_point[None]])
    rows, columns = np.nonzero(e)
    points = Points(len(e), np.zeros(space.N), rows, columns, e[rows, columns])
    coarser = torch.finfo(space.dtype).eps / torch.finfo(torch.float64).eps
    spaces = [(wide, 1.0)] if space.dtype == wide.dtype else [(wide, 1.0), (space, coarser)]
    try:
        outputs = [(model.outputs(points), unit) for model, unit in spaces]
    except ModelError as error:
        raise NotApplicableError(str(error)) from error
    for b in range(space.B):
        low, high = theory.enclosure(proof.network, proof.at(b), proof.faults, e)
        if low.shape[1] != space.K:
            raise NotApplicableError(f"read as layers, it has {low.shape[1]} outputs")
        # Faults are taken out of clean values, whose rounding stays where nothing else is left.
        width = (high - low).max(0)
        for found, unit in outputs:
            off = np.maximum(low - found[:, b], found[:, b] - high) - _SAME * unit * width
            if not (off <= 0).all():
                raise NotApplicableError(
                    "read as layers, the model gives other outputs than itself "
                    f"(input {b}, output {int(off.max(0).argmax())}: by {off.max():.2g})"
                )


def certify(
    space: FaultSpace,
    proof: Provable,
    epsilon: float | None,
    output: int,
    inputs: Sequence[int],
    *,
    classes: bool = True,
) -> dict[tuple[Quantity, int], theory.Certificate]:
    """Certificates by quantity and input: of tails and of class changes.

    Args:
        epsilon: also bound P(|Delta| >= epsilon) of one output.
        output: that output.
        inputs: indices of the inputs; each takes 0.1 to 5 seconds per bound.
        classes: also bound P(class changes), with a bound for every rival.
    """
    found: dict[tuple[Quantity, int], theory.Certificate] = {}
    for b in inputs:
        x = proof.at(b)
        if epsilon is not None:
            found["tail", b] = certify_tail(proof, b, epsilon, output)
        if classes and space.has_classes:
            found["class-change", b] = theory.certify_class(proof.network, x, proof.faults)
    return found


def certify_tail(proof: Provable, b: int, epsilon: float, output: int) -> theory.Certificate:
    """A proved upper bound on P(|Delta| >= epsilon) of one input and output."""
    epsilon *= 1 - proof.resolution
    return theory.certify(proof.moving, proof.at(b), proof.faults, epsilon, output)


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
            mean = min(1.0, float(_mean_up(np.array(list(bounds.values())))))
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


def remainders(space: FaultSpace, proof: Provable) -> Estimates:
    """``remainder``: proved intervals of E Delta and Var Delta around the mean-point estimates.

    Raises:
        NotApplicableError: an activation with a kink, whose curvature has no bound.
    """
    try:
        found = [
            theory.moment_bounds(proof.moving, proof.at(b), proof.faults) for b in range(space.B)
        ]
    except TheoryError as error:
        raise NotApplicableError(
            "an activation with a kink (ReLU, max) has no second derivative to bound; "
            "see certificate"
        ) from error

    def values(quantity: str) -> Interval:
        ends = (quantity, f"{quantity}_low", f"{quantity}_high")
        return Interval(*(np.stack([getattr(one, end) for one in found]) for end in ends))

    around = f"around single-fault differences at the mean point; {_EXACTLY}"
    return _proof("remainder", "mean", values("mean"), f"around F(m) - F(0); {_EXACTLY}") + _proof(
        "remainder", "variance", values("variance"), around
    )


def linear_tails(proof: Provable, epsilon: float, output: int) -> list[Estimate]:
    """``linear-exact``: two-sided brackets where the output is linear in the coordinates.

    Args:
        proof: with an output that is linear.
        epsilon: of the tails.
        output: the output whose tail is bracketed, for every input.
    """
    brackets = [linear_bracket(proof, b, epsilon, output) for b in range(len(proof.inputs))]
    low, high = np.array(brackets).T
    note = f"{_SUMMED}; {_EXACTLY}"
    found = [
        Estimate(
            "linear-exact", "tail", b, output, _middle(low[b], high[b]), float(low[b]),
            float(high[b]), "proof", level=epsilon, note=note,
        )
        for b in range(len(low))
    ]  # fmt: skip
    ends = max(0.0, float(-_mean_up(-low))), min(1.0, float(_mean_up(high)))
    return [
        *found,
        Estimate(
            "linear-exact", "tail", "all", output, _middle(*ends), *ends, "proof",
            level=epsilon, note=note,
        ),
    ]  # fmt: skip


def linear_bracket(proof: Provable, b: int, epsilon: float, output: int) -> tuple[float, float]:
    """Proved (low, high) of P(|Delta| >= epsilon) of one input and output."""
    low, high = (
        theory.certify_linear(proof.moving, proof.at(b), proof.faults, level, output, cells=_CELLS)
        for level in (epsilon * (1 + proof.resolution), epsilon * (1 - proof.resolution))
    )
    return low[0], high[1]


def _mean_up(values: Floats) -> Any:
    """The mean over the first axis, rounded up."""
    mean = values.mean(0)
    room = (len(values) + 4) * 2.0**-52 * np.abs(values).mean(0)
    return np.nextafter(mean + room, np.inf)


def _middle(low: float, high: float) -> float:
    """The geometric mean of a bracket; its upper end where the lower is 0."""
    return float(np.sqrt(low * high)) if low > 0 else float(high)


def _proof(
    method: str, quantity: Any, values: Interval, note: str, level: float | None = None
) -> Estimates:
    pooled = Interval(values.value.mean(0), -_mean_up(-values.low), _mean_up(values.high))
    total = None
    if quantity == "variance":
        room = (values.value.shape[1] + 4) * 2.0**-52  # of the sums, all terms being positive
        low = -_mean_up(-values.low.sum(1) * (1 - room))
        high = _mean_up(values.high.sum(1) * (1 + room))
        total = Interval(np.asarray(pooled.value.sum()), np.asarray(low), np.asarray(high))
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


def _convert(found: Sequence[Layer]) -> tuple[list[Any], dict[SiteKey, Any]]:
    """The layers for ``crashsim_theory.Network``, and where each site went."""
    places: dict[SiteKey, Any] = {}

    def convert(chain: Sequence[Layer], path: tuple[int, ...]) -> list[Any]:
        converted: list[Any] = []
        for layer in chain:
            operation = layer.operation
            if isinstance(operation, torch_layers.Linear):
                converted.append(theory.Flatten())  # does nothing to vectors
            at = (*path, len(converted))
            if isinstance(operation, torch_layers.Residual):
                shortcut = convert(operation.shortcut, (*at, -1))
                converted.append(theory.Residual(convert(operation.branch, at), shortcut))
            else:
                converted.append(_layer(operation))
            if layer.site is not None:
                places[layer.site] = at if len(at) > 1 else at[0]
        return converted

    return convert(found, ()), places


def _layer(operation: Any) -> Any:
    if isinstance(operation, torch_layers.Linear):
        return theory.Linear(operation.weight, operation.bias)
    if isinstance(operation, torch_layers.Conv2d):
        return theory.Conv2d(
            operation.weight, operation.bias, operation.stride, operation.padding,
            operation.dilation, operation.groups,
        )  # fmt: skip
    if isinstance(operation, torch_layers.ChannelScale):
        return theory.ChannelScale(operation.scale, operation.shift)
    if isinstance(operation, torch_layers.Flatten):
        return theory.Flatten()
    if isinstance(operation, torch_layers.AvgPool2d):
        return theory.AvgPool2d(operation.kernel, operation.stride, operation.padding)
    if isinstance(operation, torch_layers.MaxPool2d):
        return theory.MaxPool2d(operation.kernel, operation.stride, operation.padding)
    if operation.name == "leaky_relu":
        return theory.leaky_relu(operation.parameter)
    if operation.name == "elu" and operation.parameter != 1.0:
        raise NotApplicableError(f"proofs know ELU with alpha 1, not {operation.parameter}")
    try:
        return theory.activation(operation.name)
    except TheoryError as error:
        raise NotApplicableError(str(error)) from error


def _is_linear(found: Sequence[Layer], struck: set[Any], places: dict[SiteKey, Any]) -> bool:
    """Whether all faults are of one layer (or the input) and nothing after it is nonlinear."""
    if len(struck) != 1:
        return False
    place = next(iter(struck))
    positions = [i for i, layer in enumerate(found) if layer.site and places[layer.site] == place]
    if place != "input" and not positions:
        return False  # inside a branch
    rest = found[0 if place == "input" else positions[0] + 1 :]
    return all(_is_affine(layer) for layer in _flattened(rest))


def _is_affine(layer: Layer) -> bool:
    return not isinstance(layer.operation, torch_layers.Activation | torch_layers.MaxPool2d)


def _flattened(chain: Sequence[Layer]) -> Iterator[Layer]:
    for layer in chain:
        if isinstance(layer.operation, torch_layers.Residual):
            yield from _flattened(layer.operation.branch)
            yield from _flattened(layer.operation.shortcut)
        else:
            yield layer
