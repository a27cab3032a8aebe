"""Tilted faults that are listed, against laws written out and sums over all fault patterns."""

import numpy as np
import pytest

from crashsim import BitFlip, FaultSpace, GainNoise, NeuronCrash, WeightCrash, monte_carlo
from crashsim.analytic.first_order import Analysis
from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.surrogates import factored_surrogate
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.sampling.control_variates import Control
from crashsim.sampling.enumeration import enumerate_space
from crashsim.sampling.pilot import MendedGains, Pilot
from crashsim.sampling.tilted.importance import importance_sampling
from crashsim.sampling.tilted.sparse_tilts import tilted


def _factored(space):
    gains = Gains.of(space, "mean", MEMORY)
    return FactoredSurrogate.of(gains, gains.shift - gains.sums.mean)


def _masks(n):
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


@pytest.fixture
def space(make_net, randn):
    faults = {"input": NeuronCrash(0.02), "linear1.bias": WeightCrash(0.1)}
    return FaultSpace(make_net((4, 5, 3), scale=3), 2 * randn(2, 4), faults)


def test_draws_and_ratios_follow_the_tilted_law(space):
    surrogate = _factored(space)
    one = surrogate.part((0, 1))
    law = tilted(one, 2.0)
    assert 0 < len(law.columns) <= space.N
    p = space.mean_point
    chances = p.copy()
    chances[law.columns] = law.chances
    assert (np.abs(chances - p) > 0.01).any()
    masks = _masks(space.N)
    own, there = (np.where(masks, q, 1 - q).prod(1) for q in (p, chances))
    points = law.draw(generator(0, Stream.IMPORTANCE), space, 40_000)
    drawn = points.dense()
    codes = (drawn @ (2 ** np.arange(space.N))).astype(int)
    ratios = law.log_ratios(points)
    np.testing.assert_allclose(ratios, np.log(there / own)[codes], atol=1e-9)
    expected = 40_000 * there
    counts = np.bincount(codes, minlength=len(masks))
    likely = expected > 20
    z = (counts - expected)[likely] / np.sqrt(expected[likely])
    assert np.sqrt((z**2).mean()) < 1.4


def test_probabilities_are_those_of_all_fault_patterns(make_net, randn):
    faults = {"input": NeuronCrash(0.02), "act1": NeuronCrash(0.01)}
    space = FaultSpace(make_net((4, 8, 3), seed=2), randn(3, 4), faults)
    exact, surrogate = enumerate_space(space), _factored(space)
    epsilon = 3 * float(np.sqrt(surrogate.variance[:, 1].max()))
    wanted = {
        (e.quantity, e.input): e.value
        for e in exact.estimates(epsilon, None)
        if e.output in (1, "all")
    }
    found = importance_sampling(
        space, Analysis(surrogate=surrogate), epsilon=epsilon, output=1, seed=3, rel_width=0.05
    )
    checked = 0
    for e in found:
        value = wanted[e.quantity, e.input]
        if value > 1e-9 and e.input != "all":
            assert e.low <= value <= e.high, e
            assert e.high < 1.6 * value
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("bits", [False, True])
def test_layers_of_many_chunks_and_noise_among_them(bits, make_net, randn, monkeypatch):
    """A layer's coordinates in several chunks, and noise, which none holds and nothing tilts."""
    struck = BitFlip(0.01, bits=4) if bits else WeightCrash(0.03)
    faults = {"act1": GainNoise(0.2), "linear1.weight": struck, "linear2.weight": struck}
    space = FaultSpace(make_net((3, 4, 2), scale=2), 2 * randn(1, 3), faults)
    whole = tilted(_factored(space).part((0, 1)), 2.0)
    monkeypatch.setattr(factored_surrogate, "_TOGETHER", 3)
    surrogate = _factored(space)
    law = tilted(surrogate.part((0, 1)), 2.0)
    np.testing.assert_array_equal(law.columns, whole.columns)
    np.testing.assert_allclose(law.chances, whole.chances)
    gains = next(iter(space.gradients(space.mean_point)))[1][0, 1]
    steep = np.abs(2 * gains) > 0.1
    noisy = np.arange(space.N) < 4
    assert steep[noisy].any()
    assert not np.isin(law.columns, np.flatnonzero(noisy)).any()
    assert np.isin(np.flatnonzero(steep & ~noisy), law.columns).all()
    drawn = law.draw(generator(0, Stream.IMPORTANCE), space, 4000).dense()
    assert drawn[:, noisy].std(0) == pytest.approx(0.2, rel=0.1)

    epsilon = 2 * float(np.sqrt(surrogate.variance[0, 1]))
    found = importance_sampling(space, Analysis(surrogate=surrogate), epsilon=epsilon, output=1)
    measured = monte_carlo(space, samples=40_000, epsilon=epsilon, seed=5)
    tail = next(e for e in found if e.quantity == "tail" and e.input == 0)
    plain = measured.estimates.find("monte-carlo", "tail", 0, 1)
    assert plain.value > 0.01
    assert tail.low < plain.high
    assert plain.low < tail.high


@pytest.mark.filterwarnings("ignore:importance-sampling")  # so few passes
def test_the_same_seed_gives_the_same_numbers_and_passes_are_shared(space):
    analysis = Analysis(surrogate=_factored(space))
    asked = {"epsilon": 1.2, "output": 1, "passes": 600}
    first = importance_sampling(space, analysis, **asked, seed=1)
    again = importance_sampling(space, analysis, **asked, seed=1)
    assert [e.value for e in first] == [e.value for e in again]
    spent = int(first[-1].note.split("; ")[1].split()[0])
    assert spent <= 600


@pytest.fixture
def rare(make_net, randn):
    """Rare crashes of which few matter much, and less than the gradient says."""
    net = make_net((6, 30, 2), scale=1.0)
    net.linear2.weight.data[:, :2] *= 12
    net.linear1.weight.data[:2] *= 4
    return FaultSpace(net, randn(2, 6), NeuronCrash(0.004), "act1")


def test_a_pilot_shows_what_single_strikes_leave_over(rare):
    gains = _factored(rare).gains
    pilot = Pilot.of(rare, gains, 0)
    p = rare.mean_point
    every = np.array([rare.outputs(_at(rare, i))[0] - rare.clean() for i in range(rare.N)])
    linear = np.einsum("n,bkn->nbk", np.ones(rare.N), _dense(gains))
    target = np.stack([np.ones_like(rare.clean()), np.zeros_like(rare.clean())])
    slopes = 0.8 * target
    exact = np.einsum("n,nbk->bk", p * (1 - p), (every - 0.8 * linear) ** 2)
    found = pilot.left_over(target, slopes, pooled=False)
    assert (exact > 0).all()
    assert (found > 0.9 * exact).all()
    assert (found < 3 * exact).all()
    # Of two slopes, those that it chooses leave less over.
    own = pilot.left_over(target, pilot.slopes(target, pooled=False), pooled=False)
    assert (own < pilot.left_over(target, 1.3 * target, pooled=False)).all()


def _at(space, i):
    return Points.one_at_a_time(np.zeros(space.N), np.array([i]), np.ones(1))


def _dense(gains):
    found = np.zeros((gains.space.B, gains.space.K, gains.space.N))
    for b, slopes in gains.each():
        found[b] = np.concatenate(
            [s.T * v.displacements().T for s, v in zip(slopes, gains.values, strict=True)], axis=1
        )
    return found


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_intervals_cover_where_few_samples_hold_the_faults_that_matter(rare):
    exact = _moments(rare)
    surrogate = _factored(rare)
    assert Control.of(rare, surrogate, None).pilot is not None
    seeds, missed = 60, np.zeros(2)
    for seed in range(seeds):
        run = monte_carlo(rare, samples=100, seed=seed, control=surrogate)
        for i, quantity in enumerate(("mean", "variance")):
            found = [e for e in run.estimates if e.quantity == quantity and e.input != "all"]
            outside = [not e.low <= exact[i][e.input, e.output] <= e.high for e in found]
            missed[i] += np.mean(outside)
    assert (missed / seeds <= 0.12).all(), missed / seeds


@pytest.fixture
def uneven(make_net, randn):
    """Two layers, of which only the small one's crashes move the outputs too far for a slope."""
    net = make_net((4, 10, 150, 2), "tanh", scale=0.7)
    net.linear2.weight.data *= 5
    return FaultSpace(net, randn(2, 4), {"act1": NeuronCrash(0.02), "act2": NeuronCrash(0.003)})


def test_mended_gains_know_the_single_strikes_and_the_moments_of_l(space):
    surrogate = _factored(space)
    columns = np.array([1, 3, 6])
    mended = MendedGains.of(space, surrogate.gains, columns)
    masks = _masks(space.N).astype(float)
    rows, struck = np.nonzero(masks)
    points = Points(len(masks), np.zeros(space.N), rows, struck, np.ones(len(rows)))
    linear = mended.along(points)
    delta = space.outputs(points) - space.clean()
    alone = (1 << columns).astype(int)
    np.testing.assert_allclose((linear[alone] - linear[0]), delta[alone], atol=1e-5)
    untouched = np.setdiff1d(np.arange(space.N), columns)
    np.testing.assert_allclose(
        (linear - linear[0])[1 << untouched],
        np.moveaxis(_dense(surrogate.gains)[:, :, untouched], -1, 0),
        atol=1e-5,
    )
    p = space.mean_point
    law = np.where(masks, p, 1 - p).prod(1)
    np.testing.assert_allclose(np.tensordot(law, linear, 1), 0, atol=1e-5)
    wanted = surrogate.variance + mended.variance
    np.testing.assert_allclose(np.tensordot(law, linear**2, 1), wanted, rtol=1e-4)


def test_gains_are_mended_where_few_single_strikes_leave_most_over(uneven):
    surrogate = _factored(uneven)
    control = Control.of(uneven, surrogate, None, samples=100)
    small = np.arange(10)
    assert (control.gains.columns == small).all()
    assert Control.of(uneven, surrogate, None, samples=9).pilot.mended is None
    # What is left of others follows from strikes, and nothing is left of these.
    target = np.stack([np.ones_like(uneven.clean()), np.zeros_like(uneven.clean())])
    every = np.array([uneven.outputs(_at(uneven, i))[0] - uneven.clean() for i in range(uneven.N)])
    linear = np.moveaxis(_dense(surrogate.gains), -1, 0)
    linear[small] = every[small]
    k2 = uneven.moments.k2
    exact = np.einsum("n,nbk->bk", k2, (every - linear) ** 2)
    found = control.pilot.left_over(target, target, pooled=False)
    assert (found > 0.8 * exact).all()
    assert (found < 3 * exact).all()


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_mended_gains_make_intervals_narrower_that_still_cover(uneven, monkeypatch):
    surrogate = _factored(uneven)
    plain = monte_carlo(uneven, samples=40_000, seed=99, control=surrogate)
    truth = plain.mean, plain.variance
    seeds, missed, widths = 50, np.zeros(2), np.zeros((2, 2))
    for is_mended in (0, 1):
        if not is_mended:
            monkeypatch.setattr("crashsim.sampling.pilot._MOST_MENDED", 0.0)
        for seed in range(seeds):
            run = monte_carlo(uneven, samples=120, seed=seed, control=surrogate)
            for i, quantity in enumerate(("mean", "variance")):
                found = [e for e in run.estimates if e.quantity == quantity and e.input != "all"]
                widths[is_mended, i] += np.mean([e.high - e.low for e in found])
                if is_mended:
                    outside = [not e.low <= truth[i][e.input, e.output] <= e.high for e in found]
                    missed[i] += np.mean(outside)
        monkeypatch.undo()
    assert (missed / seeds <= 0.1).all(), missed / seeds
    assert (widths[1] < 0.95 * widths[0]).all(), widths


def _moments(space):
    """E and Var Delta over none, one and two crashes, which leave out 1e-3 of the probability."""
    n, p = space.N, float(space.mean_point[0])
    masks = [np.zeros(n)] + [np.eye(n)[i] for i in range(n)]
    masks += [np.eye(n)[i] + np.eye(n)[j] for i in range(n) for j in range(i)]
    masks = np.array(masks)
    rows, columns = np.nonzero(masks)
    points = Points(len(masks), np.zeros(n), rows, columns, np.ones(len(rows)))
    delta = space.outputs(points) - space.clean()
    struck = masks.sum(1)
    law = p**struck * (1 - p) ** (n - struck)
    mean = np.tensordot(law, delta, 1)
    return mean, np.tensordot(law, delta**2, 1) - mean**2
