"""Every operator against the cases that onnx itself ships with numbers in and out."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from crashsim.errors import FileError
from crashsim.files.onnx_graphs.operators import OPERATORS
from crashsim.files.onnx_graphs.reading import network_of
from crashsim.files.onnx_graphs.tensors import Tensors

onnx = pytest.importorskip("onnx")
nodes = pytest.importorskip("onnx.backend.test.case.node")

# Of these onnx has no cases, or none that depends on the inputs; models below have them.
OLD = {"GlobalLpPool", "Not", "Shape", "Size", "Upsample"}
# What cases are refused, by a word of the refusal.
REFUSED = (
    "statistics of the batch", "its mask is read", "drops at random", "block_size",
    "its mean or deviation", "peepholes", "which torch does not compute with", "antialias",
    "tf_crop_and_resize", "no tensor of numbers", "words are not of", "sequence_lens",
    "its indices are read", "does not depend on the inputs", "is missing; the file",
    "with ceil_mode", "is of opset", "in the file", "not supported",
)  # fmt: skip


@cache
def cases() -> dict[str, list[Any]]:
    """Those of single nodes, by operator."""
    state = np.random.get_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, which computes the cases' numbers
        collected = nodes.collect_testcases()
    np.random.set_state(state)
    found: dict[str, list[Any]] = defaultdict(list)
    for case in collected:
        if len(case.model.graph.node) == 1 and not case.model.functions:
            found[case.model.graph.node[0].op_type].append(case)
    return found


def numbers(value: Any) -> Any:
    is_stored = isinstance(value, onnx.TensorProto)
    return np.asarray(onnx.numpy_helper.to_array(value) if is_stored else value)


def runs(case: Any) -> Iterator[tuple[Any, dict[str, Any], list[Any]]]:
    """Models with all inputs from outside, and with all but the first in the file."""
    for data in case.data_sets:
        inputs, outputs = (list(map(numbers, part)) for part in data)
        if not all(value.dtype.kind in "fiub" for value in (*inputs, *outputs)):
            continue
        for held in (False, True):
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            given = dict(zip([value.name for value in model.graph.input], inputs, strict=False))
            if held and len(given) > 1:
                first = next(iter(given))
                for name in list(given)[1:]:
                    tensor = onnx.numpy_helper.from_array(np.asarray(given.pop(name)), name)
                    model.graph.initializer.append(tensor)
                kept = [value for value in model.graph.input if value.name == first]
                del model.graph.input[:]
                model.graph.input.extend(kept)
            elif held:
                continue
            yield model, given, outputs


def read(model: Any, name: str) -> tuple[Any, str]:
    """The network, or why there is none."""
    try:
        return network_of(model, name, Tensors(name, None, 2**28)), ""
    except FileError as error:
        return None, str(error)


@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - OLD))
def test_what_onnx_says(operator: str) -> None:
    right = refused = 0
    for case in cases()[operator]:
        for model, given, wanted in runs(case):
            network, refusal = read(model, case.name)
            if network is None:
                assert any(word in refusal for word in REFUSED), f"{case.name}: {refusal}"
                refused += 1
                continue
            if "align_corners" in case.name and "scales" in case.name and "down" in case.name:
                with pytest.raises(ValueError, match="aligned corners"):
                    network(*(torch.from_numpy(np.array(v)) for v in given.values()))
                continue
            with torch.no_grad():
                found = network(*(torch.from_numpy(np.array(v)) for v in given.values()))
            several = list(found.values()) if isinstance(found, dict) else [found]
            for mine, theirs in zip(several, wanted, strict=True):
                assert mine.numpy().dtype == theirs.dtype, case.name
                assert mine.shape == theirs.shape, case.name
                np.testing.assert_allclose(
                    mine.double().numpy(), theirs.astype(float), err_msg=case.name,
                    rtol=case.rtol, atol=max(case.atol, 1e-6),
                )  # fmt: skip
            right += 1
    assert right > 0, f"{refused} refused"
