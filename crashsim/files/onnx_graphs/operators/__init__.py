"""What the operators of ONNX become: a table of functions from a node to a module, by type."""

from __future__ import annotations

from collections.abc import Callable

from crashsim.files.onnx_graphs.node import Made, Node
from crashsim.files.onnx_graphs.operators import (
    activations,
    arithmetic,
    indexing,
    layers,
    normalisation,
    pooling,
    quantised,
    recurrent,
    reductions,
    resizing,
    shaping,
)

OPERATORS: dict[str, Callable[[Node], Made]] = {
    **arithmetic.OPERATORS,
    **activations.OPERATORS,  # a clip is one of them, where its limits are known
    **indexing.OPERATORS,
    **layers.OPERATORS,
    **normalisation.OPERATORS,
    **pooling.OPERATORS,
    **quantised.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **shaping.OPERATORS,
}
