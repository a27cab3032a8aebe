"""Resize and Upsample: images of other sizes, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Made, Node, UnsupportedError
from crashsim.files.onnx_graphs.sizes import Sizes

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric",
                "half_pixel_symmetric")  # fmt: skip
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@whole
def resized(
    x: Tensor, wanted: Any, scales: Any, axes: list[int] | None, how: dict[str, Any]
) -> Any:
    """An array with other sizes.

    Args:
        wanted: the sizes; None where ``scales`` give them.
        scales: factors of the sizes.
        axes: that they are of; None for all.
        how: mode, coordinates, rounding and coefficients, by the names of ONNX's attributes.
    """
    on = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    lengths, factors = _lengths(x, wanted, scales, on)
    for axis, length, factor in zip(on, lengths, factors, strict=True):
        if how["coordinates"] == "align_corners" and abs(factor * x.shape[axis] - length) > 1e-3:
            raise ValueError(
                f"axis {axis} of length {x.shape[axis]} is scaled by {factor} with aligned "
                "corners, which onnx and onnxruntime do in different ways; give sizes instead"
            )
        if length != x.shape[axis] or factor != 1:
            x = _along(x, axis, length, factor, how)
    return x


def _lengths(
    x: Tensor, wanted: Any, scales: Any, on: Sequence[int]
) -> tuple[list[int], list[float]]:
    if wanted is not None:
        lengths = [int(n) for n in (wanted.tolist() if isinstance(wanted, Tensor) else wanted)]
        return lengths, [n / x.shape[a] for n, a in zip(lengths, on, strict=True)]
    factors = [float(f) for f in (scales.tolist() if isinstance(scales, Tensor) else scales)]
    # In single precision, as onnx works out shapes: 0.7 times 10 is 7 there, and less in double.
    products = (np.float32(x.shape[a]) * np.float32(f) for f, a in zip(factors, on, strict=True))
    return [math.floor(n) for n in products], factors


def _places(old: int, new: int, factor: float, coordinates: str) -> list[float]:
    """Where each new place lies among the old ones, in single precision where ties may decide."""
    index, by = np.arange(new, dtype=np.float32), np.float32(factor)
    half = np.float32(0.5)
    if coordinates == "asymmetric":
        return [float(p) for p in index / by]
    if coordinates == "align_corners":
        return [i * (old - 1) / (new - 1) if new > 1 else 0.0 for i in range(new)]
    if coordinates == "pytorch_half_pixel" and new == 1:
        return [0.0]
    if coordinates == "half_pixel_symmetric":
        middle, share = old / 2, new / (factor * old)
        return [middle * (1 - share) + (i + 0.5) / factor - 0.5 for i in range(new)]
    return [float(p) for p in (index + half) / by - half]


def _rounded(place: float, rounding: str) -> int:
    if rounding == "floor":
        return math.floor(place)
    if rounding == "ceil":
        return math.ceil(place)
    if rounding == "round_prefer_ceil":
        return math.floor(place + 0.5)
    return math.ceil(place - 0.5)


def _along(x: Tensor, axis: int, length: int, factor: float, how: dict[str, Any]) -> Tensor:
    old = x.shape[axis]
    places = _places(old, length, factor, how["coordinates"])
    if how["mode"] == "nearest":
        near = [min(max(_rounded(p, how["rounding"]), 0), old - 1) for p in places]
        return x.index_select(axis, torch.tensor(near, dtype=torch.int64))
    reach = (0, 1) if how["mode"] == "linear" else (-1, 0, 1, 2)
    total: Any = 0
    columns = [_weights(p, old, reach, how) for p in places]
    shape = [1] * x.dim()
    shape[axis] = -1
    for i, step in enumerate(reach):
        index = [min(max(math.floor(p) + step, 0), old - 1) for p in places]
        weight = torch.tensor([c[i] for c in columns], dtype=torch.float64).to(x.dtype)
        part = x.index_select(axis, torch.tensor(index, dtype=torch.int64))
        total = total + part * weight.reshape(shape)
    return total  # type: ignore[no-any-return]


def _weights(place: float, old: int, reach: tuple[int, ...], how: dict[str, Any]) -> list[float]:
    """Of the old places around a new one."""
    base = math.floor(place)
    if how["mode"] == "linear":
        rest = min(max(place, 0), old - 1)
        if rest != place:  # beyond the ends, the last one alone
            return [1.0, 0.0]
        return [1 - (place - base), place - base]
    found = [_cubic(abs(place - (base + step)), how["coefficient"]) for step in reach]
    if how["exclude"]:
        found = [w if 0 <= base + step < old else 0.0 for w, step in zip(found, reach, strict=True)]
        found = [w / sum(found) for w in found]
    return found


def _cubic(distance: float, a: float) -> float:
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    if distance < 2:
        return a * (((distance - 5) * distance + 8) * distance - 4)
    return 0.0


def _resize(node: Node) -> Made:
    mode = node.attribute("mode", "nearest")
    how = {
        "mode": mode,
        "coordinates": node.attribute("coordinate_transformation_mode", "half_pixel"),
        "rounding": node.attribute("nearest_mode", "round_prefer_floor"),
        "coefficient": float(node.attribute("cubic_coeff_a", -0.75)),
        "exclude": bool(node.attribute("exclude_outside", 0)),
    }
    if node.operator == "Upsample" or node.version < 11:
        how.update(coordinates="asymmetric", rounding="floor")
    if mode not in ("nearest", "linear", "cubic") or how["coordinates"] not in _COORDINATES:
        raise UnsupportedError(f"its mode {mode!r} with coordinates {how['coordinates']!r}")
    if how["rounding"] not in _NEAREST:
        raise UnsupportedError(f"its nearest_mode {how['rounding']!r} is not known")
    if node.attribute("antialias", 0) or (
        node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise UnsupportedError("antialias, or a ratio that is kept")
    axes = node.attribute("axes")
    scales, wanted = _wanted(node)
    return node.call(
        resized, node.inputs[0], wanted, scales, axes=None if axes is None else list(axes), how=how
    )


def _wanted(node: Node) -> tuple[Any, Any]:
    """Factors, or sizes."""
    if node.operator == "Upsample" and node.version < 9:
        return Sizes.of(list(node.attribute("scales"))), None
    first = 1 if node.operator == "Upsample" or node.version < 11 else 2
    sizes = node.input(3)
    if sizes is not None and not (hasattr(sizes, "tensor") and not sizes.tensor.numel()):
        return None, sizes
    scales = node.constant(first, "scales")
    if scales is None or not scales.numel():
        raise UnsupportedError("neither its sizes nor its scales are given")
    return Sizes.of([float(n) for n in scales.reshape(-1).tolist()]), None


OPERATORS: dict[str, Callable[[Node], Made]] = {"Resize": _resize, "Upsample": _resize}
