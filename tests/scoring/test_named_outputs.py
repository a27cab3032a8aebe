"""Tails of named outputs among thousands, against all patterns by plain loops."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash, plan, score
from crashsim.errors import ArgumentError, NotApplicableError

NAMED = [1500, 3]
P, EPSILON = 0.1, 0.25
X = torch.linspace(-1, 2, 6).view(2, 3)


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2000)).eval()


@pytest.fixture(scope="module")
def truth(net):
    """P(|Delta| >= EPSILON) of each input and named output, (2, 2), over all 2^8 patterns."""
    hidden, found = torch.tanh(net[0](X)), 0.0
    clean = net[2](hidden)[:, NAMED]
    for struck in itertools.product((0.0, 1.0), repeat=8):
        count = sum(struck)
        moved = net[2](hidden * (1 - torch.tensor(struck)))[:, NAMED] - clean
        found = found + P**count * (1 - P) ** (8 - count) * (moved.abs() >= EPSILON).double()
    assert ((found > 1e-4) & (found < 0.5)).all()
    return found.numpy()


@pytest.fixture(scope="module")
def found(net):
    methods = [
        "chebyshev", "chernoff", "saddlepoint", "surrogate-law", "single-law",
        "importance-sampling", "linear-exact", "certificate", "certified-sampling", "monte-carlo",
        "mean-point-taylor",
    ]  # fmt: skip
    return score(
        net, X, NeuronCrash(P), epsilon=EPSILON, outputs=NAMED, methods=methods, samples=4000
    )


@pytest.mark.parametrize("method", ["surrogate-law", "single-law"])
def test_the_exact_law_of_a_linear_output(found, truth, method):
    for b, (i, k) in itertools.product(range(2), enumerate(NAMED)):
        assert found.find(method, "tail", b, k).value == pytest.approx(truth[b, i], rel=1e-3)


@pytest.mark.parametrize("method", ["chebyshev", "chernoff", "certificate"])
def test_bounds(found, truth, method):
    for b, (i, k) in itertools.product(range(2), enumerate(NAMED)):
        assert truth[b, i] * (1 - 1e-6) <= found.find(method, "tail", b, k).value <= 1


@pytest.mark.parametrize(
    "method", ["linear-exact", "importance-sampling", "certified-sampling", "monte-carlo"]
)
def test_intervals(found, truth, method):
    for i, k in enumerate(NAMED):
        tail = found.find(method, "tail", output=k)
        assert tail.low * (1 - 1e-6) <= truth[:, i].mean() <= tail.high * (1 + 1e-6)
        assert tail.high < 3 * tail.low


def test_samples_do_not_take_the_derivative_of_every_output(found):
    assert not {"differences", "margins"} & found.timings.keys()


def test_nothing_is_said_of_others_or_of_all(found):
    for method in ("chernoff", "surrogate-law", "importance-sampling"):
        own = [e for e in found.estimates if e.method == method]
        assert {e.output for e in own} == set(NAMED)
        assert {e.quantity for e in own} == {"tail"}
    assert len([e for e in found.estimates if e.method == "mean-point-taylor"]) > 4000


def test_the_plan_counts_few_passes_and_the_verdict_tells_of_them(net):
    some = plan(net, X, NeuronCrash(P), epsilon=EPSILON, outputs=NAMED)
    none = plan(net, X, NeuronCrash(P), epsilon=EPSILON)
    assert {"chernoff", "saddlepoint", "surrogate-law"} <= set(some.methods)
    assert not {"chernoff", "saddlepoint", "surrogate-law"} & set(none.methods)
    assert "outputs=" in none.skipped["chernoff"]
    gradients = {**some.steps}["gradients"].operations
    assert gradients < 100 * some.forward
    only = score(net, X, NeuronCrash(P), epsilon=EPSILON, outputs=NAMED, methods=["surrogate-law"])
    assert "Output 1500 moves by 0.25 or more with probability" in only.verdict


def test_a_space_of_some_outputs(net):
    space = FaultSpace(net, X, WeightCrash(P), "0.weight")
    some = space.of_outputs(NAMED)
    assert (some.K, space.K) == (2, 2000)
    assert not some.has_classes
    sample, whole = some.sample(1, 2), space.sample(1, 2)
    assert np.array_equal(sample.outputs, whole.outputs[:, NAMED])
    assert np.abs(sample.outputs - some.clean()).max() > 1e-3
    at, point = space.moments.mean, np.full(space.N, 0.1)
    (_, gains), (_, all_gains) = (
        next(some.gradients(point)),
        next(space.gradients(point, np.eye(2000)[NAMED])),
    )
    assert gains == pytest.approx(all_gains, rel=1e-6)
    assert at.shape == point.shape
    with pytest.raises(NotApplicableError, match="some are asked for alone"):
        _ = some.inputs
    with pytest.raises(ArgumentError, match="outputs="):
        score(net, X, NeuronCrash(P), outputs=[2000])
