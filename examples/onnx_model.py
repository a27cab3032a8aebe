"""How much do faults harm a network that I only have as an ONNX file?

Writes a small classifier of digits as ONNX, with onnx's own helpers, and reads it back: nodes are
sites by their names, weights are parameters. Needs `pip install "crashsim[onnx]"`.
"""

import argparse
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import crashsim
from crashsim import BitFlip, NeuronCrash
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier


def written(model: nn.Sequential, path: Path) -> None:
    """Writes two linear layers with a ReLU between them as ONNX."""
    nodes, tensors, last = [], [], "image"
    for name, layer in zip(("first", "act", "second"), model, strict=True):
        inputs = [last]
        if isinstance(layer, nn.Linear):
            for part in ("weight", "bias"):
                inputs.append(f"{name}.{part}")
                values = getattr(layer, part).detach().numpy()
                tensors.append(numpy_helper.from_array(values, inputs[-1]))
            nodes.append(helper.make_node("Gemm", inputs, [f"{name}_out"], name=name, transB=1))
        else:
            nodes.append(helper.make_node("Relu", inputs, [f"{name}_out"], name=name))
        last = f"{name}_out"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["examples", 64])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["examples", 10])],
        tensors,
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000, help="Monte Carlo samples")
    parser.add_argument("--out", type=Path, default=Path("digits.onnx"))
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    trained = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    train_classifier(trained, load_data("digits", "train"), Recipe(epochs=options.epochs))
    written(trained, options.out)

    model = crashsim.load_model(str(options.out)).model
    test = load_data("digits", "test")
    print("sites:", ", ".join(site.name for site in crashsim.find_sites(model, test.inputs[:2])))
    rows = []
    for sites, fault in {
        "act": NeuronCrash(p=0.02),
        "weights": BitFlip(p=1e-5, format="float32"),
    }.items():
        score = crashsim.score(
            model, test.inputs, fault, sites=sites, targets=test.targets, samples=options.samples
        )
        print(f"{sites}: {score.verdict}")
        found = score.find("monte-carlo", "accuracy")
        assert found is not None
        rows.append((sites, found.value, found.low, found.high))
    if options.figure:
        draw(rows, options.figure)


def draw(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    """Values with their intervals, one under the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, (_, value, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [at, at], color="tab:blue", lw=2)
        axes.plot(value, at, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("accuracy, mean over chips: 2% of act dead; bits of weights flip, p = 1e-5")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
