"""The graph of a model: each node's value and site are those of the running model."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import FaultSpace, NeuronCrash, enumerate_exact
from crashsim.analytic.layer_bounds import layer_bounds
from crashsim.analytic.proofs import provable
from crashsim.model.graph.model_graph import ModelGraph
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.inputs import read_inputs
from crashsim.model.layers import layers_of
from crashsim.model.readout import Readout
from crashsim.model.sites.site import listening
from crashsim.results.estimates import values_of


class Block(nn.Module):
    """Has no site of its own inside but a function's."""

    def __init__(self, n=4):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, x):
        return torch.relu(self.linear(x))


class Twice(nn.Module):
    """One block, called twice."""

    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(self.block(x)))


class Scaled(nn.Module):
    """Needs a number of its input's shape, as attention does; has an argument with a default."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x, mask=None):
        h = self.act(self.first(x)) * (1 / math.sqrt(x.shape[-1]))
        return self.head(h if mask is None else h * mask)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x, mask=None):
        h = self.act(self.first(x))
        return self.head(h if mask is None else h * mask)


class States(nn.Module):
    """Reads the final state of a recurrent layer, twice."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        sequence, state = self.lstm(x)
        return self.head(state[0][0] + state[0][0] * sequence[:, 0] + state[1][0])


class Doubled(nn.ReLU):
    """An activation of one's own, of which the function inside is not a site."""

    def forward(self, x):
        return 2 * F.relu(x)


class Owned(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.head = Doubled(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.act(x)))


class Residuals(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(18, 2)

    def forward(self, x):
        h = self.norm(self.conv(x))
        h += x
        return self.head(self.act(h).flatten(1))


MODELS = {
    "chain": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (2, 4)),
    "twice": (Twice, (2, 4)),
    "scaled": (Scaled, (2, 4)),
    "states": (States, (2, 3, 4)),
    "own activation": (Owned, (2, 4)),
    "residual": (Residuals, (2, 1, 3, 3)),
}


def listened(net, x):
    """The values of all sites of the running model, by key."""
    seen = {}

    def record(key, value):
        if isinstance(value, torch.Tensor):
            seen[key] = value.clone()

    with torch.no_grad(), listening(net, record):
        net(x.clone())
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_values_and_sites_are_those_of_the_running_model(name, seeded, randn, watch):
    make, shape = MODELS[name]
    net = watch(seeded(make).eval())
    x = randn(*shape)
    graph = ModelGraph(net, read_inputs(x[:1]))
    wanted = listened(net, x)
    values, inputs = {}, read_inputs(x)
    compared = 0
    with torch.no_grad():
        for node in graph.nodes:
            values[node] = graph.evaluate(node, values, inputs)
            key = graph.sites.get(node)
            value = values[node][0] if isinstance(values[node], tuple) else values[node]
            if key is not None:
                torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)
                compared += 1
    assert compared >= 2
    torch.testing.assert_close(values[graph.output], net(x), rtol=0, atol=0)
    # What runs and is not in the graph is a module that is entered.
    entered = {key for key in wanted if key not in graph.sites.values()}
    assert all(key.function is None for key in entered)
    assert all(key.module == "" or key.module in ("block", "act") for key in entered)


def test_roles_say_what_calls_what_and_how_often(seeded, randn):
    graph = ModelGraph(seeded(Twice).eval(), read_inputs(randn(1, 4)))
    found = [(r.kind, r.module, r.name, r.call) for r in graph.roles.values()]
    assert [role for role in found if role[0] not in ("input", "output")] == [
        ("module", "block.linear", None, 0),
        ("function", "block", "relu", 0),
        ("module", "block.linear", None, 1),
        ("function", "block", "relu", 1),
        ("module", "head", None, 0),
    ]
    assert found[0][:2] == ("input", "")
    assert found[-1][0] == "output"
    assert [tuple(graph.values[n].shape) for n in graph.nodes[:-1]] == [(2, 4)] * 5 + [(2, 2)]
    assert all(graph.values[n].is_meta for n in graph.nodes[:-1])


def test_an_item_that_is_read_twice_is_one_site(seeded, randn):
    graph = ModelGraph(seeded(States).eval(), read_inputs(randn(1, 3, 4)))
    items = [graph.sites[n].name for n, role in graph.roles.items() if role.kind == "item"]
    assert items == ["lstm:h_n", "lstm:h_n", "lstm:c_n"]


def test_a_function_of_a_module_that_is_called_twice_is_found_by_every_reader(seeded, randn):
    net, x = seeded(Twice).double().eval(), randn(2, 4, dtype=torch.float64)
    sites = {"block:relu#1": NeuronCrash(0.2), "block:relu#0": NeuronCrash(0.1)}
    space = FaultSpace(net, x, sites)
    names = [la.site.name for la in layers_of(space.model, space.inputs) if la.site]
    assert names == ["block.linear", "block:relu", "block.linear#1", "block:relu#1", "head"]
    truth = np.abs(enumerate_exact(net, x, sites).mean)
    assert truth.max() > 0.01
    assert (values_of(layer_bounds(space), "absolute", "mean") >= truth - 1e-12).all()
    assert provable(space).faults is not None
    assert "computed once" in " ".join(space.plan())


@pytest.mark.parametrize("make", [Scaled, Optional])
def test_numbers_of_shapes_and_arguments_with_defaults_are_read(make, seeded, randn):
    """What injection reads, the layer readers read too; they refuse by layer."""
    net, x = seeded(make).double().eval(), randn(2, 4, dtype=torch.float64)
    space = FaultSpace(net, x, NeuronCrash(0.1), "act")
    if make is Optional:
        assert provable(space)
        truth = np.abs(enumerate_exact(net, x, NeuronCrash(0.1), "act").mean)
        found = values_of(layer_bounds(space), "absolute", "mean")
        assert truth.max() > 1e-3
        assert (found >= truth - 1e-12).all()
    else:
        with pytest.raises(TypeError, match=r"mul\(\) is not supported"):
            layers_of(space.model, space.inputs)


def test_one_tensor_of_a_structured_output_is_followed(randn, seeded):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2)

        def forward(self, x):
            return {"logits": self.net(x), "hidden": x}

    net = seeded(Several).eval()
    x = randn(1, 4)
    with pytest.raises(UntraceableError, match="more than one tensor"):
        ModelGraph(net, read_inputs(x))
    graph = ModelGraph(net, read_inputs(x), Readout("logits", ("logits",)))
    assert graph.sites[graph.output].name == "net"


def test_a_value_that_is_overwritten_and_needed_later(seeded, randn):
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            h = self.linear(x)
            part = h[:, :2]
            part.mul_(2)
            return h + x

    net = seeded(Overwrites).eval()
    with pytest.raises(UntraceableError, match=r"mul\(\) overwrites a value"):
        ModelGraph(net, read_inputs(randn(1, 4)))
    space = FaultSpace(net, randn(2, 4), NeuronCrash(0.1), "linear")
    assert "mul() overwrites a value" in space.plan()[0]
