"""Files made for a fixed number of examples, read for any number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crashsim.files.onnx_graphs.network import Input, OnnxNetwork
from crashsim.files.onnx_graphs.node import Constant

_SEED = 0
_CLOSE = 1e-4  # of the largest output, by which sums in another order may differ
_LARGEST = 2**24  # numbers of an input that is tried


def of_any_batch(model: Any, constants: Mapping[str, Constant]) -> tuple[int, Any] | None:
    """The number of examples that a model is made for, and the model for any number.

    None where it is for any already, or does not say.
    """
    import onnx

    first = [_first(v) for v in model.graph.input if v.name not in constants]
    if not first or None in first or len(set(first)) != 1 or not first[0]:
        return None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in changed.graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_param = "examples"
    return int(first[0]), changed


def _first(value: Any) -> int | None:
    """The length of the first axis, if it is fixed."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not kind.shape.dim:
        return None
    dim = kind.shape.dim[0]
    return int(dim.dim_value) if dim.HasField("dim_value") else None


def is_free(network: OnnxNetwork, batch: int) -> bool:
    """Whether each example gives what it gives in a batch of the file's own number.

    Tried on numbers of the inputs' shapes; where a shape is not known, nothing is tried and the
    answer is no.
    """
    shapes = [wanted.sizes for wanted in network.inputs]
    if any(s is None or None in s[1:] for s in shapes):
        return False
    generator = torch.Generator().manual_seed(_SEED)
    whole = [_drawn(wanted, 2 * batch, generator) for wanted in network.inputs]
    if any(tensor.numel() > _LARGEST for tensor in whole):
        return False
    with torch.no_grad():
        together = _several(network(*whole))
        apart = [
            _several(network(*(t[start : start + batch] for t in whole))) for start in (0, batch)
        ]
    return all(
        a.shape[:1] == (2 * batch,) and _agree(a, torch.cat(parts))
        for a, *parts in zip(together, *apart, strict=True)
    )


def _several(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def _drawn(wanted: Input, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *(n or 0 for n in (wanted.sizes or ())[1:]))
    if wanted.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(wanted.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(wanted.dtype)


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    largest = float(b.abs().max()) if b.numel() else 0.0
    return bool(((a - b).abs() <= _CLOSE * max(largest, 1e-30)).all())
