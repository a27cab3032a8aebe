"""Weights that an ONNX file stores as words of int8: its bits are what is flipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crashsim
from crashsim import BitFlip
from crashsim.files.onnx_graphs.reading import read_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper

P = 0.03


def written(path: Path, kind: type[Any], operator: str, *, per_output: bool) -> dict[str, Any]:
    """y = x W, with W in words of some scale and zero point; returns words, scales, zero points."""
    rng = np.random.default_rng(3)
    info = np.iinfo(kind)
    outputs = 2
    words = rng.integers(info.min, info.max, (outputs, 1)).astype(kind)
    scale = np.array([0.02, 0.05] if per_output else 0.03, dtype=np.float32)
    zero = np.array([3, 9] if per_output else 7, dtype=kind)
    stored = words if operator == "Gemm" else np.ascontiguousarray(words.T)
    axis = 0 if operator == "Gemm" else 1
    dequantise = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis)
    product = (
        helper.make_node("Gemm", ["x", "w"], ["y"], name="out", transB=1)
        if operator == "Gemm"
        else helper.make_node("MatMul", ["x", "w"], ["y"], name="out")
    )
    tensors = {"q": stored, "s": scale, "z": zero}
    graph = helper.make_graph(
        [dequantise, product], "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", outputs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return {"words": words[:, 0], "scale": np.broadcast_to(scale, outputs)}


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_output", [False, True])
def test_bits_of_the_file_are_flipped(
    operator: str, kind: type[Any], per_output: bool, tmp_path: Path
) -> None:
    """The variance of x W, by every pattern of the eight bits of each word."""
    stored = written(tmp_path / "m.onnx", kind, operator, per_output=per_output)
    network = read_onnx(tmp_path / "m.onnx")
    x = torch.tensor([[1.5], [-0.5]])
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    with torch.no_grad():
        np.testing.assert_allclose(
            network(x).numpy(), session.run(None, {"x": x.numpy()})[0], rtol=1e-6
        )
    score = crashsim.score(network, x, BitFlip(p=P, bits=8), sites="out.weight", methods=["exact"])
    found = score.find("exact", "variance")
    assert found is not None
    patterns = np.arange(256, dtype=np.uint8)
    bits = np.unpackbits(patterns[:, None], axis=1).sum(1)
    chances = P**bits * (1 - P) ** (8 - bits)
    wanted = 0.0
    for word, scale in zip(stored["words"], stored["scale"], strict=True):
        flipped = (patterns ^ word.view(np.uint8)).view(kind).astype(float)
        moved = (flipped - float(word)) * float(scale)
        variance = chances @ moved**2 - (chances @ moved) ** 2
        wanted += variance * float((x**2).mean())
    assert found.value == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.01
