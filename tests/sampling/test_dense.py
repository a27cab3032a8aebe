"""Very many outputs: what is counted of them against samples that are kept whole."""

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import Event, FaultSpace, NeuronCrash, StuckAt, monte_carlo
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ArgumentError
from crashsim.sampling import dense
from crashsim.sampling import monte_carlo as sampling
from crashsim.scoring import variance_reduction

EPSILON, SAMPLES = 0.3, 400


@pytest.fixture(scope="module")
def space():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 90)).eval()
    return FaultSpace(net, torch.randn(3, 4), NeuronCrash(0.1))


@pytest.fixture(scope="module")
def deltas(space):
    """The samples' Deltas, from one plain pass for each."""
    points = sample_points(space.placements, 3, SAMPLES)
    found = np.concatenate([space.outputs(points.part(i, i + 1)) for i in range(SAMPLES)])
    return found - space.clean()


@pytest.fixture(scope="module")
def whole(space):
    """The same samples, counted one output and input at a time."""
    return monte_carlo(space, epsilon=EPSILON, samples=SAMPLES, seed=3)


@pytest.fixture
def found(space, whole, monkeypatch):
    monkeypatch.setattr(sampling, "DENSE", 100)  # as if 270 were too many
    rare = Event("up", lambda outputs, clean, targets: outputs[..., 0] > clean[..., 0] + 0.1)
    return monte_carlo(
        space, epsilon=EPSILON, samples=SAMPLES, seed=3, metrics=[rare], outputs=[89, 0]
    )


def test_averages_are_those_of_the_samples(found, deltas):
    k = deltas.shape[2]
    for output in range(k):
        mean = found.estimates.find("monte-carlo", "mean", output=output)
        assert mean.value == pytest.approx(deltas[:, :, output].mean(), rel=1e-5, abs=1e-7)
        variance = found.estimates.find("monte-carlo", "variance", output=output)
        wanted = deltas[:, :, output].var(0, ddof=1).mean()
        assert variance.value == pytest.approx(wanted, rel=1e-5)
        assert variance.low < variance.value < variance.high
        tail = found.estimates.find("monte-carlo", "tail", output=output)
        assert tail.value == pytest.approx((np.abs(deltas[:, :, output]) >= EPSILON).mean())
    total = found.estimates.find("monte-carlo", "variance")
    assert total.value == pytest.approx(deltas.var(0, ddof=1).mean(0).sum(), rel=1e-5)
    any_tail = found.estimates.find("monte-carlo", "tail")
    assert any_tail.value == pytest.approx((np.abs(deltas) >= EPSILON).any(2).mean())
    assert 0 < any_tail.value < 1
    np.testing.assert_allclose(found.variance, deltas.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found.mean, deltas.mean(0), rtol=1e-4, atol=1e-7)


def test_intervals_are_those_of_samples_kept_whole(found, whole, space):
    compared = 0
    for quantity in ("mean", "variance", "tail", "class-change"):
        for output in (*range(space.K), "all"):
            one = found.estimates.find("monte-carlo", quantity, output=output)
            other = whole.estimates.find("monte-carlo", quantity, output=output)
            if other is None:
                assert one is None
                continue
            for end in ("value", "low", "high"):
                assert getattr(one, end) == pytest.approx(getattr(other, end), rel=1e-5, abs=1e-9)
            compared += 1
    assert compared == 3 * space.K + 3


def test_each_input_of_the_outputs_looked_at(found, whole, space, deltas):
    assert len(found.outputs) == 64
    assert {0, 89} <= set(found.outputs)
    for quantity in ("mean", "variance", "tail", "quantile"):
        for row in range(space.B):
            for output in (0, 89):
                one = found.estimates.find("monte-carlo", quantity, row, output)
                if quantity == "quantile":
                    size = np.sort(np.abs(deltas[:, row, output]))
                    assert one.value == pytest.approx(size[int(0.99 * SAMPLES) - 1], rel=1e-6)
                    continue
                other = whole.estimates.find("monte-carlo", quantity, row, output)
                for end in ("value", "low", "high"):
                    wanted = getattr(other, end)
                    # Those of moments allow for what was not seen of one input, but of another.
                    assert getattr(one, end) == pytest.approx(wanted, rel=2e-3, abs=1e-7)
    left_out = next(k for k in range(space.K) if k not in found.outputs)
    assert found.estimates.find("monte-carlo", "variance", 0, left_out) is None


def test_a_metric_of_ones_own(found, deltas):
    one = found.estimates.find("monte-carlo", "up")
    assert one.value == pytest.approx((deltas[:, :, 0] > 0.1).mean(), abs=0.01)
    assert 0 < one.value < 1


def test_nothing_grows_with_the_samples_but_what_is_looked_at(space, monkeypatch):
    monkeypatch.setattr(sampling, "DENSE", 100)
    found = monte_carlo(space, samples=50)
    assert found.kept.shape == (50, space.B, 64)
    assert found.covariance is None


def test_blocks_add_up_to_the_same_numbers(space, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(sampling, "DENSE", 100)
    one = monte_carlo(space, samples=3000, seed=1)
    with ThreadPoolExecutor(2) as executor:
        other = monte_carlo(space, samples=3000, seed=1, executor=executor)
    assert one.estimates == other.estimates


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_outputs_that_overflow(space, monkeypatch):
    """No moments, no infinite quantile, and a score that goes on."""
    for module in (sampling, variance_reduction):
        monkeypatch.setattr(module, "DENSE", 100)
    faults = StuckAt(0.9, value=3e38)
    found = crashsim.score(
        space.model, space.inputs, faults, methods="monte-carlo", samples=SAMPLES
    )
    assert found.find("monte-carlo", "not-finite").value > 0
    assert found.find("monte-carlo", "variance", output="all") is None
    assert all(np.isfinite(e.value) for e in found.estimates)
    struck = space.with_faults([faults] * len(space.placements))
    assert np.isnan(monte_carlo(struck, samples=50).variance).all()


def test_what_it_cannot_take_is_refused(space, monkeypatch):
    monkeypatch.setattr(sampling, "DENSE", 100)
    with pytest.raises(ArgumentError, match="few_exact: not for 3 inputs times 90 outputs"):
        monte_carlo(space, samples=50, few_exact=True)


@pytest.mark.parametrize("outputs", [[], [90], [-1], [1, 1], ["a"], 1.5])
def test_outputs_that_are_none(space, outputs):
    with pytest.raises(ArgumentError, match="outputs="):
        monte_carlo(space, samples=10, outputs=outputs)


def test_the_limit_is_far_above_what_was_counted_one_by_one():
    assert dense.DENSE >= 1000 * 64
