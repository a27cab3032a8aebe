"""Single nodes where onnx's own cases decide nothing, as onnxruntime computes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crashsim.files.onnx_graphs.reading import read_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def drawn(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def saved(path: Path, nodes: Sequence[Any], x: Any, held: dict[str, Any], rank: int) -> Path:
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", FLOAT, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", FLOAT, [None] * rank)],
        [onnx.numpy_helper.from_array(value, name) for name, value in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def check(path: Path, x: Any) -> Any:
    """Holds the network against onnxruntime, and gives it back."""
    wanted = runtime.InferenceSession(str(path)).run(None, {"x": x})[0]
    network = read_onnx(path)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return network


@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_an_output_shape_that_cuts_unequally(auto: str, tmp_path: Path) -> None:
    """One more is cut at the start, but for SAME_UPPER."""
    x = drawn(2, 4, 5, 6)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[10, 12], auto_pad=auto
    )
    check(saved(tmp_path / "m.onnx", [node], x, {"w": drawn(4, 3, 3, 3)}, 4), x)


@pytest.mark.parametrize("mode", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("scale", [0.4, 0.6, 0.7, 1.1, 1.3])
def test_sizes_and_places_are_in_single_precision(scale: float, mode: str, tmp_path: Path) -> None:
    """0.7 times 10 is 7, which it is not quite in double."""
    x = drawn(2, 1, 10, 5)
    for nearest in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        node = helper.make_node(
            "Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode=mode,
            nearest_mode=nearest,
        )  # fmt: skip
        held = {"s": np.array([1, 1, scale, scale], np.float32)}
        check(saved(tmp_path / "m.onnx", [node], x, held, 4), x)


@pytest.mark.parametrize("turned", [(1, 0), (0, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_are_read_both_ways_are_stored_once(
    turned: tuple[int, int], bias: bool, tmp_path: Path
) -> None:
    """A decoder that has its encoder's weights, transposed: a fault strikes both."""
    x, more = drawn(3, 4), ["b"] if bias else []
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="in", transB=turned[0]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w", *more], ["y"], name="out", transB=turned[1]),
    ]
    w = drawn(5, 4) if turned[0] else drawn(4, 5)
    held = {"w": w} | ({"b": drawn(4)} if bias else {})
    network = check(saved(tmp_path / "m.onnx", nodes, x, held, 2), x)
    assert sum(p.numel() for p in network.parameters()) == w.size + 4 * bias

    with torch.no_grad():
        network.get_parameter("in.weight")[1, 2] = 7.0
        found = network(torch.from_numpy(x)).numpy()
    matrix = w.copy() if turned[0] else w.T.copy()
    matrix[1, 2] = 7.0
    wanted = np.maximum(x @ matrix.T, 0) @ matrix + (drawn(4) if bias else 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_clip_at_six_is_a_relu6(tmp_path: Path) -> None:
    x = drawn(4, 3) * 20
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"], name="act")
    held = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    network = check(saved(tmp_path / "m.onnx", [node], x, held, 2), x)
    assert isinstance(network.get_submodule("act"), torch.nn.ReLU6)
