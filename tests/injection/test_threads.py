"""Several threads: each gets the numbers of a single one, and none meets the work of another."""

import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import CrashVariance, FaultSpace, NeuronCrash, WeightCrash, monte_carlo, score
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import CrashsimWarning, ModelError
from crashsim.files.data import Data
from crashsim.model.layers import UnsupportedLayerError, layers_of
from crashsim.noticing import collecting, notice
from crashsim.training.classifier import Recipe, train_classifier

HERE = threading.local()


class Meets(nn.Module):
    """In the middle of each pass, calls what its thread has put into ``HERE.at_pass``."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)

    def forward(self, x):
        h = self.act(self.inner(x))
        at_pass = getattr(HERE, "at_pass", None)
        if at_pass is not None:
            at_pass()
        return self.head(h)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


@pytest.fixture
def meeting():
    """``meeting(call, run)``: runs ``run()``, in each of whose passes another thread calls."""

    def meet(call, run):
        found, pool = [], ThreadPoolExecutor(1)

        def at_pass():
            done = pool.submit(call)
            found.append(done.exception() or done.result())

        HERE.at_pass = at_pass
        try:
            with pool:
                run()
        finally:
            HERE.at_pass = None
        assert len(found) > 5
        return found

    return meet


def everything(model, x):
    score(model, x, NeuronCrash(0.1), samples=100)
    for faults in (NeuronCrash(0.1), WeightCrash(0.1)):
        space = FaultSpace(model, x, faults, dtype=torch.float64)
        space.outputs(sample_points(space.placements, 0, 20))
        list(space.gradients(space.mean_point))
        with suppress(UnsupportedLayerError):
            layers_of(space.model, space.inputs)


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("shared", [True, False])
def test_a_model_is_served_in_the_middle_of_every_pass_and_trace(seeded, randn, meeting, shared):
    model, x = seeded(Meets), randn(4, 5)
    served = model if shared else seeded(Meets, seed=1)
    with torch.no_grad():
        wanted = served(x)

    def serve():
        assert not served.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in served.modules())
        with torch.no_grad():
            return served(x)

    found = meeting(serve, lambda: everything(model, x))
    assert all(isinstance(o, torch.Tensor) and torch.equal(o, wanted) for o in found), found[:3]


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_model_is_trained_in_the_middle_of_every_pass(seeded, randn, meeting):
    """Its own gradients, in training mode, without a step."""
    model, x = seeded(Meets), randn(4, 5)

    def train():
        model.train()
        model.zero_grad()
        model(x).square().sum().backward()
        model.eval()
        return model.inner.weight.grad.clone()

    wanted = train()
    alone = score(model, x, NeuronCrash(0.1), samples=100).estimates
    found = meeting(train, lambda: everything(model, x))
    assert all(isinstance(g, torch.Tensor) and torch.equal(g, wanted) for g in found), found[:3]
    scored = []
    meeting(train, lambda: scored.extend(score(model, x, NeuronCrash(0.1), samples=100).estimates))
    assert list(map(str, scored)) == list(map(str, alone))


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_nothing_of_the_process_changes_in_the_middle_of_a_pass(seeded, randn, meeting):
    def look():
        return (
            nn.Module.__call__,
            nn.Module.__getattr__,
            list(warnings.filters),
            warnings.showwarning,
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.get_default_dtype(),
        )

    before = look()
    model = seeded(lambda: nn.Sequential(Meets(), nn.Unflatten(1, (3, 1)), Wide(), Attention()))
    found = meeting(look, lambda: everything(model, randn(4, 5)))
    assert all(state == before for state in found)


class Wide(nn.Module):
    def forward(self, x):
        return x.expand(-1, -1, 8)


def test_the_draws_of_other_threads_are_not_undone(seeded, randn, meeting):
    model, x = seeded(Meets), randn(4, 5)
    state = torch.get_rng_state()
    try:
        torch.manual_seed(5)
        found = meeting(
            lambda: torch.rand(()).item(), lambda: FaultSpace(model, x, WeightCrash(0.1))
        )
        torch.manual_seed(5)
        assert found == [torch.rand(()).item() for _ in found]
    finally:
        torch.set_rng_state(state)


@pytest.mark.parametrize("faults", [NeuronCrash(0.1), WeightCrash(0.1)])
def test_threads_share_a_space(seeded, randn, faults):
    space = FaultSpace(seeded(Meets), randn(6, 5), faults)
    wanted = [space.outputs(sample_points(space.placements, seed, 40)) for seed in range(12)]
    again = FaultSpace(seeded(Meets), randn(6, 5), faults)

    def run(seed):
        HERE.at_pass = lambda: time.sleep(1e-4)  # others come in here
        return again.outputs(sample_points(again.placements, seed, 40))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(12)))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_training_in_threads_is_that_of_one(seeded, randn):
    data = Data("points", randn(30, 5), torch.arange(30) % 3)

    def train(seed):
        model = seeded(Meets)
        train_classifier(model, data, Recipe(epochs=3, batch=8, dropout=0.2, seed=seed))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    wanted = [train(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        models = [seeded(Meets) for _ in range(6)]

        def train_one(seed):
            recipe = Recipe(epochs=3, batch=8, dropout=0.2, seed=seed)
            train_classifier(models[seed], data, recipe)
            return torch.cat([p.detach().flatten() for p in models[seed].parameters()])

        found = list(pool.map(train_one, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_weights_that_are_trained_meanwhile_are_told(seeded, randn):
    model = seeded(Meets)
    space = FaultSpace(model, randn(4, 5), NeuronCrash(0.1))
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(ModelError, match=r"'head\.bias' was written to"):
        monte_carlo(space, samples=50)


@pytest.mark.parametrize("faults", [NeuronCrash(0.1), WeightCrash(0.1)])
def test_a_space_travels_after_a_run(randn, seeded, faults):
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)))
    space = FaultSpace(model, randn(4, 5), faults)
    wanted = monte_carlo(space, samples=64).mean
    copy = pickle.loads(pickle.dumps(space))
    assert np.array_equal(monte_carlo(copy, samples=64).mean, wanted)


def test_notices_are_those_of_a_thread_alone():
    def other():
        with collecting() as found:
            notice("there")
        return found

    with collecting() as found, ThreadPoolExecutor(1) as pool:
        notice("here")
        assert pool.submit(other).result() == ["there"]
    assert found == ["here"]
    with pytest.warns(CrashsimWarning, match="at once") as told:
        notice("at once", stacklevel=1)
    assert told[0].filename == __file__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_minute_of_scoring_serving_and_training(seeded, randn):
    """Eight threads, with models of their own and one of all: the numbers of a single thread."""
    x, series = randn(6, 5), randn(3, 4, 8)
    data = Data("points", randn(60, 5, seed=2), torch.arange(60) % 3)
    builds = {"meets": (Meets, x), "attention": (Attention, series)}
    fresh = {name: seeded(build) for name, (build, _) in builds.items()}
    shared = seeded(Meets)

    def scored(model, x, faults):
        return [str(e) for e in score(model, x, faults, epsilon=0.1, samples=300).estimates]

    def trained(model):
        with CrashVariance(model, NeuronCrash(0.1), strength=0.01, seed=1) as penalty:
            train_classifier(model, data, Recipe(epochs=2, seed=4), penalties=[penalty])
        return [p.tolist() for p in model.parameters()]

    def served(model, x):
        with torch.no_grad():
            return model(x).tolist()

    def gradient(model, x):
        return [g.tolist() for g in torch.autograd.grad(model(x).sum(), list(model.parameters()))]

    def clone(name):
        return pickle.loads(pickle.dumps(fresh[name]))

    jobs = [
        lambda: scored(shared, x, NeuronCrash(0.1)),
        lambda: scored(shared, x, WeightCrash(0.05)),
        lambda: scored(clone("meets"), x, WeightCrash(0.05)),
        lambda: scored(clone("attention"), series, NeuronCrash(0.1)),
        lambda: scored(clone("attention"), series, WeightCrash(0.1)),
        lambda: trained(clone("meets")),
        lambda: served(shared, x),
        lambda: gradient(shared, x),
        lambda: served(fresh["attention"], series),
    ]
    wanted = [job() for job in jobs]
    filters, end, wrong, done = list(warnings.filters), time.monotonic() + 60, [], [0] * len(jobs)

    def work(first):
        number = first
        while time.monotonic() < end:
            try:
                if jobs[number]() != wanted[number]:
                    wrong.append(f"job {number}: other numbers")
            except BaseException as error:
                wrong.append(f"job {number}: {error!r}")
            done[number] += 1
            number = (number + 5) % len(jobs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of {sum(done)}: {sorted(set(wrong))[:5]}"
    assert min(done) > 0
    assert warnings.filters == filters
