"""Which axis is time, which is the batch, which counts features: found, told, or asked for."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, ModelError, SiteError


class Recurrent(nn.Module):
    """A ReLU before an LSTM and another behind it, in either layout."""

    def __init__(self, batch_first, pools=False):
        super().__init__()
        self.before, self.lstm = nn.Linear(4, 5), nn.LSTM(5, 6, batch_first=batch_first)
        self.behind, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)
        self.act1, self.act2, self.pools = nn.ReLU(), nn.ReLU(), pools

    def forward(self, x, keep1=1.0, keep2=1.0):
        h = self.lstm(self.act1(self.before(x)) * keep1)[0]
        h = self.act2(self.behind(h)) * keep2
        return self.fc(h.mean(1 if self.lstm.batch_first else 0) if self.pools else h)


@pytest.mark.parametrize("batch_first", [True, False])
def test_values_share_the_time_of_a_recurrent_layer(batch_first, seeded, randn):
    net, x = seeded(lambda: Recurrent(batch_first)), randn(3, 7, 4)
    x = x if batch_first else x.movedim(0, 1)
    faults = {"act1": NeuronCrash(0.1), "act2": NeuronCrash(0.1)}
    space = FaultSpace(net, x, faults, batch_axis=0 if batch_first else 1)
    assert [p.shape for p in space.placements] == [(5,), (5,)]
    dead = np.random.default_rng(0).random((5, 10)) < 0.3
    rows, columns = np.nonzero(dead)
    found = space.outputs(Points(5, np.zeros(10), rows, columns, np.ones(len(rows))))
    for row, output in zip(dead, found, strict=True):
        keep = torch.from_numpy(~row).float()
        with torch.no_grad():
            wanted = net(x, keep[:5], keep[5:])
        wanted = wanted if batch_first else wanted.movedim(1, 0)
        assert np.allclose(output, wanted.flatten(1), atol=1e-5)
    assert abs(found - space.clean()).max() > 1e-3


class Permuted(nn.Module):
    """Channels and steps of the same number change places before the LSTM."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv1d(4, 7, 3, padding=1), nn.ReLU()
        self.lstm, self.fc = nn.LSTM(7, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.lstm(self.act(self.conv(x)).transpose(1, 2))[1][0][0])


def test_an_axis_is_not_told_by_its_length(seeded, randn):
    space = FaultSpace(seeded(Permuted), randn(2, 4, 7), {"act": NeuronCrash(0.1)})
    (placement,) = space.placements
    assert placement.site.shape == (7, 7)
    assert placement.site.steps == 1


class Tokens(nn.Module):
    """The same layers at each of T positions, which may be steps, or not."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x, keep=1.0):
        return self.b(self.act(self.a(x)) * keep).mean(1)


@pytest.mark.parametrize("given", [1, {"act": 1}, {"a*": 1}])
def test_steps_are_told(given, seeded, randn):
    net, x = seeded(Tokens), randn(3, 5, 4)
    free, told = FaultSpace(net, x, NeuronCrash(0.1)), FaultSpace(
        net, x, NeuronCrash(0.1), steps_axis=given
    )  # fmt: skip
    assert (free.N, told.N) == (30, 6)
    assert "steps_axis" in " ".join(free.plan())
    assert "in all 5 steps" in " ".join(told.plan())
    found = told.outputs(Points.at(np.eye(6)[2]))[0]
    keep = torch.ones(6)
    keep[2] = 0
    with torch.no_grad():
        assert np.allclose(found, net(x, keep), atol=1e-6)
    one = score(net, x, NeuronCrash(0.1), methods=["exact"], steps_axis=given)
    assert one.coordinates == 6


def test_what_is_no_axis_of_steps_is_refused(seeded, randn):
    net, x = seeded(Tokens), randn(3, 5, 4)
    for given in (0, 3, -1, 1.5, {"nothing": 1}, {"act": 0}, {"act": 5}):
        with pytest.raises(ArgumentError, match="steps_axis"):
            FaultSpace(net, x, NeuronCrash(0.1), steps_axis=given)


def test_a_feature_dies_in_all_positions(seeded, randn):
    net, x = seeded(Tokens), randn(3, 6, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1, group="feature"))
    assert (space.N, space.placements[0].tied) == (6, (0,))
    keep = torch.ones(6)
    keep[4] = 0
    with torch.no_grad():
        assert np.allclose(space.outputs(Points.at(np.eye(6)[4]))[0], net(x, keep), atol=1e-6)
    images = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    )
    x = randn(2, 1, 6, 6)
    by = {g: FaultSpace(images, x, NeuronCrash(0.2, group=g)) for g in ("feature", "channel")}
    points = sample_points(by["feature"].placements, 0, 40)
    assert by["feature"].N == 9
    found = by["feature"].outputs(points)
    assert np.allclose(found, by["channel"].outputs(points), atol=1e-6)
    assert np.allclose(found, by["feature"].faulty_model.outputs(by["feature"].examples, points))
    assert abs(found - by["feature"].clean()).max() > 1e-3


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.act(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2))


def test_the_axis_of_features_is_found_where_the_model_moved_it(seeded, randn):
    space = FaultSpace(
        seeded(ChannelsLast), randn(2, 1, 6, 6), {"act": NeuronCrash(0.1, group="feature")}
    )
    assert space.placements[0].site.shape == (4, 4, 4)
    assert space.placements[0].tied == (0, 1)


class Nobody(nn.Module):
    def forward(self, x):
        return torch.relu(x).flatten(1)


def test_features_that_nothing_shows_are_refused(randn):
    with pytest.raises(SiteError, match="features"):
        FaultSpace(Nobody(), randn(2, 3, 4), {":relu": NeuronCrash(0.1, group="feature")})


def test_another_batch_axis_is_told_and_named(seeded, randn):
    first, second = seeded(lambda: Recurrent(True, True)), seeded(lambda: Recurrent(False, True))
    second.load_state_dict(first.state_dict())
    x = randn(3, 7, 4)
    spaces = (
        FaultSpace(first, x, NeuronCrash(0.1)),
        FaultSpace(second, x.movedim(0, 1), NeuronCrash(0.1), batch_axis=1),
    )
    points = sample_points(spaces[0].placements, 0, 20)
    assert np.allclose(spaces[0].outputs(points), spaces[1].outputs(points), atol=1e-6)
    with pytest.raises(ModelError, match="batch_axis=1"):
        FaultSpace(second, x.movedim(0, 1), NeuronCrash(0.1))
    for given in (-1, "first", {"x": 1}):
        with pytest.raises(ArgumentError, match="batch_axis"):
            FaultSpace(second, x.movedim(0, 1), NeuronCrash(0.1), batch_axis=given)


class Spiking(nn.Module):
    """Many steps in one call, whose spikes its own weights read again, if it is recurrent."""

    def __init__(self, is_recurrent):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(6, 6)) if is_recurrent else None

    def forward(self, currents):
        v, spikes, out = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), []
        for current in currents:
            v = 0.9 * v + current
            if self.weights is not None:
                v = v + spikes @ self.weights
            spikes = (v > 1).float()
            v = v - spikes
            out.append(spikes)
        return torch.stack(out)


class Multi(nn.Module):
    def __init__(self, is_recurrent):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(4, 6), Spiking(is_recurrent), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(self.lif(self.fc1(x).repeat(5, 1, 1))).mean(0)


def test_spikes_fed_back_inside_one_call_are_refused(seeded, randn):
    x = 3 * randn(3, 4)
    space = FaultSpace(seeded(lambda: Multi(False)), x, NeuronCrash(0.1))
    assert [p.shape for p in space.placements] == [(6,)]
    with pytest.raises(SiteError, match="'lif' runs through all steps"):
        FaultSpace(seeded(lambda: Multi(True)), x, NeuronCrash(0.1))
