"""Parts of coordinates: against the index at which a fault of that coordinate alone strikes."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import SECDED, BitFlip, FaultSpace, NeuronCrash, Protected, WeightCrash
from crashsim.coordinates.parts import parts_of
from crashsim.errors import ArgumentError


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 2, 5), nn.ReLU(),
            nn.Linear(5, 2),
        ).eval()  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(1))


def struck(space, column):
    """Site and index at which one coordinate strikes, as samples tell it."""
    p = next(p for p in space.placements if column < p.stop)
    shape = p.fault.coordinate_shape(p.shape)
    index = tuple(int(i) for i in np.unravel_index(column - p.start, shape))
    (strike,) = space.at_faults([(p.site.name, index)]).faults
    return strike.site, strike.index


def labels(space, by):
    parts = parts_of(space.placements, by)
    found = parts.of(np.arange(space.N))
    per_placement = [parts.of_placement(i) for i in range(len(space.placements))]
    assert (found == np.concatenate(per_placement)).all()
    assert np.bincount(found, minlength=len(parts)).tolist() == parts.sizes.tolist()
    for part in range(len(parts)):
        assert (parts.coordinates(part) == np.flatnonzero(found == part)).all()
    return [tuple(parts.label(part).values()) for part in found.tolist()]


def test_bits_of_weights(net, x):
    space = FaultSpace(net, x, BitFlip(1e-3, format="float16"), "weights")
    by = ("layer", "bit", "field", "channel", "word", "row", "column", "tile:7", "tile:2x5")
    found = labels(space, by)
    shapes = {name: tuple(w.shape) for name, w in net.named_parameters()}
    for column in range(0, space.N, 7):
        site, (*at, bit) = struck(space, column)
        shape = shapes[site]
        flat = int(np.ravel_multi_index(at, shape))
        inner = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        field = "sign" if bit == 15 else "exponent" if bit > 9 else "mantissa"
        row, across = divmod(flat, inner)
        word = at[0] if len(at) == 1 else ";".join(map(str, at))
        tile = f"{row // 2};{across // 5}"
        wanted = (site, bit, field, at[0], word, row, across, flat // 7, tile)
        assert found[column] == wanted


def test_neurons_and_channels(net, x):
    space = FaultSpace(net, x, NeuronCrash(0.1))
    found = labels(space, ("layer", "channel", "neuron", "tile:4"))
    for column in range(space.N):
        site, at = struck(space, column)
        flat = int(np.ravel_multi_index(at, (3, 4, 2))) if len(at) == 3 else at[0]
        name = at[0] if len(at) == 1 else ";".join(map(str, at))
        assert found[column] == (site, at[0], name, flat // 4)
    channels = FaultSpace(net, x, {"1": NeuronCrash(0.1, group="channel")})
    assert labels(channels, "channel") == [(0,), (1,), (2,)]
    assert labels(channels, "tile:16") == [(0,), (0,), (1,)]
    with pytest.raises(ArgumentError, match="spans several"):
        parts_of(channels.placements, "neuron")
    cores = FaultSpace(net, x, {"1": NeuronCrash(0.1, group=4)})
    assert labels(cores, "channel") == [(0,), (0,), (1,), (1,), (2,), (2,)]


def test_what_strikes_a_row_a_column_or_neighbouring_bits(net, x):
    row = FaultSpace(net, x, {"3.weight": BitFlip(1e-3, format="int8", upset="row")})
    assert set(labels(row, ("row", "bit"))) == {(r, b) for r in range(5) for b in range(8)}
    column = FaultSpace(net, x, {"3.weight": BitFlip(1e-3, format="int8", upset="column")})
    assert set(labels(column, "column")) == {(c,) for c in range(24)}
    with pytest.raises(ArgumentError, match="row"):
        parts_of(column.placements, "row")
    pairs = FaultSpace(net, x, {"3.weight": BitFlip(1e-3, format="int8", upset=2)})
    assert labels(pairs, ("bit", "field"))[5:7] == [("5-6", "magnitude"), ("6-7", "sign")]


class Stepped(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])[:, -1]


def test_steps():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Stepped().eval()
    space = FaultSpace(net, x, {"rnn": NeuronCrash(0.1, duration="transient")})
    found = labels(space, ("layer", "step", "neuron", "channel"))
    assert found == [("rnn", t, i, i) for t in range(5) for i in range(4)]
    features = FaultSpace(net, x, {"rnn": NeuronCrash(0.1, group="feature")})
    assert labels(features, "channel") == [(i,) for i in range(4)]
    permanent = FaultSpace(net, x, {"rnn": NeuronCrash(0.1)})
    assert labels(permanent, ("layer", "neuron")) == [("rnn", i) for i in range(4)]
    with pytest.raises(ArgumentError, match="no step"):
        parts_of(permanent.placements, ("layer", "step"))


def test_what_some_faults_have_not(net, x):
    faults = {"1": NeuronCrash(0.1), "5.weight": BitFlip(0.1, format="int8"), "3.*": WeightCrash(1)}
    found = labels(FaultSpace(net, x, faults), ("fault", "bit"))
    bits = {("bit-flip", bit) for bit in range(8)}
    assert set(found) == bits | {("neuron-crash", None), ("weight-crash", None)}


def test_words_behind_an_error_correcting_code_have_layers_alone(net, x):
    protected = Protected(net, [SECDED(sites="3.weight")])
    space = FaultSpace(protected, x, {"*3.weight": BitFlip(0.01, format="int8")})
    (placement,) = space.placements
    assert set(labels(space, "layer")) == {(placement.site.name,)}
    for name in ("bit", "word", "row", "tile:8"):
        with pytest.raises(ArgumentError):
            parts_of(space.placements, name)


@pytest.mark.parametrize("by", ["", (), "layer,layer", "layers", "tile:0", 3, ("layer", 3)])
def test_names_that_make_no_sense(net, x, by):
    with pytest.raises(ArgumentError, match="by"):
        parts_of(FaultSpace(net, x, WeightCrash(0.1), "weights").placements, by)
