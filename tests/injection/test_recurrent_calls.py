"""Recurrent layers in calls of several steps, packed and folded."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash
from crashsim.errors import SiteError


class Chunks(nn.Module):
    """A recurrent layer that is called with some steps at a time; with masks, step by step."""

    def __init__(self, size):
        super().__init__()
        self.rnn, self.fc, self.size = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2), size

    def forward(self, x, alive=None):
        state, total, size = None, 0, 1 if alive else self.size
        for start in range(0, x.shape[1], size):
            out, state = self.rnn(x[:, start : start + size], state)
            if alive:
                out, state = out * alive(start), state * alive(start)
            total = total + self.fc(out).sum(1)
        return total


def struck_at(space, indices):
    site = space.placements[0].site.name
    return space.at_faults([(site, (i,)) for i in indices]).outputs


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_calls_of_other_lengths_are_the_same_units(size, seeded, randn):
    net, x = seeded(lambda: Chunks(size)), 2 * randn(3, 5, 3)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert space.N == 5
    assert space.placements[0].steps == 5
    alive = torch.tensor([1.0, 0, 1, 0, 1])
    with torch.no_grad():
        expected = net(x, lambda _: alive).numpy()
    assert np.abs(expected - space.clean()).max() > 0.1
    assert struck_at(space, [1, 3]) == pytest.approx(expected, abs=1e-5)


def test_a_window_counts_steps_where_each_call_is_one(seeded, randn):
    net, x = seeded(lambda: Chunks(1)), 2 * randn(3, 5, 3)
    space = FaultSpace(net, x, NeuronCrash(0.1, window=(2, 4)))
    dead = torch.tensor([1.0, 0, 1, 0, 1])
    with torch.no_grad():
        expected = net(x, lambda step: dead if 2 <= step < 4 else torch.ones(5)).numpy()
    assert np.abs(expected - space.clean()).max() > 0.1
    assert struck_at(space, [1, 3]) == pytest.approx(expected, abs=1e-5)
    assert any("each in steps 2 to 3" in line for line in space.plan())


def test_a_window_of_calls_of_several_steps_is_refused(seeded, randn):
    with pytest.raises(SiteError, match="3 calls of several steps"):
        FaultSpace(seeded(lambda: Chunks(2)), randn(3, 5, 3), NeuronCrash(0.1, window=(2, 4)))


class Closed(nn.Module):
    """A recurrent layer whose single steps no fault reaches."""

    def __init__(self, way):
        super().__init__()
        self.rnn, self.fc, self.way = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2), way

    def forward(self, x):
        if self.way == "packed":
            lengths = torch.full((len(x),), x.shape[1])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.fc(self.rnn(packed)[1][0][0])
        if self.way == "folded":  # (B, words, letters, features)
            return self.fc(self.rnn(x.flatten(0, 1))[1][0][0]).view(*x.shape[:2], 2).sum(1)
        return self.fc(self.rnn(x)[0]).sum(1)


@pytest.mark.parametrize("way", ["packed", "folded"])
def test_units_that_no_fault_reaches_step_by_step_are_refused(way, seeded, randn):
    """A mask on what such a layer returns would leave its dead units in its own feedback."""
    net = seeded(lambda: Closed(way))
    x = randn(3, 2, 4, 3) if way == "folded" else randn(3, 4, 3)
    with pytest.raises(SiteError, match="'rnn' is a recurrent layer that reads a packed"):
        FaultSpace(net, x, NeuronCrash(0.1))
    assert x[0].numel() == FaultSpace(net, x, NeuronCrash(0.1), "input").N
