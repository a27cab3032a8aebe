"""Networks that packages ship: outputs of onnxruntime, and scores. Skipped where none is installed.

The development install brings two of them; ``pip install --no-deps rapidocr-onnxruntime`` the last.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crashsim
from crashsim import CrashsimWarning, NeuronCrash, WeightCrash
from crashsim.files.models import load_model
from crashsim.files.onnx_graphs.reading import read_onnx

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def shipped(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    pytest.skip(f"{package} is not installed, whose {Path(file).name} this reads")


def ran(path: Path, inputs: dict[str, Any]) -> list[Any]:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return list(runtime.InferenceSession(str(path), options).run(None, inputs))


def test_a_file_type_classifier() -> None:
    path = shipped("magika", "models/standard_v3_3/model.onnx")
    sources = sorted(Path(crashsim.__file__).parent.glob("*.py"))[:4]
    texts = [(source.read_bytes() * 9)[:2048] for source in sources]
    x = np.array([list(text) for text in texts], dtype=np.int32)
    network = read_onnx(path)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    wanted = ran(path, {"bytes": x})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (wanted.max(1) > 0.9).all()
    with pytest.warns(CrashsimWarning, match="strike too few times"):
        score = crashsim.score(
            network, torch.from_numpy(x).long()[:1], NeuronCrash(p=1e-5), sites="hidden",
            samples=20, methods=["monte-carlo"],
        )  # fmt: skip
    assert score.find("monte-carlo", "variance") is not None
    names = [site.name for site in crashsim.find_sites(network, torch.from_numpy(x)[:2])]
    assert sum("GELU" in type(m).__name__ for m in network.modules()) == 2, names


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (2, 3, 48, 96)),
        ("ch_PP-OCRv4_det_infer.onnx", (1, 3, 64, 96)),
        ("ch_PP-OCRv4_rec_infer.onnx", (2, 3, 48, 80)),
    ],
)
def test_readers_of_text(file: str, shape: tuple[int, ...]) -> None:
    path = shipped("rapidocr_onnxruntime", f"models/{file}")
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    with torch.no_grad():
        found = read_onnx(path)(torch.from_numpy(x)).numpy()
    wanted = ran(path, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_a_voice_detector() -> None:
    path = shipped("silero_vad", "data/silero_vad_16k_op15.onnx")
    network = load_model(f"{path}:sr=16000,input=?x576,state=0").model
    x = np.random.default_rng(0).normal(size=(3, 576)).astype("f4")
    state, rate = np.zeros((2, 3, 128), "f4"), np.array(16000)
    with torch.no_grad():
        found = network(torch.from_numpy(x))["output"].numpy()
    wanted = ran(path, {"input": x, "state": state, "sr": rate})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    score = crashsim.score(
        network, torch.from_numpy(x), WeightCrash(p=1e-3), sites="weights", readout="output",
        samples=100, methods=["monte-carlo"],
    )  # fmt: skip
    found_variance = score.find("monte-carlo", "variance")
    assert found_variance is not None
    assert found_variance.value > 0
