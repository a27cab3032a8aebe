"""Text of a result is the same text in a notebook, where rich would show it and return none."""

import builtins

import pytest
import torch

import crashsim
from crashsim import NeuronCrash


class ZMQInteractiveShell:
    """What Jupyter's shell is called; rich looks for the name."""


@pytest.fixture
def results():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        x = torch.randn(12, 4)
    data, fault = (x, net(x).argmax(-1)), NeuronCrash(p=0.1)
    return [
        crashsim.score(net.eval(), x, fault, samples=200),
        crashsim.sweep(net, data, fault, rates=[0.1], chips=20),
        crashsim.vulnerability(net, x, fault, by=("layer",)),
        crashsim.protect(net, data, fault, budget=0.5, chips=20),
    ]


def test_results_as_text_in_a_notebook(results, monkeypatch, capsys):
    before = [str(result) for result in results]
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert [str(result) for result in results] == before
    assert all(len(text) > 100 for text in before)
    assert capsys.readouterr().out == ""
