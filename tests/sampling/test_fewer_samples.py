"""Control variates and exact strata: unbiased, covered, and worth what they claim."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from crashsim import FaultSpace, GainNoise, NeuronCrash, SignFlip, StuckAt, WeightCrash, monte_carlo
from crashsim.analytic import first_order
from crashsim.analytic.first_order import Analysis
from crashsim.coordinates.drawing import MAX_BLOCK, sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, CrashsimWarning
from crashsim.sampling.control_variates import Control, Limits, controlled_mean
from crashsim.sampling.enumeration import enumerate_space
from crashsim.sampling.exact_strata import few_faults, probability_of_two
from crashsim.sampling.from_sums import QUANTILES
from crashsim.sampling.sums.joint_sums import JointSums


def surrogate_of(space):
    analysis = Analysis()
    wide = first_order.double_precision(space)
    first_order.mean_point_taylor(wide, analysis)
    if all(p.fault.is_binary for p in space.placements):
        first_order.mean_point_single(wide, analysis)
    return analysis.surrogate


def masks_of(n):
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


def test_probability_of_two_or_more():
    p = np.array([0.3, 0.0, 0.01, 0.2, 1e-9, 0.5])
    masks = masks_of(6)
    law = np.where(masks, p, 1 - p).prod(1)
    assert probability_of_two(p) == pytest.approx(law[masks.sum(1) >= 2].sum(), rel=1e-12)
    # Without cancellation: 1 - P(0) - P(1) would be rounding.
    assert probability_of_two(np.full(3, 1e-12)) == pytest.approx(3e-24, rel=1e-9)


def test_samples_given_two_or_more_follow_their_law(make_net, randn):
    faults = {"act1": NeuronCrash(0.9), "act2": StuckAt(0.3, 1.0), "input": NeuronCrash(0.0)}
    space = FaultSpace(make_net((2, 3, 3, 2)), randn(1, 2), faults)
    few = few_faults(space)
    p = space.mean_point
    masks = masks_of(space.N)
    law = np.where(masks, p, 1 - p).prod(1) * ((masks != (p > 0.5)).sum(1) >= 2)
    assert few.rest == pytest.approx(law.sum())
    assert few.weights.sum() + few.rest == pytest.approx(1)
    blocks = 40
    drawn = np.concatenate([few.sample_block(1, b).dense() for b in range(blocks)])
    counts = np.bincount((drawn @ (2 ** np.arange(space.N))).astype(int), minlength=2**space.N)
    expected = law / law.sum() * blocks * MAX_BLOCK
    assert (counts[expected == 0] == 0).all()
    likely = expected > 20
    z = (counts - expected)[likely] / np.sqrt(expected[likely])
    assert np.abs(z).max() < 4.5
    assert np.sqrt((z**2).mean()) < 1.3


def test_what_few_faults_do(make_net, randn):
    faults = {"input": NeuronCrash(0.01), "act1": NeuronCrash(1.0)}
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), faults)
    few = few_faults(space)
    for mask, delta in zip(few.points.dense(), few.deltas, strict=True):
        rows = np.flatnonzero(mask)
        points = Points(1, np.zeros(space.N), 0 * rows, rows, np.ones(len(rows)))
        np.testing.assert_allclose(delta, space.outputs(points)[0] - space.clean(), atol=1e-6)
    np.testing.assert_allclose(few.weights[1:], 0.01 * 0.99**2)


@pytest.mark.parametrize(
    "faults", [NeuronCrash(1.0), {"act1": GainNoise(0.1)}, {"act1": NeuronCrash(0.1, group=5)}]
)
def test_faults_that_are_never_few(faults, make_net, randn):
    space = FaultSpace(make_net((3, 5, 2)), randn(1, 3), faults)
    with pytest.raises(ArgumentError, match="few_exact=True"):
        monte_carlo(space, samples=100, few_exact=True)


@pytest.mark.parametrize("p", [0.001, 0.02, 0.4])
def test_the_control_at_points_and_its_moments(p, make_net, randn):
    space = FaultSpace(make_net((3, 5, 4, 2), "tanh"), randn(2, 3), NeuronCrash(p))
    surrogate = surrogate_of(space)
    control = Control.of(space, surrogate, None)
    points = sample_points(space.placements, 0, 50)
    wanted = np.einsum("sn,bkn->sbk", points.dense() - space.mean_point, surrogate.gains)
    np.testing.assert_allclose(control.at(points), wanted, atol=1e-12)
    masks = masks_of(space.N).astype(float)
    law = np.where(masks, p, 1 - p).prod(1)
    every = np.einsum("sn,bkn->sbk", masks - p, surrogate.gains)
    np.testing.assert_allclose(np.tensordot(law, every, 1), 0, atol=1e-12)
    np.testing.assert_allclose(np.tensordot(law, every**2, 1), control.second, rtol=1e-9)


def test_regression_against_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 3))
    y = 2 * x[0] - x[1] + 0.5 * rng.normal(size=(300, 3)) + 5
    known = np.array([[0.1], [-0.2]]) * np.ones((2, 3))
    found = controlled_mean(JointSums.of([y, x[0], x[1]]), np.ones((1, 3)), known)
    for j in range(3):
        design = np.stack([np.ones(300), *(x[:, :, j] - known[:, j : j + 1])], axis=1)
        fit, residuals, _, _ = np.linalg.lstsq(design, y[:, j], rcond=None)
        assert found.mean[j] == pytest.approx(fit[0])
        assert found.variance[j] == pytest.approx(residuals[0] / (300 - 3))


def test_the_average_over_inputs_is_the_regression_of_averages(make_net, randn):
    """Its interval holds for this value, and not for the average of each input's own regression."""
    space = FaultSpace(make_net((3, 5, 2), "tanh", scale=2), randn(3, 3), NeuronCrash(0.3))
    surrogate = surrogate_of(space)
    found = monte_carlo(space, samples=500, control=surrogate)
    points = sample_points(space.placements, 0, 500)
    delta = (space.outputs(points) - space.clean()).mean(1)
    linear = Control.of(space, surrogate, None).at(points)
    linear, square = linear.mean(1), (linear**2).mean(1)
    second = surrogate.variance.mean(0)
    for e in found.estimates:
        if (e.quantity, e.input) == ("mean", "all"):
            k = e.output
            design = np.stack([np.ones(500), linear[:, k], square[:, k] - second[k]], axis=1)
            fit = np.linalg.lstsq(design, delta[:, k], rcond=None)[0]
            assert e.value == pytest.approx(fit[0], rel=1e-9)


def test_controls_that_do_not_vary_change_nothing():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(100, 2))
    plain = controlled_mean(JointSums.of([y]), np.ones((1, 2)))
    idle = controlled_mean(JointSums.of([y, np.zeros((100, 2))]), np.ones((1, 2)), np.zeros((1, 2)))
    np.testing.assert_allclose(idle.mean, plain.mean)
    np.testing.assert_allclose(idle.variance, plain.variance, rtol=0.02)


def test_sums_join():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 3))
    weights = rng.random(50)
    whole = JointSums.of([a, b])
    parts = JointSums.of([a[:20], b[:20]]) + JointSums.of([a[20:], b[20:]])
    np.testing.assert_allclose(parts.covariance, whole.covariance)
    np.testing.assert_allclose(whole.covariance[0, 1, 2], np.cov(a[:, 2], b[:, 2])[0, 1])
    weighted = JointSums.of([a, b], weights)
    assert weighted.n == pytest.approx(weights.sum())
    np.testing.assert_allclose(weighted.second[0, 1], (weights[:, None] * a * b).sum(0))


def truths(law, epsilon):
    b, k = law.clean.shape
    truth = {}
    for i in range(b):
        for j in range(k):
            truth["mean", i, j, None] = law.mean[i, j]
            truth["variance", i, j, None] = law.variance[i, j]
            truth["tail", i, j, epsilon] = law.tail(epsilon)[i, j]
            for q in QUANTILES:
                truth["quantile", i, j, q] = quantile(
                    np.abs(law.deltas[:, i, j]), law.probabilities, q
                )
        truth["class-change", i, "all", None] = law.class_change[i]
    for j in range(k):
        truth["mean", "all", j, None] = law.mean[:, j].mean()
        truth["variance", "all", j, None] = law.variance[:, j].mean()
        truth["tail", "all", j, epsilon] = law.tail(epsilon)[:, j].mean()
        for q in QUANTILES:
            size = np.abs(law.deltas[:, :, j]).T.ravel()
            truth["quantile", "all", j, q] = quantile(size, np.tile(law.probabilities, b) / b, q)
    truth["variance", "all", "all", None] = law.variance.sum(1).mean()
    truth["tail", "all", "all", epsilon] = law.any_tail(epsilon).mean()
    truth["class-change", "all", "all", None] = law.class_change.mean()
    return truth


def quantile(values, weights, level):
    order = np.argsort(values)
    return values[order][np.searchsorted(weights[order].cumsum(), level - 1e-12)]


@pytest.mark.parametrize(
    ("activation", "faults", "few"),
    [
        ("tanh", NeuronCrash(0.15), False),
        ("relu", NeuronCrash(0.3), False),
        ("tanh", NeuronCrash(0.15), True),
        ("relu", NeuronCrash(0.02), True),
        ("sigmoid", NeuronCrash(0.001), True),
        # Some seldom, some nearly always: what the samples meet is not all that the control knows.
        ("tanh", {"input": NeuronCrash(0.002), "act1": NeuronCrash(0.8)}, False),
        ("tanh", {"input": NeuronCrash(0.002), "act1": NeuronCrash(0.97)}, True),
        ("tanh", {"input": NeuronCrash(0.0001), "act1": NeuronCrash(0.03)}, True),
    ],
)
def test_intervals_are_covered_and_estimates_unbiased(activation, faults, few, make_net, randn):
    net, x = make_net((3, 6, 5, 3), activation, seed=4, scale=2.5), randn(3, 3)
    epsilon, runs, n = 0.8, 100, 1024
    space = FaultSpace(net, x, faults)
    law, surrogate = enumerate_space(space), surrogate_of(space)
    truth = truths(law, epsilon)
    errors, inside = {key: [] for key in truth}, {key: [] for key in truth}
    for seed in range(runs):
        found = monte_carlo(
            space, epsilon=epsilon, samples=n, seed=seed, control=surrogate, few_exact=few
        )
        for e in found.estimates:
            key = (e.quantity, e.input, e.output, e.level)
            room = 1e-6 * (1 + abs(truth[key]))  # the network computes in single precision
            room *= 1.0 if e.quantity == "quantile" else abs(truth[key])
            errors[key].append(e.value - truth[key])
            inside[key].append(e.low - room <= truth[key] <= e.high + room)
    for quantity in ("mean", "variance", "tail", "class-change", "quantile"):
        for pooled in (False, True):
            keys = [key for key in truth if key[0] == quantity and (key[1] == "all") == pooled]
            rates = [np.mean(inside[key]) for key in keys]
            assert np.mean(rates) >= 0.92, (quantity, pooled, rates)
            assert min(rates) >= 0.85, (quantity, pooled, rates)
    for key in truth:
        if key[0] in ("mean", "variance", "tail"):
            bias, spread = np.mean(errors[key]), np.std(errors[key], ddof=1)
            room = 1e-6 * abs(truth[key]) + 1e-10
            assert abs(bias) < 5 * spread / np.sqrt(runs) + room, key


def test_what_samples_are_worth(make_net, randn):
    """The claim is the ratio of squared errors, here measured over many runs."""
    net, x = make_net((3, 6, 5, 3), "tanh", seed=4, scale=2.5), randn(3, 3)
    space = FaultSpace(net, x, NeuronCrash(0.05))
    law, surrogate = enumerate_space(space), surrogate_of(space)
    options = {"plain": {}, "better": {"control": surrogate, "few_exact": True}}
    found = {
        name: [monte_carlo(space, samples=1024, seed=s, epsilon=0.8, **o) for s in range(150)]
        for name, o in options.items()
    }

    def square_errors(name, quantity, truth):
        values = np.array(
            [
                [e.value for e in run.estimates if e.quantity == quantity and e.input != "all"]
                for run in found[name]
            ]
        )
        return ((values - truth.ravel()) ** 2).mean(0)

    for quantity, truth in (("mean", law.mean), ("variance", law.variance)):
        gain = square_errors("plain", quantity, truth) / square_errors("better", quantity, truth)
        claimed = np.array(
            [
                [
                    e.worth / 1024
                    for e in run.estimates
                    if e.quantity == quantity and e.input != "all"
                ]
                for run in found["better"]
            ]
        )
        np.testing.assert_allclose(np.median(claimed, 0), gain, rtol=0.6)
        assert np.median(gain) > 50
    assert all(e.worth is None for e in found["plain"][0].estimates)


@pytest.mark.parametrize("controlled", [False, True])
def test_intervals_of_runs_that_stop_early_are_covered(controlled, make_net, randn):
    space = FaultSpace(make_net((3, 6, 3), "tanh", scale=2), randn(2, 3), NeuronCrash(0.1))
    truth, runs = truths(enumerate_space(space), 0.5), 120
    surrogate = surrogate_of(space) if controlled else None
    width, inside, sizes = 0.0045 if controlled else 0.15, [], set()
    for seed in range(runs):
        found = monte_carlo(space, epsilon=0.5, rel_width=width, seed=seed, control=surrogate)
        assert found.stopped == "relative width"
        sizes.add(found.samples)
        inside.append(
            [e.low <= truth[e.quantity, e.input, e.output, e.level] <= e.high
             for e in found.estimates if e.quantity in ("mean", "variance", "tail")]
        )  # fmt: skip
    assert len(sizes) > 1
    assert np.mean(inside) >= 0.95
    assert np.mean(inside, axis=0).min() >= 0.9


def test_coordinates_that_samples_seldom_meet(make_net, randn):
    often, seldom = 0.2, 1e-4
    faults = {"input": NeuronCrash(seldom), "act1": NeuronCrash(often)}
    space = FaultSpace(make_net((3, 5, 4, 2), "tanh"), randn(2, 3), faults)
    surrogate = surrogate_of(space)
    control = Control.of(space, surrogate, None)
    squares = surrogate.gains**2
    rare = squares[:, :, :3].sum(2) * seldom * (1 - seldom)
    np.testing.assert_allclose(control.limits(100_000).seldom[0], rare)
    np.testing.assert_array_equal(control.limits(10_000_000).seldom, 0)
    np.testing.assert_allclose(control.limits(10).seldom[0], surrogate.variance)
    assert control.limits(100_000).use.all()
    assert not control.limits(10).use.any()
    terms = squares * space.moments.k2
    share = 3 * (terms**2).sum(2) / terms.sum(2) ** 2
    np.testing.assert_allclose(control.limits(1000).least, 3 / 1000 * np.minimum(share, 1))


@pytest.mark.parametrize("p", [0.3, 1e-3])
def test_chances_given_two_faults(p, make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), {"act1": NeuronCrash(p)})
    masks = masks_of(space.N).astype(float)
    law = np.where(masks, p, 1 - p).prod(1) * (masks.sum(1) > 1)
    np.testing.assert_allclose(few_faults(space).chances(space.N), law @ masks / law.sum())


def test_no_sample_shows_what_happens_three_times_in_as_many():
    x = np.random.default_rng(0).normal(size=(200, 1))
    all_well = np.ones(1, bool)
    limits = Limits(all_well, np.zeros((1, 1)), np.full(1, 3 / 200), all_well)
    found = controlled_mean(JointSums.of([3 * x, x]), np.ones((1, 1)), np.zeros((1, 1)), limits)
    assert found.mean == pytest.approx(0.0)
    assert found.variance == pytest.approx(9 * x.var(ddof=1) * 3 / 200)
    assert found.residual == pytest.approx(0.0, abs=1e-12)


def test_a_linear_net_leaves_three_in_n(make_net, randn):
    space = FaultSpace(make_net((4, 2)), randn(2, 4), NeuronCrash(0.3), "input")
    found = monte_carlo(space, samples=2000, control=surrogate_of(space))
    law = enumerate_space(space)
    np.testing.assert_allclose(found.mean, law.mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, law.variance, rtol=1e-5)
    for e in found.estimates:
        if e.quantity == "mean" and e.input != "all":
            assert e.low <= law.mean[e.input, e.output] <= e.high
            width = 2 * norm.ppf(0.975) * np.sqrt(3 * law.variance[e.input, e.output]) / 2000
            assert e.high - e.low == pytest.approx(width, rel=0.1)


def test_wrong_gains_cost_width_not_truth(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2), scale=2), randn(2, 3), NeuronCrash(0.2))
    right = surrogate_of(space)
    wrong = type(right)(right.shift, right.gains[:, :, ::-1].copy(), right.coordinates)
    law = enumerate_space(space)
    runs = [monte_carlo(space, samples=1024, seed=s, control=wrong) for s in range(60)]
    inside = [
        e.low <= law.mean[e.input, e.output] <= e.high
        for run in runs
        for e in run.estimates
        if e.quantity == "mean" and e.input != "all"
    ]
    assert np.mean(inside) >= 0.92


def test_gaussian_noise_takes_a_control(make_net, randn):
    space = FaultSpace(make_net((3, 6, 2), "tanh"), randn(2, 3), GainNoise(0.1))
    plain = monte_carlo(space, samples=4000)
    better = monte_carlo(space, samples=4000, control=surrogate_of(space))
    for a, b in zip(plain.estimates, better.estimates, strict=True):
        if a.quantity == "variance":
            assert b.high - b.low < (a.high - a.low) / 4
            assert a.low < b.value * 1.02
            assert b.value < a.high * 1.02


@pytest.mark.parametrize("fault", [NeuronCrash(0.01), WeightCrash(0.002)])
def test_batches_and_numbers_of_samples(fault, make_net, randn, monkeypatch):
    space = FaultSpace(make_net((3, 6, 2)).double(), randn(4, 3), fault)
    options = {"control": surrogate_of(space), "few_exact": True, "seed": 3, "epsilon": 0.1}
    whole = monte_carlo(space, samples=300, **options)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 40)
    monkeypatch.setattr("crashsim.sampling.samples._STEP_VALUES", 8 * 7)
    parts = monte_carlo(space, samples=300, **options)
    for a, b in zip(parts.estimates, whole.estimates, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx(
            (b.value, b.low, b.high), rel=1e-6, abs=1e-12
        )
    more = monte_carlo(space, samples=1500, **options)
    np.testing.assert_allclose(more.kept[:300], whole.kept, atol=1e-6)


def test_curves_and_histograms_weigh_both_parts(make_net, randn):
    space = FaultSpace(make_net((3, 6, 5, 2), "tanh", scale=2), randn(2, 3), NeuronCrash(0.02))
    law = enumerate_space(space)
    found = monte_carlo(space, samples=4000, few_exact=True)
    grid = np.linspace(0.05, 1, 8)
    curve = found.tail(1, 0, grid)
    truth = np.array([law.tail(e)[1, 0] for e in grid])
    assert np.mean((curve.low <= truth) & (truth <= curve.high)) >= 0.8
    np.testing.assert_allclose(curve.value, truth, rtol=0.03, atol=2e-4)
    outcomes, masses = found.law(1, 0)
    assert masses.sum() == pytest.approx(1)
    assert outcomes @ masses == pytest.approx(law.mean[1, 0], rel=0.02)


def test_a_score_uses_them_and_says_so(make_net, randn):
    from crashsim import Score, score

    net, x = make_net((3, 20, 10, 3), "tanh", scale=2), randn(3, 3)
    rare = score(net, x, NeuronCrash(0.002), epsilon=0.3, samples=2000)
    common = score(net, x, NeuronCrash(0.2), epsilon=0.3, samples=2000)
    variance = rare.find("monte-carlo", "variance")
    assert variance.worth > 1e5
    assert "0 and 1 fault exact" in variance.note
    assert "control variate" in variance.note
    tail = rare.find("monte-carlo", "tail")
    assert tail.worth > 20_000
    assert common.find("monte-carlo", "variance").worth > 4000
    assert common.find("monte-carlo", "tail").worth is None
    assert Score.from_dict(rare.to_dict()).find("monte-carlo", "variance") == variance
    text = rare.to_text(100)
    assert "plain samples" in text
    alone = score(net, x, NeuronCrash(0.2), methods=["monte-carlo"], samples=2000)
    assert alone.find("monte-carlo", "variance").worth is None


def test_few_faults_of_half_precision(make_net, randn):
    net = make_net((3, 20, 2)).to(torch.bfloat16)
    space = FaultSpace(net, randn(2, 3), NeuronCrash(0.01))
    found = monte_carlo(space, samples=500, few_exact=True)
    assert np.isfinite(found.variance).all()


def test_a_dead_output_has_no_variance(randn):
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        net[2].weight[0] = 0
    space = FaultSpace(net, randn(2, 3), NeuronCrash(0.01))
    found = monte_carlo(space, samples=500, few_exact=True, control=surrogate_of(space))
    np.testing.assert_array_equal(found.variance[:, 0], 0)
    assert (found.variance[:, 1] > 0).all()


def spread_net(make_layers, seed, scale):
    """A net whose outputs move a lot."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(*make_layers()).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        scaled = scale / (parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 2)
        nn.init.normal_(parameter, 0, scaled, generator=generator)
    return net


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.LayerNorm(3, elementwise_affine=False)])
@pytest.mark.parametrize("few", [True, False])
def test_outputs_that_sum_to_a_constant(last, few, randn):
    """The surrogates of the outputs cancel: their sum is rounding, and no control."""
    net = spread_net(lambda: (nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3), last), 1, 3).double()
    space = FaultSpace(net, randn(4, 5).double(), NeuronCrash(0.002 if few else 0.05), "1")
    truth, surrogate = enumerate_space(space).variance.sum(1).mean(), surrogate_of(space)
    assert not Control.of(space, surrogate, None).adds_up[3]
    assert Control.of(space, surrogate, None).adds_up[:3].all()
    for seed in range(5):
        found = monte_carlo(space, samples=4000, seed=seed, control=surrogate, few_exact=few)
        total = next(
            e
            for e in found.estimates
            if (e.quantity, e.input, e.output) == ("variance", "all", "all")
        )
        assert abs(total.value - truth) < (total.high - total.low)
        assert total.high - total.low < (0.005 if few else 0.1) * truth


@pytest.mark.parametrize("n", [200, 300])
@pytest.mark.parametrize(
    "faults", [{"1": NeuronCrash(0.001), "3": SignFlip(0.1)}, NeuronCrash(0.03)]
)
def test_few_samples_are_enough_or_say_that_they_are_not(faults, n, randn):
    """Some outputs move much, but seldom: the worst of them counts."""
    net = spread_net(
        lambda: (
            nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3), nn.Softmax(-1)
        ), 4, 2.5,
    )  # fmt: skip
    space = FaultSpace(net, randn(2, 4), faults)
    law, surrogate, runs = enumerate_space(space), surrogate_of(space), 200
    truth = {"mean": law.mean, "variance": law.variance}
    inside = {}
    for seed in range(runs):
        found = monte_carlo(space, samples=n, seed=seed, control=surrogate, few_exact=True)
        for e in found.estimates:
            if e.quantity in truth:
                value = truth[e.quantity]
                value = value.mean(0) if e.input == "all" else value[e.input]
                value = value.sum() if e.output == "all" else value[e.output]
                room = 1e-5 * abs(value) + 1e-7 * (e.quantity == "mean")
                where = inside.setdefault((e.quantity, e.input, e.output), [])
                where.append(e.low - room <= value <= e.high + room)
    rates = [np.mean(held) for held in inside.values()]
    assert min(rates) >= 0.9  # 0.93, within the noise of 200 runs
    assert np.mean(rates) >= 0.95


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@pytest.mark.parametrize("p", [1e-3, 1e-2, 0.2])
def test_a_control_never_widens_an_interval(p, make_net, randn):
    space = FaultSpace(
        make_net((4, 30, 20, 3), "relu", scale=2), randn(3, 4), WeightCrash(p), "weights"
    )
    plain = monte_carlo(space, samples=150, seed=2)
    controlled = monte_carlo(space, samples=150, seed=2, control=surrogate_of(space))
    narrower = 0
    for a, b in zip(plain.estimates, controlled.estimates, strict=True):
        if a.quantity in ("mean", "variance"):
            # Of the plain interval, up to where the mean lies that it is about.
            assert b.high - b.low <= (a.high - a.low) * 1.05
            narrower += b.high - b.low < (a.high - a.low) / 2
            if (a.value, a.low, a.high) == (b.value, b.low, b.high):  # it is not used
                assert b.worth is None or b.worth == 150
    assert narrower > 0 or p < 0.1


def test_faults_that_hardly_strike_are_told(make_net, randn):
    net, x = make_net((3, 6, 5, 2), "tanh"), randn(2, 3)
    faults = {"input": NeuronCrash(1e-4), "act1": NeuronCrash(0.3)}
    with pytest.warns(CrashsimWarning, match=r"input \(about 0.3\) strike too few times"):
        found = monte_carlo(FaultSpace(net, x, faults), samples=1000)
    for e in found.estimates:
        if e.quantity in ("mean", "variance"):
            assert "too narrow" in e.note
    with pytest.warns(CrashsimWarning, match="few of them make up most"):
        monte_carlo(FaultSpace(net, x, {"act*": NeuronCrash(5e-3)}), samples=500)
    found = monte_carlo(FaultSpace(net, x, NeuronCrash(0.3)), samples=1000)
    assert not any(e.note for e in found.estimates)
