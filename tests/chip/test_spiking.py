"""The spiking chip beside the network: the same masks, and the gaps between them."""

import json

import crashsim_hardware as chips
import numpy as np
import pytest
import torch
from torch import nn

from crashsim import (
    CrashsimWarning,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    Score,
    WeightCrash,
    score,
)
from crashsim.chip.spiking import chip_faults, chip_of, run_chip
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ArgumentError
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.model.layers import UnsupportedLayerError
from crashsim.training.classifier import Recipe, train_classifier


@pytest.fixture(scope="module")
def digits():
    """A trained 64-30-20-10 ReLU net and 32 test images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = parse_architecture("64-30-20-10:relu").build()
    train_classifier(net, load_data("digits", "train"), Recipe(epochs=5, seed=0))
    return net.eval(), load_data("digits", "test").first(32).inputs


def faults_of(space, masks, seed=0):
    chip, found = chip_of(space, 20)
    return chip, chip_faults(space, chip, found, masks, seed)


def test_masks_are_those_of_monte_carlo(make_net, randn):
    net, x = make_net((4, 6, 5, 3), "relu"), randn(3, 4)
    space = FaultSpace(net, x, {"act1": NeuronCrash(0.3), "linear3.weight": WeightCrash(0.2)})
    _, broken = faults_of(space, 30, seed=5)
    e = sample_points(space.placements, 5, 30)
    dense = e.dense() != 0
    np.testing.assert_array_equal(broken.dead[0], dense[:, :6])
    assert broken.dead[1] is None
    np.testing.assert_array_equal(broken.dead_synapses[2], dense[:, 6:].reshape(30, 3, 5))
    assert dense.any()


def test_the_network_of_the_chip_breaks_as_the_model_does(make_net, randn):
    net, x = make_net((4, 6, 5, 3), "relu").double(), randn(3, 4).double()
    faults = {"act1": NeuronCrash(0.3), "act2": NeuronCrash(0.2, group=2)}
    space = FaultSpace(net, x, faults)
    chip, broken = faults_of(space, 20)
    outputs = chip.network.forward(x.numpy(), broken.dead).outputs
    points = sample_points(space.placements, 0, 20)
    np.testing.assert_allclose(outputs, space.outputs(points), atol=1e-10)


def test_two_faults_at_one_site(make_net, randn):
    space = FaultSpace(
        make_net((4, 6, 3), "relu"), randn(2, 4),
        {"act1": NeuronCrash(0.3), "act*": NeuronCrash(0.3, group=3)},
    )  # fmt: skip
    _, broken = faults_of(space, 40)
    dense = sample_points(space.placements, 0, 40).dense() != 0
    np.testing.assert_array_equal(broken.dead[0], dense[:, :6] | dense[:, 6:].repeat(3, axis=1))


@pytest.mark.parametrize(
    ("sites", "fault"),
    [
        ("input", GainNoise(0.1)),
        ("linear1", NeuronCrash(0.1)),
    ],
)
def test_what_a_chip_cannot_have(sites, fault, make_net, randn):
    space = FaultSpace(make_net((4, 6, 3), "relu"), randn(2, 4), fault, sites)
    with pytest.raises(ArgumentError, match="the chip cannot have"):
        run_chip(space, masks=3, steps=5, engine="numpy")


@pytest.mark.parametrize("activation", ["gelu"])
def test_layers_a_chip_cannot_have(activation, make_net, randn):
    with pytest.raises(UnsupportedLayerError, match=r"gelu at 'act1' has no spiking neuron"):
        run_chip(FaultSpace(make_net((4, 6, 3), activation), randn(2, 4), NeuronCrash(0.1)))


def test_a_residual_block_of_one_layer(residual_net, randn):
    space = FaultSpace(residual_net, randn(2, 1, 4, 4), NeuronCrash(0.2))
    chip, broken = faults_of(space, 10)
    outputs = chips.reference(chip, space.inputs.double().numpy(), broken).outputs
    points = sample_points(space.placements, 0, 10)
    np.testing.assert_allclose(outputs, space.outputs(points), atol=1e-4)


@pytest.mark.parametrize("arguments", [{"masks": 1}, {"steps": 1}, {"masks": 2.5}, {"steps": True}])
def test_counts_out_of_range(arguments, make_net, randn):
    space = FaultSpace(make_net((4, 6, 3), "relu"), randn(2, 4), NeuronCrash(0.1))
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        run_chip(space, **arguments)


def test_shared_weights_are_not_half_broken(seeded, randn):
    """One module called twice is two projections: crashing one of them would be another fault."""
    shared = nn.Linear

    def build():
        twice = shared(4, 4)
        return nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 2))

    space = FaultSpace(seeded(build), randn(2, 4), {"0.weight": WeightCrash(0.3)})
    with pytest.raises(ArgumentError, match="the chip cannot have"):
        run_chip(space, masks=3, steps=5, engine="numpy")


def test_the_judging_lines_on_digits(digits):
    net, x = digits
    space = FaultSpace(net, x, NeuronCrash(0.05))
    found = run_chip(space, masks=300, engine="numpy")
    facts = found.facts
    assert facts["clean_error"] < 0.03
    assert facts["clean_agreement"] >= 0.95
    assert facts["slope"] == pytest.approx(1, abs=0.03)
    assert facts["variance_ratio"] == pytest.approx(1, abs=0.03)
    assert facts["correlation"] > 0.995
    variance = {e.output: e for e in found.estimates if e.quantity == "variance"}
    total = np.sum(facts["network_variance"], axis=1).mean()
    assert total > 0.1
    assert variance["all"].low <= total <= variance["all"].high
    theory = score(net, x, NeuronCrash(0.05), methods=["mean-point-single"])
    expected = theory.find("mean-point-single", "variance").value
    assert variance["all"].low <= expected <= variance["all"].high
    assert variance["all"].value == pytest.approx(expected, rel=0.25)


def test_the_engines_agree(make_net, randn):
    space = FaultSpace(make_net((4, 6, 3), "relu"), randn(2, 4), NeuronCrash(0.2))
    one, two = (run_chip(space, masks=20, steps=20, engine=e) for e in ("brian2", "numpy"))
    assert one.estimates == two.estimates


def test_devices_run(make_net, randn):
    space = FaultSpace(make_net((4, 6, 3), "relu"), randn(2, 4), NeuronCrash(0.2))
    for name, device in chips.devices().items():
        own = {"rate": 0.1, "core_size": 3}
        values = {p.name: own[p.name] for p in device.parameters if p.value is None}
        chosen = chips.device(name, **values)
        found = run_chip(space, masks=10, steps=20, engine="numpy", device=chosen)
        assert found.facts["device"]["name"] == name
        assert {e.method for e in found.estimates} == {"hardware"}


def test_hardware_in_a_score(make_net, randn):
    net, x = make_net((4, 8, 3), "relu", scale=2.0), randn(4, 4)
    found = score(net, x, NeuronCrash(0.1), methods=["mean-point-single", "hardware"])
    mean, variance = (
        found.find("hardware", q, "all", k) for q, k in (("mean", 0), ("variance", 1))
    )
    assert mean.kind == variance.kind == "statistical"
    assert mean.low <= mean.value <= mean.high
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["hardware"]["masks"] == 400
    assert Score.from_dict(plain).to_dict() == found.to_dict()
    assert "hardware" in found.to_text(80)
    html = found.to_html()
    assert "chip of spiking neurons" in html
    default = score(net, x, NeuronCrash(0.1), samples=2000)
    assert "--hardware" in default.skipped["hardware"]


def test_no_faults_at_all(make_net, randn):
    """Nothing differs: the slopes mean nothing and are no numbers in JSON either."""
    net, x = make_net((4, 6, 3), "relu"), randn(2, 4)
    with pytest.warns(CrashsimWarning, match="only spiking noise"):
        found = score(net, x, NeuronCrash(0.0), methods=["hardware"])
    assert found.find("hardware", "variance").value == pytest.approx(0, abs=1e-12)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_html()


def test_max_pooling_of_a_torch_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 4),
        ).eval()  # fmt: skip
        x = torch.rand(4, 1, 8, 8)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    run = run_chip(space, masks=200, steps=200)
    assert run.facts["variance_ratio"] == pytest.approx(1.0, abs=0.05)
    assert run.facts["slope"] == pytest.approx(1.0, abs=0.05)
    chip, broken = faults_of(space, 20)
    points = sample_points(space.placements, 0, 20)
    outputs = chip.network.forward(x.double().numpy(), broken.dead).outputs
    np.testing.assert_allclose(outputs, space.outputs(points), atol=1e-5)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.short(x))


def test_residual_networks():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), Block(4, 4, 1), Block(4, 6, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        ).eval()  # fmt: skip
        x = torch.rand(3, 1, 8, 8)
    for faults in (
        {"hidden": NeuronCrash(0.1), "weights": WeightCrash(0.05)},
        {"weights": GainNoise(std=0.2)},
    ):
        space = FaultSpace(net, x, faults)
        chip, broken = faults_of(space, 10)
        assert len(chip.wires) == 2
        outputs = chips.reference(chip, x.double().numpy(), broken).outputs
        points = sample_points(space.placements, 0, 10)
        # noisy weights are rounded to the chip's grid
        np.testing.assert_allclose(outputs, space.outputs(points), atol=5e-4)
        assert outputs.std(0).max() > 1e-2
    run = run_chip(FaultSpace(net, x, NeuronCrash(0.1)), masks=200, steps=300)
    assert run.facts["variance_ratio"] == pytest.approx(1.0, abs=0.1)
    assert run.facts["slope"] == pytest.approx(1.0, abs=0.1)


def test_residual_sums_without_neurons(seeded):
    def linear():
        return seeded(lambda: nn.Linear(4, 4), 0)

    class Sum(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(x)

    late = Sum(nn.Sequential(nn.ReLU(), linear()))
    open_end = Sum(nn.Sequential(linear(), nn.ReLU(), linear()))
    for net, told in (
        (nn.Sequential(linear(), late, nn.ReLU()), "starts from a sum"),
        (nn.Sequential(linear(), nn.ReLU(), open_end), "activation right behind it"),
    ):
        model = nn.Sequential(net, linear()).eval()
        with pytest.raises(UnsupportedLayerError, match=told):
            chip_of(FaultSpace(model, torch.ones(2, 4), NeuronCrash(0.1)))
