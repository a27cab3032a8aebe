"""Operations are counted as torch's own counter counts them."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crashsim.injection.flops import Operations


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), (5, 6)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 2)), (5, 2, 6, 6)),
    "lstm": (lambda: nn.LSTM(6, 4, bidirectional=True), (5, 3, 6)),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (5, 3, 6)),
    "attention": (Attention, (5, 2, 3, 4)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", MODELS)
def test_as_many_as_torch_counts(case, inference):
    build, shape = MODELS[case]
    with torch.random.fork_rng(devices=[]):
        model, x = build().eval(), torch.zeros(shape)
    with torch.inference_mode(inference), torch.no_grad():
        model(x)
        with FlopCounterMode(display=False) as wanted:
            model(x)
        with Operations() as found:
            model(x)
    assert found.total == wanted.get_total_flops()
    assert found.total > 0 or case not in ("linear", "conv")  # other kernels have no formula


def test_a_score_does_not_load_the_compiler():
    code = """
import sys
import torch
import crashsim
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
crashsim.score(net, torch.ones(2, 3), faults=crashsim.NeuronCrash(0.1), samples=50)
print("torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
