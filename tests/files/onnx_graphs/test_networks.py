"""Whole networks from ONNX files: what onnxruntime computes, and what crashsim makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crashsim
from crashsim import BitFlip, NeuronCrash, WeightCrash
from crashsim.errors import ArgumentError, FileError
from crashsim.files.onnx_graphs.reading import read_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def seeded(build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def exported(
    model: nn.Module, x: Tensor, path: Path, *, opset: int = 17, batch: bool = True
) -> Path:
    """Writes a torch model as ONNX, with any number of examples or with that of x."""
    axes = {"x": {0: "n"}, "y": {0: "n"}} if batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes=axes, opset_version=opset,
        )  # fmt: skip
    return path


def ran(path: Path, **inputs: Any) -> list[Any]:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(str(path), options)
    return list(session.run(None, inputs))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = y + nn.functional.silu(self.second(y))
        y = nn.functional.avg_pool2d(y, 2)
        return self.head(y.mean((2, 3)))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens))[:, 0])


class Recalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.again = nn.GRU(12, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.layer(x)[0])[0][:, -1])


class Views(nn.Module):
    """Sizes that depend on the batch, worked out in many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t = x.shape
        y = self.line(x.transpose(1, 2).reshape(b * t, c)).view(b, t, 2, c // 2)
        y = torch.cat([y, y.flip(3)], 3).permute(0, 2, 1, 3).reshape(b, -1)
        return y[:, : y.shape[1] // 2] * torch.ones(b, 1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5),
        nn.Sigmoid(), nn.Linear(5, 3),
    )  # fmt: skip


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)), (2, 4)),
    "convolutional": (convolutional, (2, 1, 8, 8)),
    "residual": (Residual, (2, 3, 12, 12)),
    "recurrent": (Recalls, (2, 7, 5)),
    "views": (Views, (2, 6, 5)),
}


@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_onnxruntimes(name: str, opset: int, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    model = seeded(build).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    path = exported(model, x, tmp_path / "m.onnx", opset=opset)
    network = read_onnx(path)
    for count in (1, 2, 5):
        more = torch.randn((count, *shape[1:]), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            found = network(more).numpy()
        np.testing.assert_allclose(found, ran(path, x=more.numpy())[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found, model(more).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found).max() > 0.01


def test_tokens(tmp_path: Path) -> None:
    model = seeded(Attends).eval()
    tokens = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(1))
    path = exported(model, tokens, tmp_path / "m.onnx")
    network = read_onnx(path)
    more = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = network(x=more).numpy()
    np.testing.assert_allclose(found, ran(path, x=more.numpy())[0], rtol=1e-4, atol=1e-5)
    score, own = (
        crashsim.score(m, more, NeuronCrash(p=0.01), sites="hidden", methods=["taylor"])
        for m in (network, model)
    )
    assert score.find("taylor", "variance").value == pytest.approx(
        own.find("taylor", "variance").value, rel=1e-3
    )


@pytest.mark.parametrize("name", ["dense", "convolutional", "residual", "recurrent"])
def test_a_file_for_one_example_takes_any_number(name: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    model = seeded(build).eval()
    path = exported(model, torch.zeros(1, *shape[1:]), tmp_path / "m.onnx", batch=False)
    network = read_onnx(path)
    more = torch.randn((4, *shape[1:]), generator=torch.Generator().manual_seed(2))
    wanted = np.concatenate([ran(path, x=more[i : i + 1].numpy())[0] for i in range(4)])
    with torch.no_grad():
        np.testing.assert_allclose(network(more).numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", [NeuronCrash(p=0.1), WeightCrash(p=0.05)])
def test_scores_are_those_of_the_torch_model(fault: Any, tmp_path: Path) -> None:
    """Theory, bounds and exact sums find in the file what they find in the model it was made of."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))).eval()
    x = torch.randn((3, 3), generator=torch.Generator().manual_seed(1))
    network = read_onnx(exported(model, x, tmp_path / "m.onnx"))
    sites = "hidden" if isinstance(fault, NeuronCrash) else "weights"
    found, own = (
        crashsim.score(m, x, fault, sites=sites, samples=300, proofs=True) for m in (network, model)
    )
    compared = 0
    for method, quantity in [("exact", "variance"), ("taylor", "variance"),
                             ("b1", "mean"), ("remainder", "mean")]:  # fmt: skip
        theirs = own.find(method, quantity)
        if theirs is None:
            continue
        assert found.find(method, quantity).value == pytest.approx(theirs.value, rel=1e-4), method
        compared += 1
    assert compared >= 2


def test_bits_of_weights(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))).eval()
    x = torch.randn((8, 4), generator=torch.Generator().manual_seed(1))
    network = read_onnx(exported(model, x, tmp_path / "m.onnx"))
    fault = BitFlip(p=1e-3, format="float32")
    found, own = (
        crashsim.vulnerability(m, x, fault, sites="weights", by=("bit",), metric="class-change",
                               seed=0).to_dict()["rows"]
        for m in (network, model)
    )  # fmt: skip
    assert [row["value"] for row in found] == [row["value"] for row in own]
    assert max(row["value"] for row in found) > 0.01


def test_sites_have_the_names_of_nodes(tmp_path: Path) -> None:
    network = read_onnx(hand_made(tmp_path / "m.onnx"))
    names = {site.name for site in crashsim.find_sites(network, torch.ones(2, 4))}
    assert {"/first/MatMul", "act", "second"} <= names
    assert {"/first/MatMul.weight", "/first/MatMul.bias", "second.weight"} <= {
        name for name, _ in network.named_parameters()
    }
    score = crashsim.score(network, torch.ones(2, 4), NeuronCrash(p=0.1), sites="act")
    assert score.find("exact", "variance").value > 0


def test_arithmetic_is_no_neuron(tmp_path: Path) -> None:
    """A normalisation that is written out has a power and a root, which are no sites of neurons."""
    two = onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Pow", ["h", "two"], ["squares"], name="pow"),
        helper.make_node("ReduceMean", ["squares"], ["mean"], axes=[1], name="mean"),
        helper.make_node("Sqrt", ["mean"], ["size"], name="root"),
        helper.make_node("Div", ["h", "size"], ["even"], name="even"),
        helper.make_node("Relu", ["even"], ["r"], name="act"),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="second", transB=1),
    ]
    path = hand_made(
        tmp_path / "m.onnx", nodes=nodes, change=lambda m: m.graph.initializer.append(two)
    )
    sites = crashsim.find_sites(read_onnx(path), torch.ones(2, 4))
    assert {site.name for site in sites if site.kind == "activation"} == {"act"}


@pytest.mark.parametrize("limit", ["Min", "Clip"])
def test_a_limit_far_away_stays(limit: str, tmp_path: Path) -> None:
    """A ReLU that is cut at 20 is no ReLU, though both are the same near zero."""
    held = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in {"zero": 0.0, "twenty": 20.0}.items()
    ]
    ends = ["twenty"] if limit == "Min" else ["zero", "twenty"]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node(limit, ["r", *ends], ["cut"]),
        helper.make_node("Gemm", ["cut", "v", "c"], ["y"], transB=1),
    ]
    path = hand_made(
        tmp_path / "m.onnx", nodes=nodes, change=lambda m: m.graph.initializer.extend(held)
    )
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 50
    with torch.no_grad():
        found = read_onnx(path)(x)
    np.testing.assert_allclose(found.numpy(), ran(path, x=x.numpy())[0], rtol=1e-5, atol=1e-5)


def test_a_bias_of_zero_belongs_to_its_product(tmp_path: Path) -> None:
    """With one output it is one number, with which what follows is the same activation."""
    held = [
        onnx.numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in {"one": np.ones((4, 1)), "none": np.zeros(1)}.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["h"], name="last"),
        helper.make_node("Add", ["h", "none"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["y"], name="act"),
    ]
    path = hand_made(
        tmp_path / "m.onnx", nodes=nodes, change=lambda m: m.graph.initializer.extend(held)
    )
    network = read_onnx(path)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network(x)
    np.testing.assert_allclose(found.numpy(), ran(path, x=x.numpy())[0], rtol=1e-5)
    assert "last.bias" in dict(network.named_parameters())


def test_a_scaled_product_keeps_the_words_of_the_file(tmp_path: Path) -> None:
    """Faults strike what the memory holds, not alpha times that."""
    real, rng = onnx.TensorProto.FLOAT, np.random.default_rng(0)
    weight, bias = (rng.normal(size=size).astype(np.float32) for size in ((4, 3), 3))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", alpha=0.3, beta=2.0)],
        "g",
        [helper.make_tensor_value_info("x", real, ["n", 4])],
        [helper.make_tensor_value_info("y", real, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    path = tmp_path / "scaled.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    network, x = read_onnx(path), torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    found = network(x).detach().numpy()
    np.testing.assert_allclose(found, ran(path, x=x.numpy())[0], rtol=1e-5, atol=1e-6)
    stored = dict(network.named_parameters())["fc.weight"]
    assert torch.equal(stored, torch.from_numpy(weight))
    (site,) = crashsim.FaultSpace(network, x, WeightCrash(p=0.1), "weights").placements
    assert (site.site.name, site.size) == ("fc.weight", 12)


def hand_made(path: Path, **changes: Any) -> Path:
    """x (n, 4) -> 5 ReLUs -> 3 outputs, with weights of a fixed pattern."""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(s).astype(np.float32) for s in ((4, 5), (3, 5)))
    nodes = changes.get("nodes") or [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="/first/MatMul"),
        helper.make_node("Add", ["h", "b"], ["a"], name="/first/Add"),
        helper.make_node("Relu", ["a"], ["r"], name="act"),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="second", transB=1),
    ]
    tensors = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in {"w": w, "b": w[0], "v": v, "c": v[:, 0]}.items()
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", "k"])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if change := changes.get("change"):
        change(model)
    onnx.save(model, str(path))
    return path


def test_an_operator_that_is_not_supported_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], name="the/det")]
    with pytest.raises(FileError, match=r"node 'the/det' \(Det\).*not supported.*path.py:factory"):
        read_onnx(hand_made(tmp_path / "m.onnx", nodes=nodes))


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret"
    inside.mkdir()
    path = hand_made(inside / "m.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    x = torch.ones(2, 4)
    with torch.no_grad():
        np.testing.assert_allclose(read_onnx(path)(x).numpy(), ran(path, x=x.numpy())[0], rtol=1e-5)
    outside.write_bytes((inside / "w.bin").read_bytes())
    (inside / "link").symlink_to(outside)
    for place in ("../secret", str(outside), "link", "..\\secret", "", "sub/../../secret"):
        stored = onnx.load(str(path), load_external_data=False)
        for tensor in stored.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        (inside / "bad.onnx").write_bytes(stored.SerializeToString())
        with pytest.raises(FileError, match="outside the model's folder"):
            read_onnx(inside / "bad.onnx")


def test_a_constant_without_end_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CRASHSIM_FILE_LIMIT", "64MiB")
    size = onnx.numpy_helper.from_array(np.array([2**20, 2**20]), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    path = hand_made(
        tmp_path / "m.onnx", nodes=nodes, change=lambda m: m.graph.initializer.append(size)
    )
    with pytest.raises(FileError, match="would take"):
        read_onnx(path)


def test_inputs_are_checked(tmp_path: Path) -> None:
    network = read_onnx(hand_made(tmp_path / "m.onnx"))
    with pytest.raises(ArgumentError, match=r"\(any, 4\)"):
        network(torch.ones(2, 5))
    with pytest.raises(ArgumentError, match="not those of the graph"):
        network(z=torch.ones(2, 4))
    with pytest.raises(ArgumentError, match="missing"):
        network()


def test_damaged_files_give_a_network_or_a_refusal(tmp_path: Path) -> None:
    """And where onnxruntime takes the file too, its numbers."""
    model = seeded(convolutional).eval()
    content = exported(model, torch.zeros(1, 1, 8, 8), tmp_path / "m.onnx").read_bytes()
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    taken = refused = 0
    bad = tmp_path / "bad.onnx"
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        bad.write_bytes(bytes(damaged[: rng.integers(1, len(content))] if rng.random() < 0.2
                              else damaged))  # fmt: skip
        try:
            network = read_onnx(bad)
            with torch.no_grad():
                found = network(x).numpy()
        except (crashsim.CrashsimError, RuntimeError):
            refused += 1
            continue
        try:
            wanted = ran(bad, x=x.numpy())[0]
        except Exception:
            continue
        taken += 1
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert taken > 20
    assert refused > 20


def test_on_the_command_line(run: Any, tmp_path: Path) -> None:
    hand_made(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(6, 4)).astype("f4"))
    code, _, err = run("score", "m.onnx", "--inputs", "d.npz", "--p", 0.1, "--samples", 200,
                         "--json", "s.json")  # fmt: skip
    assert code == 0, err
    assert crashsim.Score.load(tmp_path / "s.json").find("exact", "variance").value > 0
    code, _, err = run("score", "m.onnx", "--inputs", "d.npz", "--json", "m.onnx")
    assert code == 2
    assert "m.onnx" in err
    code, _, err = run("score", "m.onnx:x", "--inputs", "d.npz")
    assert code == 2
    assert "input=?x576" in err
