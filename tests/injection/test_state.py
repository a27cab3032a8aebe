"""What a forward pass leaves behind: put back before the next, never in the user's model."""

import random
import weakref
from collections import deque
from functools import lru_cache, partial
from threading import RLock

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import CrashVariance, FaultSpace, NeuronCrash, WeightCrash, find_sites, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, ModelError
from crashsim.files.data import Data
from crashsim.model.twins.twin import apart, twin_of
from crashsim.protection.replicas import Replicated
from crashsim.training.classifier import accuracy, train_classifier
from crashsim.training.weight_penalties import Balance, Continuity


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.middle(self.inner(x)))

    def middle(self, h):
        return torch.tanh(h)


class Membrane(Base):
    """Keeps a potential, in the place of the tensor that was there."""

    def __init__(self):
        super().__init__()
        self.v = torch.full((1, 6), 0.4)

    def middle(self, h):
        for _ in range(3):
            self.v = 0.5 * self.v + torch.tanh(h)
        return self.v


class InPlace(Base):
    """Keeps a potential in the memory of a buffer, and returns it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("v", torch.full((6,), 0.4))

    def middle(self, h):
        self.v.mul_(0.5).add_(0.1)
        return torch.tanh(h) + self.v


class Collections(Base):
    """Counts in a list, a dict, a deque, an attribute and a slot; what it counts matters."""

    __slots__ = ("slot",)

    def __init__(self):
        super().__init__()
        self.seen, self.counts, self.last = [], {"passes": 0}, deque(maxlen=2)
        self.number, self.slot, self.lock = 0, 0, RLock()

    def middle(self, h):
        with self.lock:
            self.number += 1
            self.slot += 1
            self.counts["passes"] += 1
            self.seen.append(tuple(h.shape))
            self.last.append(h.shape)
        weight = self.number + self.slot + self.counts["passes"] + len(self.seen) + len(self.last)
        return torch.tanh(h) * weight


class CountsRarely(Base):
    """Counts what no clean pass shows, for the passes after it."""

    def __init__(self):
        super().__init__()
        self.beyond = 0

    def middle(self, h):
        h, weight = torch.tanh(h), 1 + self.beyond
        if (h == 0).any():
            self.beyond += 1
        return h * weight


class Clamps(Base):
    """Writes to its own weights."""

    def forward(self, x):
        self.inner.weight.data.clamp_(-0.2, 0.2)
        self.inner.weight.data.mul_(0.9)
        return super().forward(x)


class Hooked(Base):
    """Hooks that close over what they fill, and take part in what is computed."""

    def __init__(self):
        super().__init__()
        self.found, self.first = {}, []
        calls = 0

        def scale(module, _, output, store=self.first):
            nonlocal calls
            calls += 1
            store.append(calls)
            return output * calls

        self.inner.register_forward_hook(scale)
        self.head.register_forward_hook(lambda *args: self.found.update(last=args[-1]))


class Once(Base):
    """A hook that takes itself off."""

    def __init__(self):
        super().__init__()

        def once(module, _, output):
            handle.remove()
            return output * 3

        handle = self.inner.register_forward_hook(once)


MODELS = [Membrane, InPlace, Collections, CountsRarely, Clamps, Hooked, Once]


def contents(value, depth=0):
    """What an object holds, to be compared later."""
    if isinstance(value, torch.Tensor):
        return "tensor", id(value), value._version, value.detach().clone().tolist()
    if isinstance(value, nn.Module | dict):
        items = (vars(value) if isinstance(value, nn.Module) else value).items()
        slots = [("slot", value.slot)] if hasattr(value, "slot") else []
        return id(value), [(k, contents(v, depth + 1)) for k, v in (*items, *slots)]
    if isinstance(value, list | tuple | deque):
        return id(value), [contents(v, depth + 1) for v in value]
    cells = [c.cell_contents for c in getattr(value, "__closure__", None) or ()]
    return id(value), [c for c in cells if isinstance(c, int)]


def by_hand(make, x, placements, points):
    """(S, B, K) each sample on a model of its own, struck as said."""
    found = []
    for row in points.dense():
        one = make()
        for p in placements:
            e = torch.from_numpy(row[p.start : p.stop]).float()
            if p.site.kind == "parameter":
                with torch.no_grad():
                    parameter = one.get_parameter(p.site.module)
                    parameter.mul_(1 - e.view_as(parameter))
            else:
                module = one.get_submodule(p.site.module)
                module.register_forward_hook(lambda _, __, out, e=e: out * (1 - e))
        with torch.no_grad():
            found.append(one(x).clone())
    return torch.stack(found).double().numpy()


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize(
    "faults", [{"inner": NeuronCrash(0.2)}, {"inner.weight": WeightCrash(0.2)}], ids=["n", "w"]
)
def test_every_sample_starts_from_the_state_that_was_handed_over(build, faults, seeded, randn):
    model, x = seeded(build), randn(4, 5)
    before = contents(model)
    space = FaultSpace(model, x, faults)
    points = sample_points(space.placements, 0, 12)
    wanted = by_hand(lambda: seeded(build), x, space.placements, points)
    for _ in range(2):  # whatever was computed before
        np.testing.assert_allclose(space.outputs(points), wanted, rtol=2e-5, atol=1e-6)
    whole = space.outputs(points)
    parts = [space.outputs(points.part(i, i + 4)) for i in (8, 0, 4)]
    np.testing.assert_allclose(np.concatenate([parts[1], parts[2], parts[0]]), whole, atol=1e-6)
    assert np.ptp(wanted, axis=0).max() > 0.01
    assert contents(model) == before


@pytest.mark.parametrize(("build", "factor"), [(Hooked, 1), (Once, 3)])
def test_hooks_act_on_the_twin_alone(build, factor, seeded, randn):
    model, plain, x = seeded(build), seeded(Base), randn(4, 5)
    before = contents(model)
    space = FaultSpace(model, x, {"head": NeuronCrash(0.3)})
    clean = plain.head(torch.tanh(factor * plain.inner(x))).detach().double().numpy()
    points = sample_points(space.placements, 1, 20)
    np.testing.assert_allclose(space.clean(), clean, atol=1e-6)
    wanted = clean * (1 - points.dense()[:, None])
    np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-6)
    assert contents(model) == before


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("build", MODELS)
def test_a_model_is_not_touched(build, seeded, randn):
    model, x = seeded(build), randn(4, 5)
    before = contents(model)
    score(model, x, NeuronCrash(0.1), samples=50)
    find_sites(model, x)
    Replicated(model, 3, "median", byzantine=1)(x)
    accuracy(model, Data("points", x, torch.arange(4) % 3))
    assert contents(model) == before


def test_a_state_of_the_size_of_a_batch_is_told(seeded, randn):
    model = seeded(Membrane)
    with torch.no_grad():
        model(randn(3, 5))
    with pytest.raises(ModelError, match="batch of another size, reset it before, or give reset="):
        FaultSpace(model, randn(3, 5), {"inner": NeuronCrash(0.2)})
    assert model.v.shape == (3, 6)


def test_an_interrupted_pass_leaves_nothing_behind(seeded, randn):
    class Interrupted(Membrane):
        stop = False

        def middle(self, h):
            out = super().middle(h)
            if Interrupted.stop:
                raise KeyboardInterrupt
            return out

    for faults in ({"inner": NeuronCrash(0.2)}, {"inner.weight": WeightCrash(0.2)}):
        model, x = seeded(Interrupted), randn(4, 5)
        before = contents(model)
        space = FaultSpace(model, x, faults)
        points = sample_points(space.placements, 0, 12)
        wanted = FaultSpace(model, x, faults).outputs(points)
        Interrupted.stop = True
        with pytest.raises(KeyboardInterrupt):
            space.outputs(points)
        Interrupted.stop = False
        assert np.array_equal(space.outputs(points), wanted)
        assert contents(model) == before


class Draws(Base):
    """Draws from every generator, to no effect."""

    def middle(self, h):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return torch.tanh(h) + 0 * noise + 0 * torch.nn.functional.dropout(h, 0.5, True)


@pytest.mark.parametrize("faults", [NeuronCrash(0.2), WeightCrash(0.2)])
def test_what_a_model_draws_is_put_back(faults, seeded, randn):
    model, x = seeded(Draws), randn(4, 5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    space = FaultSpace(model, x, faults)
    space.outputs(sample_points(space.placements, 0, 8))
    list(space.gradients(space.mean_point))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


class Noisy(Base):
    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(1)

    def middle(self, h):
        return torch.tanh(h) + torch.rand((), generator=self.noise)


def test_a_generator_of_its_own_does_not_hide_that_a_model_is_random(seeded, randn):
    model = seeded(Noisy)
    before = model.noise.get_state()
    with pytest.raises(ModelError, match="different outputs"):
        FaultSpace(model, randn(4, 5), NeuronCrash(0.1))
    assert torch.equal(model.noise.get_state(), before)


class Wrapped:
    """No module, but it leads to one."""

    def __init__(self, module):
        self.module, self.lock = module, RLock()

    def __call__(self, x):
        return self.module(x)


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x):
        return self.parent().inner(x)


class Roundabout(Base):
    """Reaches its layers in every way but by their names."""

    def __init__(self):
        super().__init__()
        self.wrapped, self.child = Wrapped(self.head), Child(self)
        self.layers = {"inner": [self.inner]}
        self.ways = [
            lambda x: self.layers["inner"][0](x),
            partial(self._call, self.inner),
            self.child,
            lru_cache(maxsize=None)(lambda x: self.inner(x)),
            weakref.WeakMethod(self._call),
        ]
        plain_forward = self.inner.forward
        self.inner.forward = lambda x: 2 * plain_forward(x)

    def _call(self, module, x):
        return module(x)

    def forward(self, x):
        *ways, last = self.ways
        h = sum(way(x) for way in ways) + last()(self.inner, x)
        return self.wrapped(torch.tanh(h))


def test_a_twin_is_whole(seeded, randn):
    """What strikes its layers is met by whatever way the model reaches them."""
    model, x = seeded(Roundabout), randn(4, 5)
    twin = twin_of(model)
    assert torch.equal(twin(x), model(x))
    own = {id(module) for module in model.modules()}
    assert not own & {id(module) for module in twin.modules()}
    for module in twin.modules():
        module.register_forward_hook(lambda module, _, out: 0 * out)
    assert (twin(x) == 0).all()
    assert torch.equal(twin_of(model)(x), model(x))
    for name in ("inner", "head"):  # faults of parameters, for which they are swapped
        space = FaultSpace(model, x, {f"{name}.weight": WeightCrash(0.5)})
        struck = space.outputs(Points.at(np.ones(space.N)))
        parameter = model.get_parameter(f"{name}.weight")
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.zero_()
            wanted = model(x.clone())
            parameter.copy_(kept)
        np.testing.assert_allclose(struck[0], wanted, atol=1e-6)


def test_a_twin_shares_the_weights_and_nothing_else(seeded):
    model = seeded(InPlace)
    model.table = [torch.zeros(3), np.zeros(3)]
    model.tied = seeded(lambda: nn.Linear(5, 6))
    model.tied.weight = model.inner.weight
    twin = twin_of(model)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert mine is not theirs
        assert mine.data_ptr() == theirs.data_ptr()
    assert twin.tied.weight is twin.inner.weight
    assert twin.v.data_ptr() != model.v.data_ptr()
    twin.table[0] += 1
    twin.table[1] += 1
    assert model.table[0].sum() == model.table[1].sum() == 0
    assert type(twin) is type(model)
    assert apart(model).inner.weight.data_ptr() != model.inner.weight.data_ptr()


def test_what_cannot_be_copied_and_leads_back_is_refused_by_name(seeded, randn):
    class Owner(Wrapped):
        def __del__(self):
            pass

    model = seeded(Base)
    model.owner = Owner(model.head)
    with pytest.raises(ModelError, match=r"holds Owner .* leads back to the model's own modules"):
        FaultSpace(model, randn(4, 5), NeuronCrash(0.1))
    model.owner = Owner(None)
    FaultSpace(model, randn(4, 5), NeuronCrash(0.1))


def test_models_and_calls_in_inference_mode(seeded, randn):
    def variance(model, x):
        return score(model, x, NeuronCrash(0.1), samples=200).find("monte-carlo", "variance").value

    x = randn(4, 5)
    wanted = variance(seeded(InPlace), x)
    with torch.inference_mode():
        made, inputs = seeded(InPlace), randn(4, 5)
        assert variance(seeded(InPlace), inputs) == wanted
    assert variance(made, inputs) == wanted
    space = FaultSpace(made, x, WeightCrash(0.1))
    points = sample_points(space.placements, 0, 5)
    with torch.inference_mode():
        inside = space.outputs(points)
        gradients = [g for _, g in space.gradients(space.mean_point)]
    assert np.array_equal(space.outputs(points), inside)
    for (_, found), wanted_gradient in zip(
        space.gradients(space.mean_point), gradients, strict=True
    ):
        assert np.array_equal(found, wanted_gradient)


def test_training_in_inference_mode_is_told(seeded, randn):
    data = Data("points", randn(8, 5), torch.arange(8) % 3)
    with torch.inference_mode():
        made = seeded(Base)
        model = seeded(Base)
    for build in (
        lambda: CrashVariance(made, NeuronCrash(0.1)),
        lambda: Continuity(made),
        lambda: Balance(made),
        lambda: train_classifier(made, data),
    ):
        with pytest.raises(ModelError, match=r"made in torch\.inference_mode"):
            build()
    model = seeded(Base)
    with CrashVariance(model, NeuronCrash(0.1)) as penalty, torch.inference_mode():
        output = model(data.inputs)
        with pytest.raises(ArgumentError, match=r"computed in torch\.inference_mode"):
            penalty(output)
        train_classifier(model, data)  # which leaves it for a while


GAINS = {}  # a twin sees the same global variables


def by_table(net):
    """A gain that a hook looks up by the module itself, as quantisation tools do."""
    GAINS[net[1]] = 3.0
    net[1].register_forward_hook(lambda module, _, out: out * GAINS.get(module, 1.0))


def by_identity(net):
    net[1].gains = {id(net[1]): 3.0}
    net[1].register_forward_hook(lambda module, _, out: out * module.gains.get(id(module), 1.0))


@pytest.mark.parametrize("change", [by_table, by_identity])
def test_a_twin_that_computes_something_else_is_refused(change, seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    FaultSpace(net, randn(2, 3), NeuronCrash(0.1), "1")
    change(net)
    with pytest.raises(ModelError, match="a twin of it, which is what runs, gives other outputs"):
        FaultSpace(net, randn(2, 3), NeuronCrash(0.1), "1")


def test_a_plain_model_keeps_nothing(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    space = FaultSpace(net, randn(2, 3), NeuronCrash(0.1), "1")
    assert space.faulty_model.model._changing == set()
