"""Operations are counted as torch's own counter counts them, and fused layers by their formulas."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import (
    DeQuantStub,
    MinMaxObserver,
    QConfig,
    QuantStub,
    convert,
    prepare,
    quantize_dynamic,
)
from torch.utils.flop_counter import FlopCounterMode

from crashsim.injection.flops import Operations


class Product(nn.Module):
    def forward(self, x):
        return x @ x.transpose(1, 2)


def counted(model, *inputs):
    with torch.no_grad(), Operations() as found:
        model(*inputs)
    return found


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), (5, 6)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 2)), (5, 2, 6, 6)),
    "product": (lambda: Product(), (5, 3, 6)),
}
FUSED = {
    "lstm": (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (5, 3, 6)),
    "gru": (lambda: nn.GRU(6, 4, 2, bidirectional=True), (5, 3, 6)),
    "projected": (lambda: nn.LSTM(6, 4, 2, proj_size=2), (5, 3, 6)),
    "rnn": (lambda: nn.RNN(6, 4), (5, 3, 6)),
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
    assert found.total > 0


@pytest.mark.parametrize("case", FUSED)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_as_computed_by_steps(case):
    """Every weight is multiplied once in each step, for each of 5 x 3 rows."""
    build, shape = FUSED[case]
    with torch.random.fork_rng(devices=[]):
        model = build().eval()
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert counted(model, torch.zeros(shape)).total == 2 * 15 * weights


@pytest.mark.parametrize("length", [3, 7])
def test_attention_whichever_kernel_computes_it(length):
    q, k, v = torch.zeros(5, 2, 3, 4), torch.zeros(5, 2, length, 4), torch.zeros(5, 2, length, 4)

    def by_hand(q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    wanted = counted(by_hand, q, k, v).total
    assert wanted == 2 * (5 * 2 * 3 * length * 4) * 2
    assert counted(F.scaled_dot_product_attention, q, k, v).total == wanted


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    ],
)
def test_layers_on_torchs_fast_path_as_off_it(build):
    with torch.random.fork_rng(devices=[]):
        model = build().eval()
    given = [torch.zeros(5, 3, 8)] * (3 if isinstance(model, nn.MultiheadAttention) else 1)
    with Operations() as slow:  # with gradients, torch computes them layer by layer
        model(*given)
    fast = counted(model, *given)
    assert fast.total == slow.total > 0
    assert fast.calls < slow.calls


def test_a_backward_pass_is_twice_its_forward_pass():
    """The gradients of a layer's input and of its weights, each as much as its output."""
    with torch.random.fork_rng(devices=[]):
        model = nn.LSTM(6, 4)
    x = torch.ones(5, 3, 6, requires_grad=True)
    forward = counted(model, x).total
    with Operations() as both:
        model(x)[0].sum().backward()
    assert both.total == 3 * forward > 0


def test_what_is_written_leaves_views_aside():
    found = counted(lambda x: torch.relu(x.transpose(0, 1)[1:]), torch.ones(4, 3))
    assert (found.calls, found.written) == (1, 8)


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), (5, 6)),
        (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (5, 3, 6)),
        (lambda: nn.GRU(6, 4), (5, 3, 6)),
        (lambda: nn.LSTMCell(6, 4), (5, 6)),
    ],
    ids=["linear", "lstm", "gru", "cell"],
)
def test_layers_of_packed_words_as_those_of_floats(build, shape):
    with torch.random.fork_rng(devices=[]):
        model, x = build(), torch.zeros(shape)
    words = quantize_dynamic(model, {type(m) for m in model.modules()})
    assert counted(words, x).total == counted(model, x).total > 0


@pytest.mark.filterwarnings("ignore")
def test_convolutions_of_packed_words_as_those_of_floats():
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(2, 4, 3, 2), nn.ConvTranspose2d(4, 2, 2)]
        model, x = nn.Sequential(QuantStub(), *layers, DeQuantStub()), torch.randn(5, 2, 6, 6)
    model.qconfig = QConfig(MinMaxObserver, MinMaxObserver.with_args(dtype=torch.qint8))
    prepared = prepare(model.eval())
    prepared(x)
    assert counted(convert(prepared), x).total == counted(model, x).total > 0
