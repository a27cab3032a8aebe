"""Fault lists of others, replayed and compared with the same faults made by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, GainNoise, NeuronCrash
from crashsim.errors import ArgumentError, FileError
from crashsim.files.fault_lists import read_fault_list


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.linspace(-1, 1, 20).reshape(5, 4)


def listed(tmp_path, text):
    (tmp_path / "faults.csv").write_text(text)
    return read_fault_list(tmp_path / "faults.csv")


def test_dead_neurons(net, tmp_path):
    faults = listed(tmp_path, "layer,index\n1,0\n1,4\n")
    found = FaultSpace(net, X, NeuronCrash(0.1), "1").at_faults(faults).outputs
    with torch.no_grad():
        hidden = torch.relu(net[0](X))
        hidden[:, [0, 4]] = 0
        np.testing.assert_allclose(found, net[2](hidden), atol=1e-6)


def test_flipped_bits_of_float_words(net, tmp_path):
    """A sign and an exponent's bit of two weights, in one list with spaces, as others write it."""
    text = 'Layer, Index, Bit\n0.weight, "(2, 3)", 31\n2.weight, 1;5, 24\n'
    faults = listed(tmp_path, text)
    assert faults == [("0.weight", (2, 3, 31)), ("2.weight", (1, 5, 24))]
    space = FaultSpace(net, X, BitFlip(1e-3, format="float32"), "weights")
    found = space.at_faults(faults).outputs
    weights = [net[i].weight.detach().numpy().copy() for i in (0, 2)]
    weights[0].view(np.uint32)[2, 3] ^= np.uint32(1 << 31)
    weights[1].view(np.uint32)[1, 5] ^= np.uint32(1 << 24)
    with torch.no_grad():
        hidden = torch.relu(X @ torch.from_numpy(weights[0]).T + net[0].bias)
        wanted = hidden @ torch.from_numpy(weights[1]).T + net[2].bias
        assert (wanted - net(X)).abs().max() > 0.05
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_noise_has_values(net, tmp_path):
    faults = listed(tmp_path, "site,index,bit,value\n1,2,,-0.5\n")
    found = FaultSpace(net, X, GainNoise(0.1), "1").at_faults(faults).outputs
    with torch.no_grad():
        hidden = torch.relu(net[0](X))
        hidden[:, 2] *= 0.5
        np.testing.assert_allclose(found, net[2](hidden), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "columns"),
        ("layer,bit\n1,0\n", "columns"),
        ("layer,index,index\n1,0,0\n", "columns"),
        ("layer,index\n1\n", "line 2"),
        ("layer,index\n1,0,7\n", "line 2"),
        ("layer,index\n1,0\n1,x\n", "line 3"),
        ("layer,index\n1,-1\n", "line 2"),
        ("layer,index,bit\n1,0,-3\n", "bit"),
        ("layer,index,value\n1,0,nan\n", "value"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, told):
    with pytest.raises(FileError, match=told):
        listed(tmp_path, text)


def test_places_that_there_are_not(net, tmp_path):
    space = FaultSpace(net, X, NeuronCrash(0.1), "1")
    for text in ("layer,index\n9,0\n", "layer,index\n1,6\n", "layer,index\n1,0\n1,0\n"):
        with pytest.raises(ArgumentError, match="faults"):
            space.at_faults(listed(tmp_path, text))
    with pytest.raises(FileError, match="faults"):
        read_fault_list(tmp_path / "none.csv")
