"""The command line with tokens, several inputs and structured outputs."""

import json

import numpy as np
import pytest

MODEL = """
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, ids, mask=None):
        h = torch.tanh(self.mix(self.embed(ids)))
        if mask is not None:
            h = h * mask[..., None]
        return {"state": h.sum(1), "out": self.head(h.sum(1))}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tagger().eval()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(MODEL)
    ids = np.arange(12).reshape(4, 3) % 9
    np.save(tmp_path / "ids.npy", ids)
    np.savez(tmp_path / "both.npz", ids=ids, mask=np.array([[True, True, False]] * 4))
    np.savez(tmp_path / "wrong.npz", ids=ids, mask=np.ones((3, 3), bool))
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "shape"), [("ids.npy", [3]), ("both.npz", {"ids": [3], "mask": [3]})]
)
def test_tokens_and_several_inputs(run, folder, inputs, shape):
    code, _, err = run(
        "score", "net.py:build", "--inputs", inputs, "--readout", "out", "--p", 0.1,
        "--json", "s.json", "--report", "r.html", "--samples", 300,
    )  # fmt: skip
    assert code == 0, err
    plain = json.loads((folder / "s.json").read_text())
    assert plain["inputs"] == {"source": inputs, "count": 4, "shape": shape}
    assert plain["model"]["readout"] == "out"
    assert [site["name"] for site in plain["sites"]] == [":tanh"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("score", "net.py:build", "--inputs", "ids.npy"), "readout='state'"),
        (("score", "net.py:build", "--inputs", "ids.npy", "--readout", "no"), "readout='no' is no"),
        (
            ("score", "net.py:build", "--inputs", "wrong.npz"),
            "inputs['mask']: shape (3, 3) holds 3",
        ),
        (("compare", "net.py:build", "3-2:relu", "--inputs", "both.npz"), "compared on one array"),
    ],
)
def test_wrong_use_says_what_to_do(run, folder, command, told):
    code, out, err = run(*command)
    assert code == 2
    assert told in " ".join((out + err).split())
    assert "Traceback" not in out + err
