"""Layers of torch's quantised networks, against flips of the words that they store."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
    find_sites,
)
from crashsim.errors import ArgumentError, CrashsimWarning, ModelError, SiteError


@pytest.fixture(autouse=True)
def _torch_may_warn():
    with warnings.catch_warnings():  # torch.ao is to move to another package
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", ".*reduce_range.*")
        yield


ENGINE = torch.backends.quantized.engine


def dynamic(net, *kinds):
    return torch.ao.quantization.quantize_dynamic(net, set(kinds), dtype=torch.qint8)


class Steps(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 4)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return h


def static(net, x):
    """Quantised by torch.fx: scales by channel where the engine has them."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    net = quantize_fx.prepare_fx(net.eval(), get_default_qconfig_mapping(ENGINE), x)
    net(x)
    return quantize_fx.convert_fx(net).eval()


class Eager(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.ao.quantization.QuantStub(), nn.Conv2d(1, 2, 2)
        self.act, self.out = nn.ReLU(), torch.ao.quantization.DeQuantStub()

    def forward(self, x):
        return self.out(self.act(self.last(self.first(x)))).flatten(1)


def eager(x):
    net = Eager().eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig(ENGINE)
    net = torch.ao.quantization.prepare(net)
    net(x)
    return torch.ao.quantization.convert(net)


def images(randn, count=2):
    return randn(count, 1, 3, 3)


NETS = {
    "linear": (lambda r: dynamic(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
                                 nn.Linear), lambda r: r(1, 4)),
    "lstm": (lambda r: dynamic(Steps(nn.LSTM(3, 4, 2, batch_first=True)), nn.LSTM),
             lambda r: r(1, 3, 3)),
    "gru": (lambda r: dynamic(Steps(nn.GRU(3, 4, batch_first=True)), nn.GRU),
            lambda r: r(1, 3, 3)),
    "cell": (lambda r: dynamic(Cell(), nn.LSTMCell), lambda r: r(1, 3, 3)),
    "static": (lambda r: static(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
                                r(50, 4)), lambda r: r(3, 4)),
    "convolution": (lambda r: static(nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(),
                                                   nn.Linear(8, 2)), images(r, 50)), images),
    "eager": (lambda r: eager(images(r, 50)), images),
}  # fmt: skip


def words(module):
    """The stored tensors of a layer of torch's own, by name, and how to store others."""
    found = module._weight_bias()
    if not isinstance(found, dict):
        weight, bias = found
        return {"weight": weight}, lambda new: module.set_weight_bias(new["weight"], bias)
    weights, biases = found["weight"], found["bias"]
    if hasattr(module, "_all_weight_values"):
        return weights, lambda new: module.set_weight_bias({**new, **biases})
    return weights, lambda new: module.set_weight_bias({"weight": new, "bias": biases})


def stored(like, ints):
    if like.qscheme() == torch.per_tensor_affine:
        return torch._make_per_tensor_quantized_tensor(ints, like.q_scale(), like.q_zero_point())
    return torch._make_per_channel_quantized_tensor(
        ints, like.q_per_channel_scales(), like.q_per_channel_zero_points(),
        like.q_per_channel_axis(),
    )  # fmt: skip


def brute(net, x, layer, name, change):
    """The outputs with each word of a weight changed alone, by ``change(word, number)``."""
    module = net.get_submodule(layer)
    weights, store = words(module)
    like, outputs = weights[name], []
    ints = like.int_repr()
    with torch.no_grad():
        for number in range(ints.numel()):
            for new in change(int(ints.flatten()[number]), number):
                other = ints.clone()
                other.view(-1)[number] = new
                store({**weights, name: stored(like, other)})
                outputs.append(net(x))
        store(weights)
    return torch.stack(outputs).flatten(2).numpy()


def flips(word, _):
    for bit in range(8):
        flipped = (word & 255) ^ (1 << bit)
        yield flipped - 256 if flipped > 127 else flipped


def alone(net, x, fault, sites):
    space = FaultSpace(net, x, fault, sites)
    return np.concatenate([o for _, o in space.single_changes(np.zeros(space.N), np.ones(space.N))])


SITES = {
    "linear": ("0", "weight"), "lstm": ("layer", "weight_hh_l1"), "gru": ("layer", "weight_ih_l0"),
    "cell": ("cell", "weight_hh"), "static": ("2", "weight"), "convolution": ("0", "weight"),
    "eager": ("last", "weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETS)
def test_flips_of_the_stored_words(kind, seeded, randn):
    """Each bit of each word alone: the very numbers that the layer gives with that word stored."""
    build, data = NETS[kind]
    net, x = seeded(lambda: build(randn)), data(randn)
    layer, name = SITES[kind]
    wanted = brute(copy.deepcopy(net), x, layer, name, flips)
    with torch.no_grad():
        clean = net(x).flatten(1).numpy()
    assert np.abs(wanted - clean).max() > 1e-3
    found = alone(net, x, BitFlip(1e-3, bits=8), f"{layer}.{name}")
    np.testing.assert_array_equal(found, wanted)
    with torch.no_grad():
        np.testing.assert_array_equal(net(x).flatten(1).numpy(), clean)  # still the user's


@pytest.mark.parametrize("kind", NETS)
def test_every_quantised_layer_is_among_the_weights(kind, seeded, randn):
    build, data = NETS[kind]
    net = seeded(lambda: build(randn))
    space = FaultSpace(net, data(randn), WeightCrash(0.05), "weights")
    found = {p.site.name for p in space.placements}
    for layer, module in net.named_modules():
        if hasattr(module, "_weight_bias") and "PackedParams" not in type(module).__name__:
            assert {f"{layer}.{name}" for name in words(module)[0]} <= found


@pytest.mark.parametrize("kind", NETS)
def test_a_faulty_copy_of_a_quantised_network(kind, seeded, randn):
    """It gives the sample's outputs, and stays a network of the user's class."""
    build, data = NETS[kind]
    net, x = seeded(lambda: build(randn)), data(randn)
    space = FaultSpace(net, x, BitFlip(0.05, bits=8), "weights")
    moved = 0.0
    for index in range(3):
        sample = space.sample(seed=0, index=index)
        with torch.no_grad():
            found = sample.model()(x).flatten(1).numpy()
            moved = max(moved, np.abs(found - net(x).flatten(1).numpy()).max())
        np.testing.assert_array_equal(found, sample.outputs)
    assert moved > 1e-3


def test_other_faults_of_words(seeded, randn):
    """A crash is the word of 0; a sign or a stuck value the nearest word, within the range."""
    net, x = seeded(lambda: NETS["static"][0](randn)), randn(3, 4)
    weight = net.get_submodule("2").weight()
    scales = weight.q_per_channel_scales() if ENGINE != "qnnpack" else weight.q_scale()
    scales = torch.as_tensor(scales).expand(2).repeat_interleave(3)
    for fault, change in (
        (WeightCrash(0.1), lambda word, k: [0]),
        (SignFlip(0.1), lambda word, k: [min(127, -word)]),
        (StuckAt(0.1, 0.1), lambda word, k: [min(127, round(0.1 / float(scales[k])))]),
    ):
        wanted = brute(copy.deepcopy(net), x, "2", "weight", change)
        np.testing.assert_array_equal(alone(net, x, fault, "2.weight"), wanted)
    for fault, told in (
        (GainNoise(0.1), "no noise"),
        (AdditiveNoise(0.1), "no noise"),
        (BitFlip(0.1, bits=4), "give bits=8"),
    ):
        with pytest.raises(ArgumentError, match=told):
            FaultSpace(net, x, fault, "weights")


def test_the_variance_of_flips_in_a_score(seeded, randn):
    net, x, p = seeded(lambda: NETS["linear"][0](randn)), randn(1, 4), 0.002
    clean = net(x).detach().numpy()
    other = copy.deepcopy(net)
    wanted = sum(
        (p * (1 - p) * (brute(other, x, layer, "weight", flips) - clean) ** 2).sum()
        for layer in "02"
    )
    score = crashsim.score(net, x, BitFlip(p), "weights", methods=["single"])
    assert score.find("single", "variance").value == pytest.approx(wanted, rel=1e-3)
    assert "words" not in str(score.to_dict()["faults"])


def test_the_units_of_a_recurrent_layer_are_not_reached_in_each_step(seeded, randn):
    net, x = seeded(lambda: NETS["lstm"][0](randn)), randn(1, 3, 3)
    with pytest.raises(SiteError, match=r"'layer' is a recurrent layer .* or is quantised"):
        FaultSpace(net, x, NeuronCrash(0.1))
    names = {s.name for s in find_sites(net, x)}
    assert names >= {"layer", "layer:h_n", "layer:c_n"}


def test_weights_packed_in_a_graph_are_named(seeded, randn):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(3, 4)), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.relu(nn.functional.linear(x, self.weight)))

    net = seeded(lambda: static(Functional(), randn(50, 4)))
    with pytest.warns(CrashsimWarning, match=r"leaves out.*'_packed_weight_0'"):
        space = FaultSpace(net, randn(2, 4), WeightCrash(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["head.weight"]


@pytest.mark.parametrize("kind", ["static", "eager"])
def test_dead_neurons_of_quantised_activations(kind, seeded, randn):
    """A dead neuron reads the zero point."""
    build, data = NETS[kind]
    net, x = seeded(lambda: build(randn)), data(randn)
    sites = "hidden" if kind == "static" else "last"
    space = FaultSpace(net, x, NeuronCrash(0.1), sites)
    struck = copy.deepcopy(net).get_submodule("0" if kind == "static" else "last")
    other = copy.deepcopy(net)
    struck = other.get_submodule("0" if kind == "static" else "last")
    wanted, kept = [], None

    def dead(module, args, out):
        value = out.dequantize() * kept.view(out.shape[1:])
        return torch.quantize_per_tensor(value, out.q_scale(), out.q_zero_point(), out.dtype)

    struck.register_forward_hook(dead)
    with torch.no_grad():
        for unit in range(space.N):
            kept = torch.arange(space.N) != unit
            wanted.append(other(x).flatten(1))
    found = alone(net, x, NeuronCrash(0.1), sites)
    assert np.abs(found - space.clean()).max() > 1e-3
    np.testing.assert_array_equal(found, torch.stack(wanted).numpy())


class Int8(torch.Tensor):
    """Stores words and a scale for each output, as torchao's tensors do."""

    @staticmethod
    def __new__(cls, qdata, scale):
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=torch.float32)

    def __init__(self, qdata, scale):
        self.qdata, self.scale, self.zero_point = qdata, scale, None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            x, weight, bias = args
            return torch.nn.functional.linear(x, weight.qdata.float(), None) * weight.scale.T + bias
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Int8(args[0].qdata, args[0].scale)
        raise NotImplementedError(func)


def test_a_tensor_class_that_stores_int8(seeded, randn):
    net, x = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))), randn(2, 4)
    generator = torch.Generator().manual_seed(0)
    qdata = torch.randint(-128, 128, (3, 4), generator=generator).to(torch.int8)
    scale = torch.tensor([[0.004], [0.006], [0.005]])
    net[0].weight = nn.Parameter(Int8(qdata, scale), requires_grad=False)
    wanted = []
    with torch.no_grad():
        for number in range(12):
            for new in flips(int(qdata.view(-1)[number]), number):
                old = qdata.view(-1)[number].clone()
                qdata.view(-1)[number] = new
                wanted.append(net(x))
                qdata.view(-1)[number] = old
    wanted = torch.stack(wanted).numpy()
    found = alone(net, x, BitFlip(1e-3), "0.weight")
    assert np.abs(found - net(x).detach().numpy()).max() > 1e-2
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert FaultSpace(net, x, GainNoise(0.1), "0.weight").N == 12
    net[0].weight.act_quant_kwargs = {}  # that is, it multiplies rounded inputs
    with pytest.raises(ModelError, match=r"'0\.weight' is a Int8, which cannot be read"):
        FaultSpace(net, x, WeightCrash(0.1), "weights")


@pytest.mark.parametrize("bits", [4, 8])
def test_words_of_a_quantisation_aware_layer(bits, seeded, randn):
    """The scale of the fake quantiser, for each output, is that of the words that flip."""
    from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver, QConfig

    top = 2 ** (bits - 1)
    fake = FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, quant_min=-top, quant_max=top - 1,
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip

    def build():
        layer = nn.Linear(4, 3)
        layer.qconfig = QConfig(activation=nn.Identity, weight=fake)
        layer = torch.ao.nn.qat.Linear.from_float(layer)
        layer(torch.ones(1, 4))
        return nn.Sequential(layer, nn.Tanh()).apply(torch.ao.quantization.disable_observer)

    net, x = seeded(build), randn(2, 4)
    fake = net[0].weight_fake_quant
    with torch.no_grad():
        scale = fake.scale[:, None].double()
        ints = (fake(net[0].weight).double() / scale).round().long()
        wanted = []
        for number in range(12):
            for bit in range(bits):
                word = (int(ints.view(-1)[number]) & (2 * top - 1)) ^ (1 << bit)
                other = ints.clone()
                other.view(-1)[number] = word - 2 * top if word >= top else word
                weight = (other * scale).float()
                wanted.append(torch.tanh(nn.functional.linear(x, weight, net[0].bias)))
    found = alone(net, x, BitFlip(1e-3, bits=bits), "0.weight")
    assert np.abs(found - net(x).detach().numpy()).max() > 1e-2
    np.testing.assert_allclose(found, torch.stack(wanted).numpy(), atol=2e-6)
    assert FaultSpace(net, x, GainNoise(0.1), "0.weight").N == 12


def test_what_stays_packed_is_named(seeded, randn):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.table(x).mean(1))

    net = seeded(Words)
    net.table.qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig
    net = torch.ao.quantization.convert(torch.ao.quantization.prepare(net))
    x = torch.tensor([[0, 1], [2, 3]])
    with pytest.warns(CrashsimWarning, match=r"leaves out.*'table\.weight'"):
        space = FaultSpace(net, x, WeightCrash(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["head.weight"]


def test_a_quantised_twin_can_be_pickled(seeded, randn):
    net, x = seeded(lambda: NETS["static"][0](randn)), randn(3, 4)
    space = FaultSpace(net, x, WeightCrash(0.1), "weights")
    layer = pickle.loads(pickle.dumps(space.model.get_submodule("0")))
    quantised = torch.quantize_per_tensor(x, 0.05, 100, torch.quint8)
    with torch.no_grad():
        wanted = net.get_submodule("0")(quantised)
        assert torch.equal(layer(quantised).int_repr(), wanted.int_repr())
