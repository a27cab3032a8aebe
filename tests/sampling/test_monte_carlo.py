"""Monte Carlo against the oracle, both ways, and the rate at which its intervals hold."""

import functools
import operator
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from crashsim import (
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    WeightCrash,
    enumerate_exact,
    monte_carlo,
)
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single
from crashsim.coordinates.drawing import MAX_BLOCK
from crashsim.errors import ArgumentError, CrashsimWarning, Interrupted
from crashsim.metrics import AskedMetrics
from crashsim.sampling.from_sums import QUANTILES
from crashsim.sampling.samples import Draws, First, Samples
from crashsim.sampling.tally import Tally

CASES = {
    "two layers": ((3, 4, 4, 2), "tanh", {"hidden": NeuronCrash(0.2)}),
    "relu": ((3, 5, 3, 2), "relu", {"hidden": NeuronCrash(0.3)}),
    "weights": ((2, 3, 2), "sigmoid", {"weights": WeightCrash(0.2)}),
    "bits": ((2, 2), "linear", {"weights": BitFlip(0.1, bits=3)}),
    "mixed": ((3, 4, 2), "gelu", {"input": SignFlip(0.1), "linear2.weight": WeightCrash(0.2)}),
    "groups": ((3, 9, 9, 2), "tanh", {"hidden": NeuronCrash(0.2, group=2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_against_the_oracle(case, make_net, watch, randn):
    sizes, activation, faults = CASES[case]
    net, x = watch(make_net(sizes, activation, seed=2, scale=2.0)), randn(3, sizes[0])
    epsilon, n = 0.2, 20_000 if set(faults) == {"hidden"} else 2000  # weights are slower
    law = enumerate_exact(net, x, faults)
    found = monte_carlo(FaultSpace(net, x, faults), epsilon=epsilon, samples=n, seed=1)
    assert (found.samples, found.stopped) == (n, "samples")
    centred = law.deltas - law.mean
    fourth = np.tensordot(law.probabilities, centred**4, 1)
    errors = {
        "mean": (found.mean, law.mean, np.sqrt(law.variance / n)),
        "variance": (found.variance, law.variance, np.sqrt((fourth - law.variance**2) / n)),
    }
    tails = np.array(
        [
            [_value(found, "tail", b, k) for k in range(law.clean.shape[1])]
            for b in range(len(law.clean))
        ]
    )
    tail = law.tail(epsilon)
    errors["tail"] = (tails, tail, np.sqrt(tail * (1 - tail) / n))
    change = law.class_change
    changes = np.array([_value(found, "class-change", b, "all") for b in range(3)])
    errors["class-change"] = (changes, change, np.sqrt(change * (1 - change) / n))
    for quantity, (got, wanted, error) in errors.items():
        if quantity in ("variance", "tail"):  # the effect is there to be seen
            assert wanted.max() > 5 * error.max() > 0, quantity
        np.testing.assert_array_less(np.abs(got - wanted), 5 * error + 1e-9, err_msg=quantity)
    covariance_error = 5 * np.sqrt(fourth.max() / n)
    np.testing.assert_allclose(found.covariance, law.covariance, atol=covariance_error)
    np.testing.assert_allclose(
        found.covariance[:, [0, 1], [0, 1]], found.variance, rtol=1e-9, atol=1e-12
    )


def _value(found, quantity, where, output):
    return next(
        e.value
        for e in found.estimates
        if (e.quantity, e.input, e.output) == (quantity, where, output)
    )


def test_gaussian_noise_on_a_linear_net(make_net, randn):
    net, x = make_net((4, 2)), randn(2, 4)
    space = FaultSpace(net, x, GainNoise(0.3), "input")
    found = monte_carlo(space, samples=20_000)
    w = net.linear1.weight.detach().double().numpy()
    variance = 0.09 * x.double().numpy() ** 2 @ (w**2).T
    np.testing.assert_allclose(found.variance, variance, rtol=5 * np.sqrt(2 / 20_000))
    np.testing.assert_array_less(np.abs(found.mean), 5 * np.sqrt(variance / 20_000))


def _quantile(values, weights, level):
    order = np.argsort(values)
    return values[order][np.searchsorted(weights[order].cumsum(), level - 1e-12)]


def test_coverage_of_the_intervals(make_net, randn):
    """A thousand runs: how often does each 95% interval hold the true value?"""
    net, x = make_net((3, 6, 4, 3), "tanh", seed=4, scale=2.5), randn(3, 3)
    fault, epsilon, runs, n = NeuronCrash(0.15), 0.8, 1000, 1024
    law = enumerate_exact(net, x, fault)
    b, k = law.clean.shape
    truth = {}
    for i in range(b):
        for j in range(k):
            truth["mean", i, j, None] = law.mean[i, j]
            truth["variance", i, j, None] = law.variance[i, j]
            truth["tail", i, j, epsilon] = law.tail(epsilon)[i, j]
            for q in QUANTILES:
                size = np.abs(law.deltas[:, i, j])
                truth["quantile", i, j, q] = _quantile(size, law.probabilities, q)
        truth["class-change", i, "all", None] = law.class_change[i]
    for j in range(k):
        truth["mean", "all", j, None] = law.mean[:, j].mean()
        truth["variance", "all", j, None] = law.variance[:, j].mean()
        truth["tail", "all", j, epsilon] = law.tail(epsilon)[:, j].mean()
        for q in QUANTILES:
            sizes = np.abs(law.deltas[:, :, j]).T.ravel()
            weights = np.tile(law.probabilities, b) / b
            truth["quantile", "all", j, q] = _quantile(sizes, weights, q)
    truth["variance", "all", "all", None] = law.variance.sum(1).mean()
    truth["tail", "all", "all", epsilon] = law.any_tail(epsilon).mean()
    truth["class-change", "all", "all", None] = law.class_change.mean()
    assert 0.01 < truth["tail", "all", "all", epsilon] < 0.9
    assert 0.01 < truth["class-change", "all", "all", None] < 0.9

    space = FaultSpace(net, x, fault)
    held = dict.fromkeys(truth, 0)
    for seed in range(runs):
        found = monte_carlo(space, epsilon=epsilon, samples=n, seed=seed)
        for e in found.estimates:
            key = (e.quantity, e.input, e.output, e.level)
            # Samples are float32 where kept: leave their rounding out of it.
            held[key] += e.low * (1 - 1e-6) - 1e-9 <= truth[key] <= e.high * (1 + 1e-6) + 1e-9
    for quantity in ("mean", "variance", "tail", "class-change", "quantile"):
        for pooled in (False, True):
            chosen = [key for key in truth if key[0] == quantity and (key[1] == "all") == pooled]
            rates = [held[key] / runs for key in chosen]
            where = "pooled" if pooled else "per input"
            print(f"coverage {quantity} {where}: mean {np.mean(rates):.4f} min {min(rates):.4f}")
            assert np.mean(rates) >= 0.94, (quantity, where, rates)
            assert min(rates) >= 0.93, (quantity, where, rates)
    # Not vacuous: the intervals that claim to be exact in the limit are not much too wide.
    assert np.mean([held[key] / runs for key in truth if key[0] == "mean"]) < 0.97


def test_a_relative_width_stops_the_run(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2), scale=2), randn(3, 3), NeuronCrash(0.2))
    found = monte_carlo(space, rel_width=0.05)
    assert found.stopped == "relative width"
    for output in (0, 1, "all"):
        e = next(
            e
            for e in found.estimates
            if (e.quantity, e.input, e.output) == ("variance", "all", output)
        )
        assert e.high - e.low <= 2 * 0.05 * e.value * (1 + 1e-9)
        assert e.confidence == found.confidence > 0.95
    # Looks come after 1, 2, 4, ... blocks.
    blocks = found.samples / MAX_BLOCK
    assert blocks == 2 ** round(np.log2(blocks)) > 1


def test_the_budget_ends_a_run(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2)), randn(1, 3), NeuronCrash(0.2))
    found = monte_carlo(space, rel_width=1e-4, samples=1500)
    assert (found.samples, found.stopped) == (1500, "budget")
    assert found.confidence > 0.95
    assert monte_carlo(space, samples=1500).confidence == pytest.approx(0.95)


def test_fewer_samples_are_the_first_of_more(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2)), randn(1, 3), NeuronCrash(0.2))
    few, many = (monte_carlo(space, samples=s, seed=9).kept for s in (1100, 3000))
    np.testing.assert_array_equal(few, many[:1100])
    other = monte_carlo(space, samples=1100, seed=10).kept
    assert not np.array_equal(few, other)


@pytest.mark.parametrize("fault", [NeuronCrash(0.2), WeightCrash(0.2)])
def test_the_batch_size_changes_no_number(fault, make_net, randn, monkeypatch):
    space = FaultSpace(make_net((3, 6, 2)).double(), randn(4, 3), fault)
    whole = monte_carlo(space, samples=300, epsilon=0.1)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 40)
    monkeypatch.setattr("crashsim.sampling.samples._STEP_VALUES", 8 * 7)
    parts = monte_carlo(space, samples=300, epsilon=0.1)
    np.testing.assert_allclose(parts.kept, whole.kept, atol=1e-6)
    for a, b in zip(parts.estimates, whole.estimates, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-7)


def test_progress_is_told_every_tenth_of_a_run(make_net, randn):
    for inputs, hidden, most in (
        (1, 6, 1024),
        (64, 8192, 128),
    ):  # oftener where a sample takes long
        space = FaultSpace(make_net((3, hidden, 2)), randn(inputs, 3), NeuronCrash(0.2))
        for samples in (200, 2500, 10_000)[: 3 if inputs == 1 else 2]:
            seen = []
            monte_carlo(space, samples=samples, progress=lambda *step, seen=seen: seen.append(step))
            done = [0, *(n for n, _ in seen)]
            assert done[-1] == samples
            assert {total for _, total in seen} == {samples}
            assert max(np.diff(done)) <= min(samples / 10, most)


def test_too_few_kept_samples_are_the_first(make_net, randn, monkeypatch):
    space = FaultSpace(make_net((3, 6, 2)), randn(2, 3), NeuronCrash(0.2))
    whole = monte_carlo(space, samples=3000)
    monkeypatch.setattr("crashsim.sampling.monte_carlo._KEEP_VALUES", 0)
    found = monte_carlo(space, samples=3000)
    np.testing.assert_array_equal(found.kept, whole.kept[:200])
    np.testing.assert_array_equal(found.variance, whole.variance)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_faults_have_intervals_of_no_width(p, make_net, randn):
    net, x = make_net((3, 4, 2)), randn(2, 3)
    law = enumerate_exact(net, x, NeuronCrash(p))
    found = monte_carlo(FaultSpace(net, x, NeuronCrash(p)), samples=10, epsilon=0.1)
    np.testing.assert_allclose(found.mean, law.mean, atol=1e-6)
    assert (found.variance < 1e-12).all()
    for e in found.estimates:
        assert e.low == e.value == e.high


def test_no_movement_in_any_sample_warns(make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(1e-9))
    with pytest.warns(CrashsimWarning, match="no sample moved any output"):
        found = monte_carlo(space, samples=100, epsilon=0.1)
    for e in found.estimates:
        if e.quantity in ("tail", "class-change"):
            assert e.value == e.low == 0
            assert 0 < e.high < 0.1
        if e.quantity == "variance":
            assert e.high == np.inf


def test_a_single_output_has_no_class(make_net, randn):
    space = FaultSpace(make_net((3, 4, 1)), randn(2, 3), NeuronCrash(0.3))
    found = monte_carlo(space, samples=500, epsilon=0.1)
    assert {e.quantity for e in found.estimates} == {"mean", "variance", "tail", "quantile"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("samples", v) for v in (0, 1, -5, 100.0, "100", True)),
        *(("rel_width", v) for v in (0, 1, -0.1, float("nan"), "0.1", True)),
        *(("epsilon", v) for v in (0, -1, float("inf"), float("nan"), "0.1", True)),
        *(("confidence", v) for v in (0, 1, 95, float("nan"), "0.95", None)),
        *(("seed", v) for v in (-1, 0.5, "0", 2**64)),
    ],
)
def test_bad_arguments(name, value, make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.3))
    with pytest.raises(ArgumentError, match=f"{name}=") as raised:
        monte_carlo(space, **{name: value})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_outcome_at_epsilon_reaches_it(offset, dtype, seeded):
    """Two of 24 neurons of weight 0.1 must crash: a binomial law, whatever the outputs' offset."""
    net = seeded(lambda: torch.nn.Linear(24, 1)).to(dtype)
    with torch.no_grad():
        net.weight.fill_(0.1)
        net.bias.fill_(offset)
    space = FaultSpace(net, torch.ones(1, 24, dtype=dtype), NeuronCrash(0.05), "input")
    truth = stats.binom.sf(1, 24, 0.05)
    found = monte_carlo(space, epsilon=0.2, samples=4000)
    tail = next(e for e in found.estimates if (e.quantity, e.input) == ("tail", 0))
    assert tail.low < truth < tail.high
    assert tail.high < 0.5


def _bits(found):
    numbers = [
        (e.quantity, e.input, e.output, *(v.hex() for v in (e.value, e.low, e.high)))
        for e in found.estimates
    ]
    return numbers, found.kept.tobytes(), found.samples, found.stopped, found.confidence


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("way", ["plain", "control", "few", "width"])
def test_threads_change_no_bit(way, make_net, randn):
    fault = NeuronCrash(0.01 if way == "few" else 0.2)
    space = FaultSpace(make_net((3, 6, 2), scale=2), randn(3, 3), fault)
    analysis = Analysis()
    mean_point_single(double_precision(space), analysis)
    options = {
        "plain": {"samples": 5000},
        "control": {"control": analysis.surrogate, "samples": 3500},
        "few": {"control": analysis.surrogate, "few_exact": True, "samples": 3500},
        "width": {"rel_width": 0.08},
    }[way] | {"epsilon": 0.3, "seed": 3}
    seen = []
    alone = monte_carlo(space, **options)
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            found = monte_carlo(
                space, **options, executor=pool, progress=lambda n, _: seen.append(n)
            )
        assert _bits(found) == _bits(alone)
        assert seen[-1] == found.samples > MAX_BLOCK
    assert alone.stopped == ("relative width" if way == "width" else "samples")


def test_a_block_depends_on_the_task_and_its_number_alone(make_net, randn):
    """Folded by hand from blocks that are run in any order, twice, with what pickles pickled."""
    space = FaultSpace(make_net((3, 6, 2), scale=2), randn(3, 3), NeuronCrash(0.2))
    draws = Draws(space, None, 5, 3 * MAX_BLOCK + 100)
    first = First(draws)
    assert list(first.evaluate())[-1] == 128
    tally = Tally.of(space.clean(), 0.3, None, None, AskedMetrics())
    task = Samples.aimed(draws, tally, 1500, first)
    task.run(2)  # leaves nothing behind
    elsewhere = Samples(draws, pickle.loads(pickle.dumps(task.tally)), 1500)
    blocks = {block: elsewhere.run(block) for block in (3, 1, 0, 2)}
    total = functools.reduce(operator.add, (blocks[b] for b in range(draws.blocks)))
    assert total.n == draws.samples
    whole = monte_carlo(space, epsilon=0.3, samples=draws.samples, seed=5)
    kept = np.concatenate(total.kept)
    np.testing.assert_array_equal(kept, whole.kept[:1500])
    mean = task.tally.centre + total.per_input.first[0] / total.n
    np.testing.assert_allclose(mean, whole.mean, rtol=1e-12)
    for block in range(draws.blocks):
        again = task.run(block)
        for name in ("tails", "changes", "products"):
            np.testing.assert_array_equal(getattr(again, name), getattr(blocks[block], name))
        np.testing.assert_array_equal(again.per_input.second, blocks[block].per_input.second)


def test_an_interrupt_keeps_what_threads_have_finished(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2), scale=2), randn(3, 3), NeuronCrash(0.2))

    def stop(done, total):
        if done > 3000:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool, pytest.raises(Interrupted) as raised:
        monte_carlo(space, samples=20_000, seed=2, progress=stop, executor=pool)
    found = raised.value.partial
    assert found.samples == 3 * MAX_BLOCK
    wanted = monte_carlo(space, samples=found.samples, seed=2)
    np.testing.assert_array_equal(found.kept, wanted.kept)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=1e-9)
