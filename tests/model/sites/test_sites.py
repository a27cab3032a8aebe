"""Sites: what is found in which kind of model, and how names select it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import FaultSpace, NeuronCrash, StuckAt, WeightCrash, find_sites
from crashsim.coordinates.points import Points
from crashsim.errors import ModelError, SiteError
from crashsim.model.sites.site import listening, perturbing, select_sites


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.tanh(F.relu(self.first(x))).sigmoid())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.c(self.relu(self.b(self.relu(self.a(x)))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def names(sites, *kinds):
    return [s.name for s in sites if not kinds or s.kind in kinds]


def chosen(model, x, pattern, strikes="neurons"):
    return [s.name for s in select_sites(find_sites(model, x), pattern, strikes)]


def test_a_sequential_net(make_net, watch, randn):
    net = watch(make_net((3, 4, 5, 2)))
    sites = find_sites(net, randn(2, 3))
    assert names(sites, "input") == ["input"]
    assert names(sites, "activation") == ["act1", "act2"]
    assert names(sites, "module") == ["linear1", "linear2", "linear3"]
    assert names(sites, "parameter") == [n for n, _ in net.named_parameters()]
    shapes = {s.name: s.shape for s in sites}
    assert shapes["act2"] == (5,)
    assert shapes["linear2.weight"] == (5, 4)
    assert [s.name for s in sites if s.is_output] == ["linear3"]


def test_a_shared_module_is_a_site_for_each_call(seeded, watch, randn):
    net = watch(seeded(Twice))
    x = randn(2, 3)
    assert chosen(net, x, "hidden") == ["relu", "relu#1"]
    assert chosen(net, x, "relu") == ["relu", "relu#1"]
    assert chosen(net, x, "relu#0") == ["relu"]
    assert chosen(net, x, "relu#1") == ["relu#1"]
    assert chosen(net, x, "relu*") == ["relu", "relu#1"]
    space = FaultSpace(net, x, {"relu#1": NeuronCrash(1.0)})
    # With all of the second layer dead, only the last bias is left.
    outputs = space.outputs(Points.at(space.mean_point))[0]
    np.testing.assert_allclose(outputs, np.tile(net.c.bias.detach(), (2, 1)), atol=1e-6)


def test_functional_activations_are_named_after_their_caller(seeded, watch, randn):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Functional()

        def forward(self, x):
            return torch.relu(self.body(x)) + 1

    net, x = watch(seeded(Outer)), randn(2, 3)
    activations = names(find_sites(net, x), "activation")
    assert activations == ["body:relu", "body:tanh", "body:sigmoid", ":relu"]


def test_activation_modules_are_not_counted_again_as_functions(make_net, randn):
    sites = find_sites(make_net((3, 4, 2), "relu"), randn(1, 3))
    assert names(sites, "activation") == ["act1"]


def test_in_place_relu_and_batch_norm(residual_net, watch, randn):
    net, x = watch(residual_net), randn(3, 1, 4, 4)
    before = x.clone()
    sites = find_sites(net, x)
    assert names(sites, "activation") == ["relu", "relu#1"]
    assert {s.name: s.shape for s in sites}["relu#1"] == (2, 4, 4)
    assert torch.equal(x, before)
    assert chosen(net, x, "hidden") == ["relu", "relu#1"]


def test_a_linear_net_has_linear_neurons(make_net, randn):
    net = make_net((3, 4, 5, 2), "linear")
    assert chosen(net, randn(1, 3), "hidden") == ["linear1", "linear2"]


def test_an_activation_that_is_the_output_is_not_hidden(seeded, randn):
    build = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Sigmoid())  # noqa: E731
    net, x = seeded(build), randn(2, 3)
    assert chosen(net, x, "hidden") == ["1"]
    assert chosen(net, x, "3") == ["3"]  # by its name it can be struck all the same
    flat = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten()))
    with pytest.raises(SiteError):
        chosen(seeded(lambda: nn.Sequential(nn.Tanh())), x, "hidden")
    assert chosen(flat, x, "hidden") == ["0"]


def test_a_transformer_encoder_layer(seeded, watch, randn):
    net, x = watch(seeded(Encoder)), randn(2, 5, 8)
    assert chosen(net, x, "hidden") == ["layer:relu"]
    assert {s.name: s.shape for s in find_sites(net, x)}["layer:relu"] == (5, 16)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert space.N == 5 * 16
    assert abs(space.clean() - net(x).detach().double().numpy()).max() < 1e-5


def test_softmax_is_no_neuron(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)))
    assert chosen(net, randn(1, 3), "hidden") == ["0"]


def test_an_exported_graph_has_the_same_hidden_neurons(seeded, randn, tmp_path):
    net, x = seeded(Twice), randn(2, 3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    graph = program.module()
    own, exported = (FaultSpace(m, x, NeuronCrash(0.1), "hidden") for m in (net, graph))
    assert own.N == exported.N == 9
    assert [p.site.shape for p in exported.placements] == [(4,), (5,)]


@pytest.mark.parametrize(
    ("pattern", "strikes", "wanted"),
    [
        ("hidden", "neurons", ["act1", "act2"]),
        ("hidden", "both", ["act1", "act2"]),
        ("hidden", "weights", ["linear1.weight", "linear2.weight", "linear3.weight"]),
        ("weights", "both", ["linear1.weight", "linear2.weight", "linear3.weight"]),
        ("input", "neurons", ["input"]),
        ("act?", "neurons", ["act1", "act2"]),
        ("*1*", "neurons", ["act1"]),  # activations rather than the layers before them
        ("linear1", "neurons", ["linear1"]),
        ("linear1", "both", ["linear1"]),
        ("linear[12]", "neurons", ["linear1", "linear2"]),
        ("linear1.*", "weights", ["linear1.weight"]),
        ("*.bias", "both", ["linear1.bias", "linear2.bias", "linear3.bias"]),
    ],
)
def test_patterns(make_net, randn, pattern, strikes, wanted):
    assert chosen(make_net((3, 4, 5, 2)), randn(1, 3), pattern, strikes) == wanted


@pytest.mark.parametrize(
    ("pattern", "strikes", "told"),
    [
        ("relu9", "neurons", ["'relu9'", "'act1'", "'input'"]),
        ("", "neurons", ["''", "'act1'"]),
        ("ACT1", "neurons", ["'ACT1'", "'act1'"]),
        ("linear1.weight", "neurons", ["'linear1.weight'", "cannot strike", "'act1'"]),
        ("act1", "weights", ["'act1'", "cannot strike", "'linear1.weight'"]),
        ("input", "weights", ["'input'", "'linear1.weight'"]),
    ],
)
def test_errors_name_what_there_is(make_net, randn, pattern, strikes, told):
    with pytest.raises(SiteError) as raised:
        chosen(make_net((3, 4, 5, 2)), randn(1, 3), pattern, strikes)
    for part in told:
        assert part in str(raised.value)
    assert isinstance(raised.value, LookupError)


def test_faults_of_both_kinds_in_one_mapping(make_net, randn):
    space = FaultSpace(
        make_net((3, 4, 2)),
        randn(1, 3),
        {"act1": NeuronCrash(0.1), "linear2.weight": WeightCrash(0.2), "input": StuckAt(0.3)},
    )
    assert [(p.site.name, p.start, p.stop) for p in space.placements] == [
        ("act1", 0, 4),
        ("linear2.weight", 4, 12),
        ("input", 12, 15),
    ]
    assert space.mean_point.tolist() == [0.1] * 4 + [0.2] * 8 + [0.3] * 3


def test_perturbing_replaces_values_and_leaves_no_hook(make_net, watch, randn):
    net, x = watch(make_net((3, 4, 2))), randn(2, 3)
    site = next(s for s in find_sites(net, x) if s.name == "act1")
    with torch.no_grad():
        with perturbing(net, {site: torch.zeros_like}):
            out = net(x)
        assert torch.equal(out, net.linear2.bias.expand(2, -1))
        assert not torch.equal(net(x), out)


def test_hooks_are_removed_when_the_model_raises(watch, seeded, randn):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            raise RuntimeError(f"no: {self.a(x).shape}")

    net = watch(seeded(Fails))
    with pytest.raises(RuntimeError, match="no:"), listening(net, lambda *_: None):
        net(randn(1, 3))


def test_the_users_own_hooks_stay_and_work(make_net, watch, randn):
    net, x = make_net((3, 4, 2)), randn(2, 3)
    net.act1.register_forward_hook(lambda _, __, out: out * 2)
    watch(net)
    space = FaultSpace(net, x, NeuronCrash(0.5))
    with torch.no_grad():
        assert abs(space.clean() - net(x).double().numpy()).max() < 1e-6


def test_values_without_the_batch_axis_are_no_sites(seeded, randn):
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x).T).T + torch.tanh(self.b.weight).sum())

    assert names(find_sites(seeded(Transposed), randn(2, 3)), "activation") == []


def test_an_export_with_a_fixed_batch_is_refused_with_the_remedy(make_net, randn):
    graph = torch.export.export(make_net((3, 4, 2)), (randn(2, 3),)).module()
    with pytest.raises(ModelError, match="dynamic_shapes"):
        FaultSpace(graph, randn(2, 3), NeuronCrash(0.1))
