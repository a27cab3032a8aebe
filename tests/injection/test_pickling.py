"""A space sent to another process gives the same numbers, to the last bit."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, CrashsimError, FaultSpace, NeuronCrash, WeightCrash, monte_carlo
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ModelError


def doubled(module, arguments, output):
    return 2 * output


class Membrane(nn.Module):
    """Keeps a state between passes, which every pass starts without."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)
        self.calls, self.held = [], 0.0
        self.register_buffer("trace", torch.zeros(6))

    def forward(self, x):
        h = self.act(self.inner(x)) + self.held + self.trace
        self.held = 0.5 * h.detach().mean().item()
        self.trace += 1.0
        self.calls.append(len(x))
        return self.head(h)


class Counts(nn.Module):
    """Writes to a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)
        self.count = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        with torch.no_grad():
            self.count.add_(1)
        return self.head(self.act(self.inner(x))) * self.count


class Forgets(nn.Module):
    """Whose pickle leaves out what its outputs are scaled with."""

    def __init__(self):
        super().__init__()
        self.inner, self.act = nn.Linear(4, 6), nn.Tanh()
        self.scale = 3.0

    def __getstate__(self):
        return {**self.__dict__, "scale": 1.0}

    def __deepcopy__(self, memo):
        twin = Forgets()
        twin.load_state_dict(self.state_dict())
        return twin.eval()

    def forward(self, x):
        return self.scale * self.act(self.inner(x))


class Draws(nn.Module):
    """Draws random numbers that make no difference."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.act(self.inner(x)) + 0 * torch.randn(6))


def mlp():
    return nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 2))


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    return net


def hooked():
    net = mlp()
    net[1].register_forward_hook(doubled)
    return net


MODELS = {
    "neurons": (mlp, NeuronCrash(0.05), "hidden"),
    "rare weights": (mlp, WeightCrash(0.01), "weights"),
    "bits": (mlp, BitFlip(0.01, bits=4), "weights"),
    "stacked weights": (mlp, WeightCrash(0.3), "weights"),
    "tied weights": (tied, WeightCrash(0.05), "weights"),
    "hook": (hooked, NeuronCrash(0.1), "hidden"),
    "state": (Membrane, NeuronCrash(0.2), "act"),
    "written parameter": (Counts, NeuronCrash(0.2), "act"),
    "drawing": (Draws, NeuronCrash(0.2), "act"),
}


def numbers_of(space, count=40):
    """What a space answers: samples and derivatives."""
    gradients = np.concatenate([rows for _, rows in space.gradients(space.mean_point)])
    return space.clean(), space.outputs(sample_points(space.placements, 5, count)), gradients


@pytest.fixture(params=MODELS)
def space(request, seeded, randn):
    build, fault, sites = MODELS[request.param]
    return FaultSpace(seeded(build), randn(3, 4), fault, sites)


@pytest.mark.parametrize("used", [False, True])
def test_a_copy_gives_the_same_numbers(space, used):
    if used:
        numbers_of(space)
    again = pickle.loads(pickle.dumps(space))
    found, wanted = numbers_of(again), numbers_of(space)
    assert np.abs(wanted[1] - wanted[0]).max() > 1e-3
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.plan() == space.plan()
    for p in again.model.parameters():
        assert all(p.data_ptr() != q.data_ptr() for q in space.model.parameters())


def test_a_copy_of_a_copy_and_of_a_part(seeded, randn):
    space = FaultSpace(seeded(mlp), randn(3, 4), NeuronCrash(0.1))
    unread = pickle.loads(pickle.dumps(space))
    for part in (
        lambda s: s.at_input(1),
        lambda s: s.with_dtype(torch.float64),
        lambda s: s.with_faults([NeuronCrash(0.4)]),
    ):
        wanted = numbers_of(part(space))
        for again in (
            part(pickle.loads(pickle.dumps(unread))),
            pickle.loads(pickle.dumps(part(space))),
            copy.deepcopy(part(space)),
        ):
            for ours, theirs in zip(numbers_of(again), wanted, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_copy_outlives_changes_of_the_model(seeded, randn):
    net = seeded(mlp)
    space = FaultSpace(net, randn(3, 4), NeuronCrash(0.1))
    wanted, again = numbers_of(space), pickle.loads(pickle.dumps(space))
    with torch.no_grad():
        net[0].weight += 1
    for ours, theirs in zip(numbers_of(again), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ModelError, match="was written to while the model was analysed"):
        pickle.dumps(space)
    with torch.no_grad():
        again.model[0].weight += 1
    with pytest.raises(ModelError, match="was written to while the model was analysed"):
        numbers_of(again)


def test_a_model_that_does_not_pickle(seeded, randn):
    net = seeded(mlp)
    net[1].register_forward_hook(lambda module, _, out: 2 * out)
    space = FaultSpace(net, randn(3, 4), NeuronCrash(0.1))
    with pytest.raises(CrashsimError, match=r"does not pickle .*lambda.* run threads instead"):
        pickle.dumps(space)
    numbers_of(space)  # which still works


def test_an_exported_program_does_not_pickle(seeded, randn):
    batch = torch.export.Dim("batch", min=2)
    x = randn(3, 4)
    program = torch.export.export(seeded(mlp), (x,), dynamic_shapes=({0: batch},))
    space = FaultSpace(program.module(), x, NeuronCrash(0.1))
    with pytest.raises(CrashsimError, match="give the model that was exported"):
        pickle.dumps(space)


def test_a_model_whose_pickle_leaves_something_out(seeded, randn):
    space = FaultSpace(seeded(Forgets), randn(3, 4), NeuronCrash(0.1), "act")
    again = pickle.loads(pickle.dumps(space))
    for _ in range(2):
        with pytest.raises(CrashsimError, match="its pickle gives other outputs than the model"):
            numbers_of(again)


def test_a_model_whose_class_is_not_found_is_told_where_it_is_used(seeded, randn, monkeypatch):
    pickled = pickle.dumps(FaultSpace(seeded(Membrane), randn(3, 4), NeuronCrash(0.1), "act"))
    monkeypatch.delattr(f"{__name__}.Membrane")
    again = pickle.loads(pickled)
    with pytest.raises(CrashsimError, match=r"cannot be read in this process .*Membrane"):
        numbers_of(again)


def test_another_process_gives_the_same_numbers(randn, seeded):
    """Models of torch's own classes: those of a test are not to be found by name elsewhere."""
    spaces = [
        FaultSpace(seeded(mlp), randn(3, 4), NeuronCrash(0.05)),
        FaultSpace(seeded(tied), randn(3, 4), WeightCrash(0.3)),
    ]
    net = seeded(mlp)
    net[1].register_forward_hook(lambda module, _, out: 2 * out)
    stays = FaultSpace(net, randn(3, 4), NeuronCrash(0.1))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = list(pool.map(monte_carlo, spaces))
        with pytest.raises(CrashsimError, match="does not pickle"):
            pool.submit(monte_carlo, stays).result()
    for ours, space in zip(found, spaces, strict=True):
        wanted = monte_carlo(space)
        np.testing.assert_array_equal(ours.mean, wanted.mean)
        np.testing.assert_array_equal(ours.variance, wanted.variance)
        assert wanted.variance.min() > 0
