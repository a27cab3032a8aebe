"""Crash moments on the chip against the network, a closed form and the mean-point theory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    HardwareWarning,
    Levels,
    Linear,
    Network,
    NeuronLayer,
    Variation,
    convert,
    crash_statistics,
    sample_cells,
    sample_core_deaths,
    sample_dead,
    spiking_gap,
)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("steps", [50, 100])
def test_chip_against_network_mask_by_mask(digits, activation, steps):
    """Same masks, p = 0.05: slope and variance ratio 1 +- 0.01, correlation at least 0.999."""
    net = digits(activation)
    chip = convert(net.network, net.train, steps)
    gap = spiking_gap(chip, net.test[:8], sample_dead(chip, 0.05, 500, 7), engine="numpy")
    assert gap.variance.min() > 0.0
    assert gap.slope == pytest.approx(1.0, abs=0.01)
    assert gap.variance_ratio == pytest.approx(1.0, abs=0.01)
    assert gap.correlation >= 0.999
    assert gap.variance_correlation >= 0.999
    assert gap.mask_correlation >= 0.99


def mean_point_variance(network, x, p):
    """sum p (1 - p) (F(m, e_i = 1) - F(m, e_i = 0))^2, the mean-point single-fault estimate."""
    sizes = network.sizes
    total = np.zeros((len(x), network.shapes[-1][0]))
    for layer, size in enumerate(sizes):
        ends = []
        for value in (0.0, 1.0):
            gain = [np.full((size, n), 1.0 - p) for n in sizes]
            np.fill_diagonal(gain[layer], value)
            ends.append(network.forward(x, gain=gain).outputs)
        total += p * (1.0 - p) * ((ends[0] - ends[1]) ** 2).sum(axis=0)
    return total


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_chip_against_mean_point_theory(digits, activation):
    """Var Delta on the chip within 5% of the theory, which knows no spikes."""
    net = digits(activation)
    x = net.test[:4]
    chip = convert(net.network, net.train)
    measured = crash_statistics(chip, x, sample_dead(chip, 0.05, 3000, 3), engine="numpy")
    theory = mean_point_variance(net.network, x, 0.05)
    ratio = measured.variance.value.sum() / theory.sum()
    assert ratio == pytest.approx(1.0, abs=0.05)


def linear_chip(steps):
    """Rates that no crash can push into a kink: Delta is linear in the crashes, exactly."""
    rng = np.random.Generator(np.random.Philox(key=5))
    first, last = rng.random((20, 4)), rng.normal(size=(2, 20))
    network = Network([NeuronLayer(Linear(first)), NeuronLayer(Linear(last), "linear")], (4,))
    x = rng.random((3, 4))
    return network, convert(network, x, steps), x, (x @ first.T), last


def test_closed_form_and_coverage():
    """Var Delta = p (1 - p) sum (w a)^2 for one layer; 95% intervals cover it about that often."""
    p, (_, chip, x, activations, last) = 0.1, linear_chip(30)
    products = activations[:, None, :] * last
    mean, variance = -p * products.sum(-1), p * (1 - p) * (products**2).sum(-1)
    hits = {"mean": 0, "variance": 0}
    trials = 60
    for seed in range(trials):
        stats = crash_statistics(
            chip, x, sample_dead(chip, p, 400, 1000 + seed), seed=seed, engine="numpy"
        )
        for name, truth in (("mean", mean), ("variance", variance)):
            moment = getattr(stats, name)
            assert np.all(moment.low < moment.high)
            hits[name] += np.mean((moment.low <= truth) & (truth <= moment.high))
    assert 0.88 <= hits["mean"] / trials <= 0.99
    assert 0.88 <= hits["variance"] / trials <= 0.99


def test_covariance_removes_spiking_noise():
    """With so few steps that noise is large, the variance of one read is biased, ours is not."""
    p, (_, chip, x, activations, last) = 0.1, linear_chip(4)
    truth = p * (1 - p) * ((activations[:, None, :] * last) ** 2).sum(-1)
    stats = crash_statistics(chip, x, sample_dead(chip, p, 20_000, 1), engine="numpy")
    assert stats.noise.sum() > 0.2 * truth.sum()
    assert stats.variance.value.sum() == pytest.approx(truth.sum(), rel=0.03)


def test_core_deaths_obey_the_group_law():
    """Var = p (1 - p) sum over cores of (sum over the core of w a)^2."""
    p, size, (_, chip, x, activations, last) = 0.2, 5, linear_chip(50)
    grouped = (activations[:, None, :] * last).reshape(3, 2, -1, size).sum(-1)
    truth = p * (1 - p) * (grouped**2).sum(-1)
    faults = sample_core_deaths(chip, p, 8000, 2, core_size=size)
    stats = crash_statistics(chip, x, faults, engine="numpy")
    assert stats.variance.value.sum() == pytest.approx(truth.sum(), rel=0.05)
    single = p * (1 - p) * ((activations[:, None, :] * last) ** 2).sum()
    assert abs(truth.sum() - single) > 0.2 * single  # the neurons' law would not do


def test_release_failure_keeps_its_own_variance():
    """Lost spikes scatter the output by sum n_i q (1 - q) (w_i / T)^2 and shrink its mean by q."""
    q, steps = 0.2, 50
    _, chip, x, activations, last = linear_chip(steps)
    stats = crash_statistics(
        chip, x, ChipFaults(release_failure=q, masks=3000), seed=1, engine="numpy"
    )
    np.testing.assert_allclose(
        stats.mean.value, -q * (activations[:, None, :] * last).sum(-1), atol=0.02
    )
    scale = chip.hidden[0].scale
    spikes = activations / scale * steps
    truth = (spikes[:, None, :] * q * (1 - q) * (last * scale / steps) ** 2).sum(-1)
    np.testing.assert_allclose(stats.variance.value, truth, rtol=0.25)
    assert np.all((stats.variance.low < truth * 1.1) & (stats.variance.high > truth * 0.9))


def test_engines_give_the_same_statistics(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 30)
    x, faults = rng.normal(size=(2, 5)), sample_dead(chip, 0.1, 40, 1)
    ours, theirs = (
        crash_statistics(chip, x, faults, engine=engine) for engine in ("numpy", "brian2")
    )
    np.testing.assert_allclose(ours.variance.value, theirs.variance.value, rtol=1e-9)
    np.testing.assert_allclose(ours.mean.high, theirs.mean.high, rtol=1e-9)


def test_too_little_is_said(digits):
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    with pytest.warns(HardwareWarning, match=r"T = 10 steps is too short.*about T = \d+"):
        crash_statistics(chip, net.test[:2], sample_dead(chip, 1e-3, 200, 0), engine="numpy")
    chip = convert(net.network, net.train)
    with pytest.warns(HardwareWarning, match="10 masks are too few"):
        crash_statistics(chip, net.test[:1], sample_dead(chip, 0.1, 10, 0), engine="numpy")
    with pytest.warns(HardwareWarning, match="none of the 40 masks holds a fault"):
        crash_statistics(chip, net.test[:1], sample_dead(chip, 0.0, 40, 0), engine="numpy")
    with pytest.raises(HardwareError, match="at least 2 masks"):
        crash_statistics(chip, net.test[:1], None, engine="numpy")
    with pytest.raises(HardwareError, match="confidence"):
        crash_statistics(chip, net.test[:1], sample_dead(chip, 0.1, 40, 0), confidence=95)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_convolutional_chip_against_its_network(conv, rng, activation):
    """Padding, groups, pooling: the same slope and ratio, mask by mask."""
    network = conv(activation)
    chip = convert(network, rng.random((60, 1, 8, 8)), 100, tau_syn=0.01)
    faults = sample_dead(chip, 0.05, 200, 3)
    gap = spiking_gap(chip, rng.random((3, 1, 8, 8)), faults, engine="numpy")
    assert gap.slope == pytest.approx(1.0, abs=0.02)
    assert gap.variance_ratio == pytest.approx(1.0, abs=0.02)
    assert gap.correlation >= 0.999


def test_faults_that_are_the_same_on_every_mask(digits):
    """Quantised weights shift the output and scatter nothing: there is no variance ratio."""
    net = digits("relu")
    chip = convert(net.network, net.train)
    gap = spiking_gap(chip, net.test[:2], ChipFaults(weight_bits=3, masks=60), engine="numpy")
    assert np.isnan(gap.variance_ratio)
    assert gap.slope == pytest.approx(1.0, abs=0.05)
    assert np.abs(gap.mean).max() > 0.1


def test_equal_reads_have_no_variance(tiny, rng):
    """Levels of conductance shift outputs and vary nothing: a variance of 0, not of rounding."""
    chip = replace(convert(tiny("relu"), rng.normal(size=(50, 5)), 60), start="zero")
    found = crash_statistics(chip, rng.normal(size=(4, 5)), sample_cells(chip, Levels(4), 37, 0))
    assert np.abs(found.mean.value).max() > 0.01
    for moment in (found.variance.value, found.variance.high, found.mean.high - found.mean.low):
        assert not moment.any()


def test_outputs_that_no_mask_moves_have_an_open_interval(tiny, rng):
    """Two masks of 40 kill a neuron that sends nothing: other masks may yet move the outputs."""
    chip = replace(convert(tiny("relu"), rng.normal(size=(50, 5)), 60), start="zero")
    silent = replace(chip, readout=chip.readout.with_weight(np.zeros(chip.readout.weight.shape)))
    dead = np.zeros((40, 8), bool)
    dead[:2, 0] = True
    faults = ChipFaults(dead=[dead])
    assert not faults.alike
    found = crash_statistics(silent, rng.normal(size=(2, 5)), faults)
    assert not found.variance.value.any()
    assert not found.variance.low.any()
    assert np.isinf(found.variance.high).all()
    assert np.isneginf(found.mean.low).all()
    assert np.isposinf(found.mean.high).all()
    levels = sample_cells(chip, Levels(4), 40, 0)
    assert levels.alike
    assert not replace(levels, dead=[dead]).alike
    assert not replace(levels, read_noise=0.1).alike
    assert not sample_cells(chip, Variation(0.1), 40, 0).alike
