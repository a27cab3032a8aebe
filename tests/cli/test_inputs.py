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


FRAMES = """
import torch
from torch import nn


class Frames(nn.Module):
    def __init__(self, width, batch):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)
        self.batch = batch

    def forward(self, x):
        return self.head(self.act(self.first(x))).mean(1 - self.batch)


def made(width, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        return Frames(width, batch).eval()


def small(): return made(5, 0)
def large(): return made(9, 0)
def small_turned(): return made(5, 1)
def large_turned(): return made(9, 1)
"""


def test_models_are_compared_with_time_and_batch_where_they_are_said_to_be(run, tmp_path):
    (tmp_path / "frames.py").write_text(FRAMES)
    x = np.random.default_rng(0).normal(size=(10, 6, 4)).astype("f4")
    np.savez(tmp_path / "x.npz", inputs=x)
    np.savez(tmp_path / "turned.npz", inputs=x.swapaxes(0, 1))

    def compared(ending, *options):
        models = [f"frames.py:{size}{ending}" for size in ("small", "large")]
        code, _, err = run("compare", *models, "--p", "0.1", "--samples", "300", "--limit", "8",
                           "--json", "c.json", *options)  # fmt: skip
        assert code == 0, err
        found = json.loads((tmp_path / "c.json").read_text())["contenders"]
        return [number for each in found for number in _numbers(each)]

    plain = compared("", "--inputs", "x.npz", "--steps-axis", "1")
    turned = compared("_turned", "--inputs", "turned.npz", "--batch-axis", "1", "--steps-axis", "0")
    positions = compared("", "--inputs", "x.npz")
    assert len(plain) > 10
    assert turned == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert positions != pytest.approx(plain, rel=0.1)  # another neuron in each step


def _numbers(plain):
    if isinstance(plain, dict | list):
        parts = plain.values() if isinstance(plain, dict) else plain
        return [number for part in parts for number in _numbers(part)]
    return [plain] if isinstance(plain, float) else []
